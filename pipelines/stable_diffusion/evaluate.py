"""How well a model draws what it is asked for: pictures made from captions, found again among the true ones.

`text-to-image` of `genkit evaluate`, what the card of `emoji` is measured with. Beside the model stand what its VAE
makes of the true pictures, which it cannot do better than; the same thing by another hand; and, as a floor, pictures
that were made from other captions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from genkit.evaluation import Evaluation, Place, Report
from genkit.fields import Hint, Pixels, Seed, Slider, Steps
from genkit.pipeline import Closed, Progress

if TYPE_CHECKING:
    from torch import Tensor

    from genkit.metrics.features import Features
    from pipelines.stable_diffusion.choosing import Judge
    from pipelines.stable_diffusion.pipeline import StableDiffusion
    from pipelines.stable_diffusion.train.captioned import Pair

__all__ = ["TextToImageEvaluation"]

BATCH = 16
COLUMNS, SHOWN = 10, 20


class Params(Closed):
    """What is drawn, by what, and how it is looked at."""

    data: list[Place] = Field(
        min_length=1, description="Folders of pictures with a metadata.jsonl of captions: the training's, all of them."
    )
    caption: str = Field(
        "{text}", max_length=500, description="The training's template of captions: {text}, and {folder}."
    )
    model: Annotated[str, Hint(kind="model", short="m")] = Field(
        "emoji", description="The model that draws: an alias, a hub id, a folder or a file."
    )
    held_out: int = Field(
        100,
        ge=2,
        le=10**6,
        description="Measure on what such a training did not see, and on as many that it saw.",
    )
    limit: int | None = Field(None, ge=2, description="Draw only so many of each; they are looked for among all.")
    num_inference_steps: Annotated[int | None, Steps(1, 1000)] = Field(None, description="By default the model's own.")
    guidance_scale: Annotated[float | None, Slider(0, 50)] = Field(None, description="By default the model's own.")
    scheduler: str | None = Field(None, max_length=60, description="By default the model's own.")
    seed: Seed = Field(0, description="Of the first picture; the next ones count up.")
    size: Annotated[int, Pixels(32, 1024)] = Field(
        128, multiple_of=8, description="Side that all pictures are brought to."
    )
    features: Annotated[str, Hint(kind="model")] = Field(
        "torchvision:squeezenet1_0",
        description="The feature network: torchvision:squeezenet1_0 (fetched where it is not here) or a file of it.",
    )
    grid: str | None = Field(None, description="Write the first pictures, true above made: grid.png and grid-seen.png.")
    device: str | None = Field(None, description="cpu, cuda, cuda:1, mps or xpu; by default the best there is.")


class TextToImageEvaluation(Evaluation):
    """How well a model draws what its captions ask for, on pairs that its training held out and on as many it saw.

    One picture is made from each caption and looked for among the true pictures, by the features of the network that is
    named: the share whose own true picture is most like it (top-1) and among the five most like it (top-5), with
    standard errors. Of every name only one hand's picture is in that gallery; `right hand` is the share of pictures
    that are more like it than like the other hand's of the same name (by chance a half). Where the model brings an
    image encoder of its own, `caption top-1` and `top-5` say how often that finds the caption of a picture among all
    captions; it saw the seen pairs, and the model's text encoder was trained with it.
    """

    Params: ClassVar[type[Closed]] = Params
    examples = (
        'genkit evaluate text-to-image --data noto --data blob --caption "{text}, {folder} style"',
        "genkit evaluate text-to-image --data pictures --model FOLDER --limit 25 --num-inference-steps 20 --json",
    )

    def run(self, params: Any, progress: Progress) -> Report:
        """Raises InputError, MediaError, ModelError, DeviceError."""
        from genkit.metrics.features import Features
        from genkit.runtime import Runtime
        from pipelines.stable_diffusion.measuring.gallery import Gallery
        from pipelines.stable_diffusion.pipeline import StableDiffusion

        report = Report()
        runtime = Runtime.pick(device=params.device)
        held, seen, partners = _pairs(params, report.notes.append)
        features = Features.load(params.features).to(runtime.device)
        pipeline = StableDiffusion.load(params.model, runtime)
        judge = _judge(pipeline, report.notes.append)
        rows: list[dict[str, Any]] = []
        for name, pairs in (("held out", held), ("seen", seen)):
            gallery = Gallery.of(name, pairs, partners, params.size, features, judge)
            asked = pairs[: params.limit]
            made = _made(pipeline, asked, params, progress, name)
            rows += gallery.rows(made, _there_and_back(pipeline, gallery.true[: len(asked)]))
            if params.grid:
                path = Path(params.grid)
                _save_grid(gallery.true, made, path if name == "held out" else path.with_stem(f"{path.stem}-seen"))
        report.facts = _facts(params, held, seen, features)
        report.tables = {"found again": rows}
        return report


def _pairs(params: Params, say: Callable[[str], None]) -> tuple[list[Pair], list[Pair], dict[Path, Path]]:
    """Pairs held out, as many that were not, and the same picture by another hand, by file."""
    import torch

    from genkit.errors import InputError
    from genkit.training.task import Setup
    from pipelines.stable_diffusion.train.captioned import CaptionedConfig, find_pairs, held_pairs

    config = CaptionedConfig.parse({"data": [str(folder) for folder in params.data], "caption": params.caption})
    pairs = find_pairs(config, Setup(torch.device("cpu"), say=say))
    chosen = held_pairs(pairs, 2 * params.held_out)
    held, seen = chosen[: params.held_out], chosen[params.held_out :]
    if min(len(held), len(seen)) < 2:
        raise InputError(
            f"{len(chosen)} pictures can be held out, {len(held)} are and {len(seen)} are left; lower --held-out"
        )
    others: dict[str, list[Path]] = {}
    for pair in pairs:
        others.setdefault(pair.path.name, []).append(pair.path)
    partners = {pair.path: [p for p in others[pair.path.name] if p != pair.path] for pair in chosen}
    return held, seen, {path: found[0] for path, found in partners.items() if found}


def _judge(pipeline: StableDiffusion, say: Callable[[str], None]) -> Judge | None:
    from genkit.errors import InputError
    from pipelines.stable_diffusion.choosing import Judge

    try:
        return Judge.of(pipeline.painter.model, None)
    except InputError:
        say("the model has no image encoder of its own: no second judge")
        return None


def _made(pipeline: StableDiffusion, pairs: Sequence[Pair], params: Params, progress: Progress, note: str) -> Tensor:
    """One picture from each caption, by the pipeline itself, so that what is measured is what people get."""
    import torch
    import torch.nn.functional as F

    asked: dict[str, Any] = params.model_dump(include={"num_inference_steps", "guidance_scale", "scheduler"})
    requests = [
        pipeline.Params(prompt=pair.caption, seed=(params.seed or 0) + i, **asked) for i, pair in enumerate(pairs)
    ]
    made: list[Tensor] = []
    for start in range(0, len(requests), BATCH):
        for output in pipeline.generate(requests[start : start + BATCH]):
            picture = output.images[0].tensor()[None, :3]
            if picture.shape[2:] != (params.size, params.size):
                picture = F.interpolate(picture, (params.size, params.size), mode="bicubic", antialias=True)
            made.append(picture.clamp(0, 1))
        progress(len(made), len(requests), note=note)
    return torch.cat(made)


def _there_and_back(pipeline: StableDiffusion, pictures: Tensor) -> Tensor:
    """What the model's VAE keeps of pictures, [B, 3, S, S] in 0..1."""
    import torch

    vae = pipeline.painter.model.pipe.vae
    found = []
    with torch.no_grad():
        for part in pictures.split(BATCH):
            x = (2 * part - 1).to(vae.device, vae.dtype)
            found.append(vae.decode(vae.encode(x).latent_dist.mode()).sample.float().cpu())
    return (torch.cat(found) / 2 + 0.5).clamp(0, 1)


def _facts(params: Params, held: Sequence[Pair], seen: Sequence[Pair], features: Features) -> dict[str, Any]:
    return {
        "model": params.model,
        "pairs held out": len(held),
        "pairs seen": len(seen),
        "px": params.size,
        "steps": params.num_inference_steps or "the model's own",
        "guidance": params.guidance_scale if params.guidance_scale is not None else "the model's own",
        "seed": params.seed,
        "features": features.name,
        "by chance top-1": 1 / len(held),
        "by chance top-5": min(1.0, 5 / len(held)),
    }


def _save_grid(true: Tensor, made: Tensor, path: Path) -> None:
    """Rows of true pictures, each above a row of what was made from their captions."""
    from genkit.media.image import Image
    from pipelines.stable_diffusion.train.captioned import in_rows

    count = min(SHOWN, len(made))
    count -= count % COLUMNS if count > COLUMNS else 0
    both = (true[:count], made[:count])
    lines = [pictures[start : start + COLUMNS] for start in range(0, count, COLUMNS) for pictures in both]
    Image.from_tensor(in_rows(*lines)).save(path)
