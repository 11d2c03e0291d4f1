"""Where the pictures are made: networks are kept here once loaded, and the three methods read encode, work, decode."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genkit import weights
from genkit.errors import GenkitError, InputError
from genkit.media.image import MAX_PIXELS, Image
from genkit.pipeline import Output, Progress
from genkit.runtime import Runtime
from pipelines.style_transfer import color, memory, optimize
from pipelines.style_transfer.loading import StyleModel, feature_network, style_model
from pipelines.style_transfer.models import FEATURES, MODELS
from pipelines.style_transfer.networks.adain import Encoder, adain
from pipelines.style_transfer.networks.features import FeatureNetwork
from pipelines.style_transfer.networks.transformer import TransformerNet

if TYPE_CHECKING:
    from pipelines.style_transfer.pipeline import Method, Params

__all__ = ["Workshop"]

DEFAULT_SIZE = 512  # longer side for `optimize`, px
SMALLEST_STYLE = 8  # shorter side of a painting, px


class Workshop:
    """The loaded networks of one pipeline object. model: as `StyleTransfer.load` takes it. Raises ModelError."""

    def __init__(self, model: str | Path | None, runtime: Runtime) -> None:
        self.runtime = runtime
        self.model = model
        self._features: dict[Any, FeatureNetwork] = {}
        self._one_pass: StyleModel | None = None
        self.natural_method: Method | None = None
        """What the model named is for; None where none was named."""
        if model is not None:
            self.natural_method = "optimize" if str(model) in FEATURES else self._load(model)

    def _load(self, model: str | Path) -> Method:
        found = style_model(weights.locate(model, MODELS))
        if isinstance(found, TransformerNet):
            self._one_pass = self._placed(found)
            return "fast"
        self._one_pass = (self._placed(found[0]), self._placed(found[1]))
        return "adain"

    def _placed(self, network: Any) -> Any:
        return self.runtime.place(network, channels_last=True)

    def features(self, params: Params) -> FeatureNetwork:
        """The feature network for `optimize`, placed; loaded once for each choice."""
        name = params.features or (str(self.model) if self.natural_method == "optimize" else "small")
        key = (name, params.features_weights, params.pooling)
        if key not in self._features:
            network = feature_network(name, MODELS, path=params.features_weights, pooling=params.pooling)
            dtype = self.runtime.relaxed  # statistics are taken in float32 all the same
            self._features[key] = self.runtime.place(network, dtype=dtype, channels_last=True)  # type: ignore[assignment]
        return self._features[key]

    def make(self, params: Params, method: Method, progress: Progress) -> Output:
        """One picture."""
        content = Image.open(params.content).tensor()[None]
        check_size(params, content, method)
        styles = [Image.open(style).tensor()[None] for style in params.style]
        for number, style in enumerate(styles, 1):
            _at_least(style, SMALLEST_STYLE, f"style {number}")
        if params.preserve_color == "coral":
            styles = [color.coral(style, content) for style in styles]
        makers: dict[str, Callable[..., tuple[Tensor, dict[str, Any]]]] = {
            "optimize": self._optimize,
            "fast": self._fast,
            "adain": self._adain,
        }
        picture, info = makers[method](params, content, styles, progress)
        picture = picture.float().cpu()
        if params.preserve_color == "luminance":
            picture = color.keep_luminance(picture, _shaped_like(content, picture))
        if not picture.isfinite().all():
            raise GenkitError("the result is not a picture (NaN): use --dtype float32, or a lower learning rate")
        return Output(images=[Image.from_tensor(picture[0])], info={"method": method, **info})

    def _optimize(
        self, params: Params, content: Tensor, styles: list[Tensor], progress: Progress
    ) -> tuple[Tensor, dict[str, Any]]:
        network = self.features(params)
        size = params.size or DEFAULT_SIZE
        asked = params.max_memory is not None
        bound = params.max_memory * 2**20 if params.max_memory else int(0.6 * self.runtime.free_memory())
        need = memory.Need.of(network, params.optimizer, len(params.mask or ()))
        plan = optimize.Plan(
            size=size,
            steps=params.num_inference_steps,
            smallest=min(params.min_scale, size),
            content_weight=params.content_weight,
            tv_weight=params.tv_weight,
            style_scale=params.style_scale,
            style_loss=params.style_loss,
            optimizer=params.optimizer,
            learning_rate=params.learning_rate,
            init=params.init,
            style_weights=params.style_weights or (),
            tile=lambda height, width: memory.tile_side(network, height, width, bound, need, asked),
        )

        def report(done: int, total: int, losses: Any, picture: Callable[[], Tensor], note: str) -> None:
            shown = done % params.preview_every == 0
            preview = (lambda: Image.from_tensor(picture()[0])) if shown else None
            progress(done, total, preview=preview, note=f"{note}, loss {losses.total:.4f}")

        masks = [_mask(mask, content) for mask in params.mask or ()]
        generator = self.runtime.generator(params.seed or 0)
        with self.runtime.active(), memory.frugal() if params.max_memory else contextlib.nullcontext():
            picture, losses = optimize.transfer(
                network, content, styles, plan, masks=masks, generator=generator, step=report
            )
        return picture, {"losses": {name: round(value, 6) for name, value in vars(losses).items()}}

    def _fast(
        self, params: Params, content: Tensor, styles: list[Tensor], progress: Progress
    ) -> tuple[Tensor, dict[str, Any]]:
        if self._one_pass is None:
            self._load("starry-night")
        network = self._one_pass
        assert isinstance(network, TransformerNet)
        photo = optimize.resize(content, params.size or max(content.shape[-2:]))
        _at_least(photo, TransformerNet.SMALLEST, "the result")
        with self.runtime.inference():
            picture = network(photo.to(self.runtime.device, self.runtime.dtype))
        progress(1, 1)
        return picture, {}

    def _adain(
        self, params: Params, content: Tensor, styles: list[Tensor], progress: Progress
    ) -> tuple[Tensor, dict[str, Any]]:
        assert isinstance(self._one_pass, tuple)
        encode, decode = self._one_pass
        photo = optimize.resize(content, params.size or max(content.shape[-2:]))
        h, w = photo.shape[-2:]
        # A style much larger than the photo would only bring strokes of a scale that the photo cannot show.
        shown = [
            optimize.resize(style, min(round(max(h, w) * params.style_scale), max(style.shape[-2:])))
            for style in styles
        ]
        _at_least(photo, Encoder.SMALLEST, "the result")
        for number, style in enumerate(shown, 1):
            _at_least(style, Encoder.SMALLEST, f"style {number} at this size")
        shares = params.style_weights or [1.0] * len(styles)
        with self.runtime.inference():
            place: dict[str, Any] = {"device": self.runtime.device, "dtype": self.runtime.dtype}
            seen = [(encode(style.to(**place))[-1], share) for style, share in zip(shown, shares, strict=True)]
            target = adain(encode(photo.to(**place))[-1], seen, params.alpha)
            # Ceil-mode pooling rounds sides up to a multiple of 8; what is too much is cut off.
            picture = decode(target)[..., :h, :w].clamp(0, 1)
        progress(1, 1)
        return picture, {}


def check_size(params: Params, content: Tensor, method: str) -> None:
    """Refuses a result beyond the pixel cap before anything is made. Raises InputError."""
    h, w = content.shape[-2:]
    size = params.size or (DEFAULT_SIZE if method == "optimize" else max(h, w))
    scale = size / max(h, w)
    if scale * h * scale * w > MAX_PIXELS:
        raise InputError(
            f"size {size} makes {scale * w:.0f}x{scale * h:.0f} px, over {MAX_PIXELS // 10**6} megapixels; ask for less"
        )
    if min(scale * h, scale * w) < 8:
        raise InputError(
            f"size {size} makes {scale * w:.0f}x{scale * h:.0f} px; the shorter side needs 8: "
            "ask for more, or crop the photo"
        )


def _at_least(picture: Tensor, side: int, what: str) -> None:
    h, w = picture.shape[-2:]
    if min(h, w) < side:
        raise InputError(f"{what} is {w}x{h} px, too small to work on: both sides need {side} px; use a larger picture")


def _mask(source: Any, content: Tensor) -> Tensor:
    """A mask as [1, 1, H, W] in 0..1, at the photo's size. Raises InputError where its shape is another's."""
    mask = color.luminance(Image.open(source).tensor()[None])
    (h, w), (mh, mw) = content.shape[-2:], mask.shape[-2:]
    if abs(mw / mh - w / h) > 0.02 * w / h:
        raise InputError(
            f"mask {str(source)!r} is {mw}x{mh} px, the photo {w}x{h}: give masks of the photo's proportions"
        )
    if not mask.max() > 0:
        raise InputError(f"mask {str(source)!r} is black all over: paint white where its style applies")
    return mask


def _shaped_like(content: Tensor, picture: Tensor) -> Tensor:
    return torch.nn.functional.interpolate(content, picture.shape[-2:], mode="bicubic", antialias=True).clamp(0, 1)
