"""How well a model translates: what it makes of held-out pictures, measured against the other look.

`translation` of `genkit evaluate`, what the model cards are measured with. Beside the model stand two ways that need
none: the picture left as it is, and the nearest picture of the other look that the training saw.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from genkit.evaluation import Evaluation, Place, Report
from genkit.fields import Hint, Pixels
from genkit.pipeline import Closed, Progress

if TYPE_CHECKING:
    from torch import Tensor

    from genkit.runtime import Runtime
    from pipelines.image_translation.measuring.card import Card, Translator

__all__ = ["TranslationEvaluation"]

BATCH = 8


class Params(Closed):
    """What is translated, by what, and how it is looked at."""

    a: Place = Field(description="The folder of pictures that the model translates from: the training's, whole.")
    b: Place = Field(description="The folder of the look that it translates to; a picture's partner has its name.")
    model: Annotated[str, Hint(kind="model", short="m")] = Field(
        "noto-to-blob", description="The model that translates from a to b: an alias, a folder or a file."
    )
    back: Annotated[str | None, Hint(kind="model")] = Field(
        None, description="The model of the other direction, for the cycle error."
    )
    held_out: int = Field(
        100, ge=2, le=10**6, description="Measure on the names that a training with this `held_out` did not see."
    )
    size: Annotated[int, Pixels(32, 1024)] = Field(128, description="Side that all pictures are brought to.")
    features: Annotated[str, Hint(kind="model")] = Field(
        "torchvision:squeezenet1_0",
        description="The feature network: torchvision:squeezenet1_0 (fetched where it is not here) or a file of it.",
    )
    limit: int | None = Field(None, ge=2, description="Translate at most so many pictures, evenly from those held out.")
    grid: str | None = Field(
        None, description="Write a picture with rows of: input, made, true partner, sent back (such as grid.png)."
    )
    device: str | None = Field(None, description="cpu, cuda, cuda:1, mps or xpu; by default the best there is.")


class TranslationEvaluation(Evaluation):
    """How well a model translates pictures of look A to look B, on pictures that its training did not see.

    KID (0 is alike; with its standard error) and FID to the pictures of B that the training saw, KID to the held-out;
    the share taken for B by a judge of the two looks, whose own accuracy on held-out pictures is printed; the distance
    of features, L1 (0..1) and SSIM to the true partner in B, where names pair; and the cycle error, L1 in 0..1 (twice
    that in a training's -1..1) of the picture sent there and back. All but L1 and SSIM look through the feature network
    that is named, at pictures of --size px.
    """

    Params: ClassVar[type[Closed]] = Params
    examples = (
        "genkit evaluate translation --a noto --b blob --model noto-to-blob --back blob-to-noto",
        "genkit evaluate translation --a blob --b noto --model blob-to-noto --grid grid.png --json",
    )

    def run(self, params: Any, progress: Progress) -> Report:
        """Raises InputError, MediaError, ModelError, DeviceError."""
        from genkit.metrics.features import Features
        from genkit.runtime import Runtime
        from pipelines.image_translation.measuring import card as measured
        from pipelines.image_translation.measuring.pictures import split

        runtime = Runtime.pick(device=params.device)
        report = Report()
        features = Features.load(params.features).to(runtime.device)
        there = _translator(params.model, runtime)
        back = _translator(params.back, runtime) if params.back else None
        files = split(params.a, params.b, params.held_out, report.notes.append)
        card = measured.Card.prepare(files, features, params.size, params.limit, progress)
        made = _translated(there, card.inputs, progress, params.model)
        returned = _translated(back, made, progress, params.back) if back else None
        rows = [
            card.row(measured.UNCHANGED, card.inputs),
            card.row(measured.NEAREST, card.nearest()),
            card.row(params.model, made, returned),
            card.true_row(),
        ]
        report.facts = _facts(params, card)
        report.tables = {"translated": rows}
        report.notes += _notes(rows, card)
        if params.grid:
            _save_grid(card.grid(made, returned), params.grid)
        return report


def _translator(ref: str, runtime: Runtime) -> Translator:
    """The pipeline itself, so that what is measured is what people get. Raises ModelError, DeviceError."""
    import torch

    from genkit.media.image import Image
    from pipelines.image_translation.pipeline import ImageTranslation

    pipeline = ImageTranslation.load(ref, runtime)

    def translate(pictures: Tensor) -> Tensor:
        batch = [ImageTranslation.Params(image=Image.from_tensor(picture), seed=0) for picture in pictures]
        return torch.stack([output.images[0].tensor()[:3] for output in pipeline.generate(batch)])

    return translate


def _translated(translate: Translator, pictures: Tensor, progress: Progress, note: str) -> Tensor:
    import torch

    made: list[Tensor] = []
    for part in pictures.split(BATCH):
        made += translate(part)
        progress(len(made), len(pictures), note=note)
    return torch.stack(made)


def _facts(params: Params, card: Card) -> dict[str, Any]:
    return {
        "model": params.model,
        "pictures translated": len(card.inputs),
        "of them with a partner": len(card.places),
        "px": params.size,
        "held out of B": len(card.held_b),
        "learned from of B": len(card.learned_b),
        "features": f"{card.features.name}, {card.learned_b.shape[1]}",
        "accuracy of the judge": card.judge.accuracy(card.held_a, card.held_b),
    }


def _notes(rows: list[dict[str, Any]], card: Card) -> list[str]:
    """What the reader must know, in words."""
    unchanged, model = rows[0]["KID"], rows[2]["KID"]
    notes = (
        [f"KID is {100 * (1 - model / unchanged):.0f} % below that of the unchanged pictures"] if unchanged > 0 else []
    )
    missing = len(card.inputs) - len(card.places)
    if not card.places:
        notes.append("no picture of A has a partner in B with its name: feature distance, L1 and SSIM are left out")
    elif missing:
        notes.append(
            f"{missing} of {len(card.inputs)} pictures have no partner in B with their name; feature distance, "
            "L1 and SSIM are over the others"
        )
    return notes


def _save_grid(grid: Tensor, path: str) -> None:
    from genkit.media.image import Image

    Image.from_tensor(grid).save(Path(path))
