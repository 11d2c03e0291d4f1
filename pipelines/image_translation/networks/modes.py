"""Layers that work otherwise in training than in use, and the switch to the way published pictures were made.

The authors of pix2pix, CycleGAN and StarGAN tested their networks in train mode, one picture at a time: what was
normalised took the statistics of that picture, and dropout stayed on (pix2pix has no other noise). `as_published` does
the same without touching the running statistics, and picture by picture inside a batch: statistics are each picture's
own, and each draws its dropout from a generator of its own, so that a picture does not depend on its batch. Outside of
it a network in eval mode has no dropout and uses the running statistics (`--eval-norm`).

Legend: B pictures, C channels, H, W px.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["BatchNorm", "Dropout", "InstanceNorm", "as_published", "has_modes"]


class BatchNorm(nn.BatchNorm2d):
    """Batch norm; with `own` set each picture is normalised by itself, as train mode does to a batch of one."""

    own = False

    def forward(self, x: Tensor) -> Tensor:
        return _own(self, x) if self.own else super().forward(x)


class InstanceNorm(nn.InstanceNorm2d):
    """Instance norm with weights and running statistics, which eval mode uses unless `own` is set (StarGAN)."""

    own = False

    def __init__(self, width: int) -> None:
        super().__init__(width, affine=True, track_running_stats=True)

    def forward(self, x: Tensor) -> Tensor:
        return _own(self, x) if self.own else super().forward(x)


def _own(norm: nn.BatchNorm2d | nn.InstanceNorm2d, x: Tensor) -> Tensor:
    return F.instance_norm(x, weight=norm.weight, bias=norm.bias, eps=norm.eps)


class Dropout(nn.Dropout):
    """Dropout; with `generators` set, one for each picture of the batch, it is on and draws from these."""

    generators: Sequence[torch.Generator] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.generators is None:
            return super().forward(x)
        shape = x.shape[1:]
        kept = [torch.empty(shape).bernoulli_(1 - self.p, generator=generator) for generator in self.generators]
        return x * torch.stack(kept).to(x) / (1 - self.p)


@contextmanager
def as_published(network: nn.Module, generators: Sequence[torch.Generator] | None) -> Iterator[None]:
    """Inside, a network in eval mode works as its authors tested it; see the module's docstring.

    generators: one for each picture of the batches, on the CPU; tiles of a picture go on drawing from its generator.
    None leaves dropout off.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, BatchNorm | InstanceNorm | Dropout)]
    try:
        for layer in layers:
            if isinstance(layer, Dropout):
                layer.generators = generators
            else:
                layer.own = True
        yield
    finally:
        for layer in layers:
            if isinstance(layer, Dropout):
                layer.generators = None
            else:
                layer.own = False


def has_modes(network: nn.Module) -> bool:
    """Whether `as_published` changes anything: whether there is batch norm, dropout or a running statistic."""
    return any(isinstance(layer, BatchNorm | InstanceNorm | Dropout) for layer in network.modules())
