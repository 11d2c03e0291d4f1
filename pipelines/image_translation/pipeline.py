"""One look into another, by CycleGAN, pix2pix, CUT or StarGAN.

Pictures of any size, in tiles where they are beyond memory; the checkpoints that there are of these networks load as
they are. No torch is imported here; `run` opens the translator.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field

import genkit.pipeline
from genkit.fields import Hint, ImageFile, Number, Pixels
from genkit.pipeline import Output, Progress
from pipelines.image_translation.models import DEFAULT, MODELS

if TYPE_CHECKING:
    from genkit.runtime import Runtime

__all__ = ["ImageTranslation"]


def _listed(value: Any) -> Any:
    return value if value is None or isinstance(value, list | tuple) else [value]


def _colour(value: str) -> str:
    from PIL import ImageColor

    try:
        ImageColor.getrgb(value)
    except ValueError:
        raise ValueError("give a colour by its name or as '#rrggbb'") from None
    return value


class Params(genkit.pipeline.Params):
    """What a picture is translated by."""

    image: Annotated[ImageFile, Hint(section="main", short="i")] = Field(description="The picture to translate.")
    size: Annotated[int | None, Pixels(1, 16384), Hint(section="main")] = Field(
        None, description="Longer side that the picture is brought to first. By default it stays as it is."
    )
    domain: Annotated[
        list[Annotated[float, Number(-1000, 1000)]] | None, BeforeValidator(_listed), Hint(section="main")
    ] = Field(
        None,
        max_length=1000,
        description="StarGAN: the look wanted. One number is its place, from 0; or a value for each of the model's "
        "labels.",
    )
    background: Annotated[str, AfterValidator(_colour), Hint(section="main")] = Field(
        "white",
        max_length=40,
        description="Colour that the network sees under transparent parts; the transparency itself is kept.",
    )
    eval_norm: Annotated[bool, Hint(section="main")] = Field(
        False,
        description="Use the running statistics and no dropout, instead of the picture's own statistics and seeded "
        "dropout as pix2pix and StarGAN were tested.",
    )
    tile: Annotated[int | None, Pixels(64, 16384), Hint(section="main")] = Field(
        None,
        description="Work in tiles of this side, with the same result. By default in one piece, in tiles where memory "
        "is short.",
    )


Item: TypeAlias = Params  # what `Params` means inside the class, where the name is its own


class ImageTranslation(genkit.pipeline.Pipeline):
    """Image translation. See `Params` for what a call takes."""

    name = "image-translation"
    Params = Params
    produces = "image"
    models = MODELS
    default_model = DEFAULT
    examples: ClassVar[Sequence[str]] = (
        "genkit image-translation --image noto.png --model noto-to-blob -o blob.png",
        "genkit image-translation -i horse.jpg --model checkpoints/horse2zebra/latest_net_G.pth -o zebra.png",
        "genkit image-translation -i huge.tif --model latest_net_G_A.pth --tile 1024 -o huge-translated.tif",
        "genkit image-translation -i face.jpg --model 200000-G.ckpt --domain 2 -o face-2.png",
    )
    exports: ClassVar[Mapping[str, str]] = {"onnx": "pipelines.image_translation.export:graph"}
    trainings: ClassVar[Mapping[str, str]] = {
        "cut": "pipelines.image_translation.train.cut:CUT",
        "cyclegan": "pipelines.image_translation.train.cyclegan:CycleGAN",
        "pix2pix": "pipelines.image_translation.train.pix2pix:Pix2Pix",
    }
    evaluations: ClassVar[Mapping[str, str]] = {
        "translation": "pipelines.image_translation.evaluate:TranslationEvaluation"
    }

    def __init__(self, model: str | Path | None, runtime: Runtime) -> None:
        super().__init__(model, runtime)
        from pipelines.image_translation.translating import Translator

        self.translator = Translator(model or DEFAULT, runtime)

    @classmethod
    def load(cls, model: str | Path | None, runtime: Runtime) -> ImageTranslation:
        """model: `noto-to-blob` or `blob-to-noto`, a file that `genkit train` exported, or a generator of CycleGAN,
        pix2pix, CUT or StarGAN (file, or folder that holds one); None for the default. Raises ModelError."""
        return cls(model, runtime)

    @classmethod
    def batch_key(cls, params: Any) -> Hashable:
        """Pictures that are treated alike may go together; those of one size run at once where that pays."""
        return cls.name, params.eval_norm, params.tile

    @classmethod
    def describe_model(cls, path: Path) -> dict[str, Any] | None:
        from pipelines.image_translation.loading import describe

        return describe(path)

    def run(self, batch: Sequence[Item], progress: Progress) -> list[Output]:
        """One picture for each item. Progress counts tiles where a picture goes alone, else pictures."""
        return self.translator.make(batch, progress)
