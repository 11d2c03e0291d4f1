"""A picture brought to a size that a network takes, and back. Legend: C channels, H, W px."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from genkit.errors import InputError
from genkit.media.image import MAX_PIXELS
from pipelines.image_translation.regions import reflected

__all__ = ["cropped", "padded", "resized"]


def padded(picture: Tensor, multiple: int, smallest: int) -> Tensor:
    """[C, H, W] -> both sides the next multiple, at least `smallest`, by reflection: half before, half behind."""
    for axis in (1, 2):
        n = picture.shape[axis]
        side = -(-max(n, smallest) // multiple) * multiple
        if side > n:
            before = (side - n) // 2
            picture = picture.index_select(axis, reflected(-before, side - before, n))
    return picture


def cropped(picture: Tensor, height: int, width: int) -> Tensor:
    """The middle that `padded` was put around."""
    top, left = (picture.shape[1] - height) // 2, (picture.shape[2] - width) // 2
    return picture[:, top : top + height, left : left + width]


def resized(picture: Tensor, longer: int) -> Tensor:
    """[C, H, W] with its longer side at so many px. Raises InputError where that is beyond the pixel cap."""
    h, w = picture.shape[1:]
    height, width = (max(1, round(side * longer / max(h, w))) for side in (h, w))
    if height * width > MAX_PIXELS:
        raise InputError(
            f"size {longer} makes {width}x{height} px, over {MAX_PIXELS // 10**6} megapixels; ask for less"
        )
    return F.interpolate(picture[None], (height, width), mode="bicubic", antialias=True)[0].clamp(0, 1)
