"""Pictures that continue themselves at their borders: every convolution sees the opposite border beyond its own.

Choices made here:
- Only what pads is changed: each convolution of denoiser and autoencoder wraps around along the axes asked for and
  keeps its zeros along the other. Attention, norms and upscaling see no border anyway. So a network rolls with its
  input: rolled noise gives the rolled picture.
- The encoder's halving convolutions, which diffusers pads by hand at the right and below, wrap there too.
- Tiled decoding has borders of its own and is off meanwhile.
- Transformers (SD 3, Flux) number the places of a picture, so there is nothing to wrap: they are refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from genkit.errors import InputError
from pipelines.stable_diffusion.families import FAMILIES

if TYPE_CHECKING:
    from pipelines.stable_diffusion.loading import Model

__all__ = ["circular", "wrapped"]

AXES = {"x": (True, False), "y": (False, True), "both": (True, True)}


@contextlib.contextmanager
def circular(model: Model, axes: str | None, more: Sequence[nn.Module] = ()) -> Iterator[None]:
    """While it lasts the model makes seamless pictures along "x", "y" or "both" (None: as it is).

    more: further networks, such as a ControlNet. Raises InputError for a model that cannot.
    """
    if axes is None:
        yield
        return
    unet = getattr(model.pipe, "unet", None)
    if unet is None:
        raise InputError(
            f"seamless works with Stable Diffusion 1, 2 and XL, not with {FAMILIES[model.family].words}: leave it "
            "out, or name another model"
        )
    vae = model.pipe.vae
    tiled = vae.use_tiling
    try:
        vae.use_tiling = False
        with wrapped([unet, vae, *more], axes):
            yield
    finally:
        vae.use_tiling = tiled


@contextlib.contextmanager
def wrapped(networks: Sequence[nn.Module], axes: str) -> Iterator[None]:
    """While it lasts every convolution of the networks wraps around; undone afterwards, whatever happens."""
    from diffusers.models.downsampling import Downsample2D

    with contextlib.ExitStack() as undo:
        for network in networks:
            by_hand = {id(m.conv) for m in network.modules() if isinstance(m, Downsample2D) and m.padding == 0}
            for layer in network.modules():
                if isinstance(layer, nn.Conv2d) and (any(_padding(layer)) or id(layer) in by_hand):
                    # A method of the class, covered by one of the object's own for a while.
                    layer._conv_forward = _wrapping(layer, *AXES[axes], by_hand=id(layer) in by_hand)  # type: ignore[method-assign]
                    undo.callback(delattr, layer, "_conv_forward")
        yield


def _padding(layer: nn.Conv2d) -> tuple[int, int]:
    """Rows and columns beyond each border."""
    return (0, 0) if isinstance(layer.padding, str) else (layer.padding[0], layer.padding[1])


def _wrapping(layer: nn.Conv2d, x: bool, y: bool, *, by_hand: bool) -> Callable[..., Tensor]:
    rows, columns = _padding(layer)

    def forward(value: Tensor, weight: Tensor, bias: Any) -> Tensor:
        if by_hand:  # one row and one column of zeros were added before
            value = _closed(value, x, y)
        value = F.pad(value, (columns, columns, 0, 0), mode="circular" if x and columns else "constant")
        value = F.pad(value, (0, 0, rows, rows), mode="circular" if y and rows else "constant")
        return F.conv2d(value, weight, bias, layer.stride, 0, layer.dilation, layer.groups)

    return forward


def _closed(value: Tensor, x: bool, y: bool) -> Tensor:
    """[B, C, H + 1, W + 1] with its last column, and last row, as the first ones instead of zeros."""
    value = value.clone()
    if x:
        value[..., -1] = value[..., 0]
    if y:
        value[..., -1, :] = value[..., 0, :]
    return value
