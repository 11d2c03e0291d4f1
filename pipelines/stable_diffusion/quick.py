"""Layers of a network in forms that a CPU is quicker at, for inference.

- oneDNN has a layout of its own for weights, which PyTorch brings them into at every call. A layer here does so once
  and keeps them: of little use for large pictures, and a third of the time where weights outnumber pixels, as in the
  middle of a U-Net.
- Group norm in bfloat16 with channels side by side is slow where groups are narrow: it is done in float32.

A layer stays what it is, with the same weights under the same names: only its class is another, so whatever looks for
convolutions (LoRA, seamless tiling) finds them. Where the quick form is not for it, with gradients, on another device
or in a traced graph, it does what its class did. Weights that were changed are packed anew, unless they were changed
behind torch's back, through `.data`.

The operations are those that torch.compile uses on a CPU; a torch without them has plain layers. Results differ by
rounding, so that the exact mode has none of this.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["NARROW", "Convolution", "Linear", "Norm", "quicken"]

NARROW = 16
"""Channels of a group, below which PyTorch's group norm in bfloat16 does them one by one."""


def quicken(network: nn.Module) -> nn.Module:
    """Gives a network that is on the CPU quick layers, in place, and returns it. Weights take twice the memory once it
    has run."""
    if not available():
        return network
    for layer in network.modules():
        quick = {nn.Conv2d: Convolution, nn.Linear: Linear, nn.GroupNorm: Norm}.get(type(layer))
        if quick is not None:
            layer.__class__ = quick
    return network


def available() -> bool:
    """Whether this torch has the operations."""
    wanted = ("_convolution_pointwise", "_linear_pointwise", "_reorder_linear_weight")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in wanted)


class Packed:
    """Weights in oneDNN's layout, and what they were packed from. A copy of a layer packs its own."""

    def __init__(self) -> None:
        self.source: tuple[Any, ...] = ()
        self.weight: Tensor | None = None

    def __deepcopy__(self, memo: Any) -> Packed:
        return Packed()

    def __reduce__(self) -> Any:
        return Packed, ()

    @staticmethod
    def serves(x: Tensor, weight: Tensor) -> bool:
        """Whether a call can be done in the quick form."""
        return not (
            torch.is_grad_enabled()
            or weight.device.type != "cpu"
            or x.dtype != weight.dtype
            or weight.is_inference()  # has no count of its changes
            or torch.jit.is_tracing()
        )

    def fresh(self, weight: Tensor) -> bool:
        """Whether it still is that weight; if not it is noted, to be packed."""
        source = (weight.data_ptr(), weight._version, weight.dtype)
        if source == self.source:
            return True
        self.source = source
        return False


class Convolution(nn.Conv2d):
    """[B, C, H, W] -> [B, O, H', W'] with zeros beyond the borders."""

    packed: Packed | None = None

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode != "zeros" or isinstance(self.padding, str) or not Packed.serves(x, weight):
            return super()._conv_forward(x, weight, bias)
        place = [list(side) for side in (self.padding, self.stride, self.dilation)]
        packed = self.packed = self.packed or Packed()
        if not packed.fresh(weight):
            dense = weight.detach().contiguous().to_mkldnn()
            packed.weight = torch.ops.aten.mkldnn_reorder_conv2d_weight(dense, *place, self.groups, list(x.shape))
        return torch.ops.mkldnn._convolution_pointwise(x, packed.weight, bias, *place, self.groups, "none", [], "")


class Linear(nn.Linear):
    """[..., C] -> [..., O]."""

    packed: Packed | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not x.numel() or not Packed.serves(x, self.weight):
            return super().forward(x)
        packed = self.packed = self.packed or Packed()
        if not packed.fresh(self.weight):
            packed.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), None)
        return torch.ops.mkldnn._linear_pointwise(x, packed.weight, self.bias, "none", [], "")


class Norm(nn.GroupNorm):
    """[B, C, ...] -> the same."""

    def forward(self, x: Tensor) -> Tensor:
        narrow = self.num_channels < NARROW * self.num_groups
        if x.dtype != torch.bfloat16 or not narrow or x.device.type != "cpu" or x.is_contiguous():
            return super().forward(x)
        weight, bias = (None if value is None else value.float() for value in (self.weight, self.bias))
        return F.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)
