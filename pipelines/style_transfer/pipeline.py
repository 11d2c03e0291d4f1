"""A photo in the manner of a painting: optimised (Gatys), in one pass (Johnson), or any style in one pass (AdaIN).

`method: optimize` paints one picture for a while and looks best; `fast` applies the one style its network has learned;
`adain` takes on any style at once. No torch is imported here; `run` opens the workshop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

import genkit.pipeline
from genkit.errors import InputError
from genkit.fields import Hint, ImageFile, ModelFile, Number, Pixels, Slider, Steps
from genkit.pipeline import Output, Progress
from pipelines.style_transfer.models import FEATURES, MODELS

if TYPE_CHECKING:
    from genkit.runtime import Runtime

__all__ = ["StyleTransfer"]

Method = Literal["optimize", "fast", "adain"]


def _listed(value: Any) -> Any:
    return value if value is None or isinstance(value, list | tuple) else [value]


class Params(genkit.pipeline.Params):
    """What a stylised picture is made from."""

    content: Annotated[ImageFile, Hint(section="main", short="c")] = Field(description="The photo to restyle.")
    style: Annotated[list[ImageFile], BeforeValidator(_listed), Hint(section="main", short="s")] = Field(
        default=[], max_length=16, description="The painting whose manner it takes; several are blended."
    )
    method: Annotated[Method | None, Hint(section="main")] = Field(
        None, description="How: by optimisation, or in one pass by a network. Follows from the model when not given."
    )
    size: Annotated[int | None, Pixels(32, 16384), Hint(section="main")] = Field(
        None, description="Longer side of the result. By default 512 for optimize, the photo's own for fast and adain."
    )
    num_inference_steps: Annotated[int, Steps(1, 10_000), Hint(section="main")] = Field(
        100, description="optimize: steps at each scale, twice as many at the first."
    )
    content_weight: Annotated[float, Number(0, 1000), Hint(section="main")] = Field(
        0.05, description="optimize: how much the photo holds out. 0.01 is mostly paint, 0.2 mostly photo."
    )
    style_weights: Annotated[
        list[Annotated[float, Number(0, 1e6)]] | None, BeforeValidator(_listed), Hint(section="styles")
    ] = Field(None, description="The share of each style in the blend, in the styles' order; equal when not given.")
    style_scale: Annotated[float, Slider(0.1, 4), Hint(section="styles")] = Field(
        1.0, description="Size of the painting beside the result: larger makes larger strokes."
    )
    mask: Annotated[list[ImageFile] | None, BeforeValidator(_listed), Hint(section="styles")] = Field(
        None, description="optimize: one mask for each style, white where in the photo it applies."
    )
    preserve_color: Annotated[Literal["none", "luminance", "coral"], Hint(section="styles")] = Field(
        "none", description="Keep the photo's colours: exactly (luminance), or by recolouring the style first (coral)."
    )
    alpha: Annotated[float, Slider(0, 1), Hint(section="styles")] = Field(
        1.0, description="adain: 0 keeps the photo, 1 takes the style wholly."
    )
    features: Annotated[Literal["small", "squeezenet1_0", "vgg16", "vgg19"] | None, Hint(section="optimisation")] = (
        Field(
            None,
            description="optimize: the network that sees. small ships with genkit; vgg19 is fetched and sees best.",
        )
    )
    features_weights: Annotated[ModelFile | None, Hint(section="optimisation")] = Field(
        None, description="optimize: a file with that network's weights, in torchvision's key names."
    )
    pooling: Annotated[Literal["max", "average", "l2"] | None, Hint(section="optimisation")] = Field(
        None, description="optimize: pooling inside vgg and squeezenet; by default the network's own."
    )
    style_loss: Annotated[Literal["wasserstein", "gram"], Hint(section="optimisation")] = Field(
        "wasserstein",
        description="optimize: what style is. wasserstein compares means and covariances, gram is Gatys's.",
    )
    tv_weight: Annotated[float, Number(0, 1000), Hint(section="optimisation")] = Field(
        1.0, description="optimize: smoothness. Higher wipes out grain, then detail."
    )
    optimizer: Annotated[Literal["adam", "lbfgs"], Hint(section="optimisation")] = Field(
        "adam", description="optimize: adam suits most; lbfgs is Gatys's choice."
    )
    learning_rate: Annotated[float, Number(1e-5, 1), Hint(section="optimisation")] = Field(
        0.02, description="optimize: step length of adam, in units of the 0..1 range."
    )
    init: Annotated[Literal["content", "gray", "uniform", "normal", "style"], Hint(section="optimisation")] = Field(
        "content", description="optimize: the picture it begins from."
    )
    min_scale: Annotated[int, Pixels(32, 4096), Hint(section="optimisation")] = Field(
        128, description="optimize: longer side of the smallest scale."
    )
    preview_every: Annotated[int, Steps(1, 10_000), Hint(section="optimisation")] = Field(
        25, description="optimize: how often a preview is offered."
    )
    max_memory: Annotated[int | None, Number(64, 1_000_000, "MB"), Hint(section="optimisation")] = Field(
        None,
        description="optimize: work in tiles so as to stay below this. By default whole, tiled if memory is short.",
    )

    @model_validator(mode="after")
    def _together(self) -> Params:
        if self.style_weights is not None and len(self.style_weights) != len(self.style):
            raise ValueError(
                f"style_weights has {len(self.style_weights)} numbers for {len(self.style)} styles; give one for each"
            )
        if self.style_weights is not None and not sum(self.style_weights) > 0:
            raise ValueError("style_weights are all zero; give at least one style a share")
        if self.mask is not None and len(self.mask) != len(self.style):
            raise ValueError(f"mask has {len(self.mask)} pictures for {len(self.style)} styles; give one for each")
        if self.method is not None:
            self.check_fit(self.method)
        return self

    def check_fit(self, method: Method) -> None:
        """Raises ValueError where a parameter has no meaning in a method, rather than leave it out of account."""
        if method != "fast" and not self.style:
            raise ValueError(f"style is missing: method {method!r} needs a painting")
        if method == "fast" and self.style:
            raise ValueError("style is for methods 'optimize' and 'adain'; a 'fast' network has learned its own")
        if method == "fast" and self.preserve_color == "coral":
            raise ValueError(
                "preserve_color 'coral' recolours the painting, and method 'fast' has none; use 'luminance'"
            )
        if method != "optimize" and self.mask is not None:
            raise ValueError(f"mask is for method 'optimize'; {method!r} has no regions")


Item: TypeAlias = Params  # what `Params` means inside the class, where the name is its own


class StyleTransfer(genkit.pipeline.Pipeline):
    """Style transfer by three methods. See `Params` for what a call takes."""

    name = "style-transfer"
    Params = Params
    produces = "image"
    models = MODELS
    examples: ClassVar[Sequence[str]] = (
        "genkit style-transfer -c photo.jpg -s painting.jpg -o out.png",
        "genkit style-transfer -c photo.jpg -s painting.jpg --size 1024 --preserve-color luminance -o out.png",
        "genkit style-transfer -c photo.jpg --method fast --model starry-night -o out.png",
    )
    trainings: ClassVar[Mapping[str, str]] = {
        "style-adain": "pipelines.style_transfer.train.adain:StyleAdaIN",
        "style-fast": "pipelines.style_transfer.train.fast:StyleFast",
        "style-features": "pipelines.style_transfer.train.features:StyleFeatures",
    }

    def __init__(self, model: str | Path | None, runtime: Runtime) -> None:
        super().__init__(model, runtime)
        from pipelines.style_transfer.workshop import Workshop

        self.workshop = Workshop(model, runtime)

    @classmethod
    def load(cls, model: str | Path | None, runtime: Runtime) -> StyleTransfer:
        """model: a feature network's name (optimize), `starry-night` or a transformation network's file (fast), an
        AdaIN folder or file (adain); None for what ships. Raises ModelError."""
        return cls(model, runtime)

    @classmethod
    def model_refs(cls, model: str | None, params: genkit.pipeline.Params) -> dict[str, str]:
        assert isinstance(params, Params)
        if model is not None and str(model) not in FEATURES:
            return {"model": str(model)}
        if params.method == "fast" and model is None:
            return {"model": "starry-night"}
        return {"features": str(params.features_weights or params.features or model or "small")}

    @classmethod
    def describe_model(cls, path: Path) -> dict[str, Any] | None:
        from pipelines.style_transfer.loading import describe

        return describe(path)

    def run(self, batch: Sequence[Item], progress: Progress) -> list[Output]:
        """One picture for each item, one after the other. Raises InputError where the method does not fit the model."""
        return [self.workshop.make(params, self.method(params), progress) for params in batch]

    def method(self, params: Item) -> Method:
        """The method asked for, or the one that the model is for. Raises InputError."""
        natural = self.workshop.natural_method
        if params.method and natural and params.method != natural:
            raise InputError(
                f"method {params.method!r} does not fit model {str(self.model)!r}, which is for {natural!r}; "
                "leave one out"
            )
        method: Method = params.method or natural or "optimize"
        if method == "adain" and natural is None:
            raise InputError("method 'adain' needs a model: --model FOLDER with decoder.pth and vgg_normalised.pth")
        try:
            params.check_fit(method)
        except ValueError as error:
            raise InputError(str(error)) from None
        named = str(self.model) if self.model is not None and str(self.model) in FEATURES else None
        if named and params.features not in (None, named):
            raise InputError(
                f"features {params.features!r} and model {named!r} both name the feature network; leave one out"
            )
        return method
