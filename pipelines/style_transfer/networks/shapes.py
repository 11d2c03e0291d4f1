"""Widths read off a checkpoint's tensors, which may be anything."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from genkit.errors import ModelError

__all__ = ["conv_widths"]


def conv_widths(tensors: Mapping[str, Tensor], key: str) -> tuple[int, int]:
    """Output and input channels of the convolution whose weight [out, in, h, w] has this key. Raises ModelError."""
    shape = list(tensors[key].shape) if key in tensors else None
    if shape is None or len(shape) != 4 or 0 in shape:
        found = "is missing" if shape is None else f"has the shape {shape}"
        raise ModelError(f"tensor {key!r} {found}, where a convolution's weight belongs; get the model again")
    return shape[0], shape[1]
