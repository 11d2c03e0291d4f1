"""What a picture is begun from: pictures and masks read, margins added, brought to what a model can work on; and back.

Choices made here:
- A picture keeps its size: where a model works in steps of 8 px (or 16) its right and lower edges are continued, and
  what was added is cut off again. Only a stated `width` or `height` resizes it; of one alone the other follows from the
  picture's proportions.
- White in a mask is made, black is kept. What is kept is put back at the end, so that its pixels are exactly those that
  were there; the seam lies inside the white part, where new and old are mixed over a few pixels.
- Margins of outpainting are filled with the colours of the edge, which a `strength` below 1 begins from.
- Transparency is laid on white, in a mask on black. A picture of 16 bits that is only partly made anew keeps them.

H, W: height and width in pixels of the canvas, which a model works on; h, w: of the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genkit.errors import InputError
from genkit.media import _pictures
from genkit.media.image import Image

if TYPE_CHECKING:
    from pipelines.stable_diffusion.pipeline import Params

__all__ = ["Scene", "check", "enlarged", "finish", "read", "up"]

SEAM = 128
"""The seam's width is the shorter side over this."""


@dataclass(frozen=True)
class Scene:
    """A picture to begin from, as a model takes it."""

    picture: Tensor
    """[3, H, W] in 0..1, margins and continued edges included."""
    mask: Tensor | None
    """[1, H, W] in 0..1, 1 where it is made anew."""
    size: tuple[int, int]
    """w, h of the result."""
    deep: bool
    """Whether it was read from 16 bits."""
    notes: tuple[str, ...] = ()

    @property
    def canvas(self) -> tuple[int, int]:
        """W, H."""
        return self.picture.shape[2], self.picture.shape[1]


def read(params: Params, multiple: int) -> Scene | None:
    """The picture of a request on a canvas whose sides are multiples of `multiple`; None for a request without one.

    Raises MediaError, InputError.
    """
    if params.image is None:
        return None
    source = Image.open(params.image)
    picture, notes = source.tensor(), []
    mask = _mask(params.mask_image, source) if params.mask_image is not None else None
    if source.alpha is not None and np.asarray(source.alpha).min() < 255:
        notes.append("the transparent parts of image were laid on white")
    size = _stated(params, picture.shape[2], picture.shape[1], multiple)
    left, top, right, bottom = params.margins
    check(size[0] + left + right, size[1] + top + bottom)
    if size != source.size:
        notes.append(f"image was resized from {source.size[0]}x{source.size[1]} to {size[0]}x{size[1]} px")
        picture = _resized(picture, size)
        mask = None if mask is None else _resized(mask, size)
    if params.expand is not None:
        picture, mask = _expanded(picture, mask, params.margins)
    h, w = picture.shape[1:]
    more = (0, up(w, multiple) - w, 0, up(h, multiple) - h)
    picture = F.pad(picture[None], more, mode="replicate")[0]
    mask = None if mask is None else F.pad(mask[None], more, mode="replicate")[0]
    deep = source.deep is not None and source.deep.dtype == np.uint16
    return Scene(picture, mask, (w, h), deep, tuple(notes))


def check(width: int, height: int) -> None:
    """Raises MediaError for a result beyond what genkit reads and makes, before any memory is taken for it."""
    _pictures.check_size(width, height, limit=_pictures.limit(None), name="the result")


def up(length: int, multiple: int) -> int:
    """The multiple that is not below a length."""
    return -(-length // multiple) * multiple


def _mask(value: Any, source: Image) -> Tensor:
    """[1, h, w] in 0..1. Raises InputError for a mask of another size, or one that leaves nothing to do."""
    image = Image.open(value, background="black")
    if image.size != source.size:
        raise InputError(
            f"mask_image has {image.size[0]}x{image.size[1]} px and image {source.size[0]}x{source.size[1]}: "
            "give a mask of the picture's size"
        )
    mask = torch.from_numpy(np.array(image.pil.convert("L"), np.float32) / np.float32(255))[None]
    if not (mask >= 0.5).any():
        raise InputError("mask_image is black everywhere, which leaves nothing to make: paint white what is to be made")
    return mask


def _stated(params: Params, width: int, height: int, multiple: int) -> tuple[int, int]:
    """The size that a request asks for; what it leaves out follows from the picture."""
    if params.width is None and params.height is None:
        return width, height
    if params.width is None:
        assert params.height is not None
        return max(multiple, round(width * params.height / height / multiple) * multiple), params.height
    if params.height is None:
        return params.width, max(multiple, round(height * params.width / width / multiple) * multiple)
    return params.width, params.height


def _resized(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """[C, h, w] -> [C, size], antialiased, in 0..1."""
    bigger = F.interpolate(picture[None], (size[1], size[0]), mode="bicubic", antialias=True, align_corners=False)
    return bigger[0].clamp(0, 1)


def _expanded(picture: Tensor, mask: Tensor | None, margins: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    """With margins (left, top, right, bottom) in the colours of the edge, and a mask that is white there."""
    left, top, right, bottom = margins
    sides = (left, right, top, bottom)
    mask = picture.new_zeros(1, *picture.shape[1:]) if mask is None else mask
    return F.pad(picture[None], sides, mode="replicate")[0], F.pad(mask, sides, value=1.0)


def enlarged(pictures: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Pictures [3, h, w] -> [B, 3, H, W], `size` being W, H: what a high-resolution fix refines."""
    return torch.stack([_resized(picture, size) for picture in pictures])


def finish(picture: Tensor, scene: Scene | None) -> Image:
    """A made picture [3, H, W] in 0..1 as it is handed over: cut to its size, and what was to be kept put back."""
    if scene is None:
        return Image.from_tensor(picture)
    factor = picture.shape[2] / scene.canvas[0], picture.shape[1] / scene.canvas[1]  # over 1 after a second pass
    w, h = round(scene.size[0] * factor[0]), round(scene.size[1] * factor[1])
    if scene.mask is None:
        return Image.from_tensor(picture[:, :h, :w])
    share = _seam(scene.mask[:, :h, :w])
    mixed = share * picture[:, :h, :w] + (1 - share) * scene.picture[:, :h, :w]
    image = Image.from_tensor(mixed)
    if not scene.deep:
        return image
    assert image.deep is not None
    return Image.open(np.rint(image.deep * np.float32(65535)).astype(np.uint16))


def _seam(mask: Tensor) -> Tensor:
    """[1, h, w] -> how much of the new picture is taken: nothing outside the mask, all of it a few pixels inside."""
    steps = max(1, min(mask.shape[1:]) // SEAM)
    worn = [-F.max_pool2d(-mask[None], 2 * k + 1, stride=1, padding=k)[0] for k in range(steps + 1)]
    return torch.stack(worn).mean(0)
