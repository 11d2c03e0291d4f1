"""How much memory a step of `optimize` takes, and the tile that keeps it under a bound.

Three things grow with the picture: what lies there all the time (the canvas, the photo's features, the masks), what
autograd keeps of a tile for the way back, and what the widest layer needs while it is at work. The second is counted
by autograd's own hooks on a small picture, the third is a multiple of that layer's output.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genkit.errors import InputError, OutOfMemory
from pipelines.style_transfer.losses import Sums
from pipelines.style_transfer.networks.features import FeatureNetwork

__all__ = ["Need", "frugal", "tile_side"]

CANVAS = {"adam": 11, "lbfgs": 32}
"""Full-size float32 pictures: iterate, photo, gradient and what is added to it, moments, average, a step; L-BFGS's
history."""
WORK = (5.5, 7.0)
"""At work a layer takes so many copies of its output in the network's dtype, and so many bytes an element besides
(float32 copies for the statistics). Fitted to the peaks of small, squeezenet1_0, vgg16 and vgg19 in float32 and
bfloat16."""
HEAP = 1.25
"""Memory taken beside memory used: blocks of all sizes come and go, and the allocator is left with gaps."""
RESERVE = 48 << 20
"""Bytes that a run takes whatever its size: compiled kernels, threads, and small blocks that the heap keeps."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
PROBE = 64  # side of the small picture, px


@dataclass(frozen=True)
class Need:
    """Bytes for each pixel: of the whole picture (`always`), and of the part in work (`work`)."""

    always: float
    work: float

    @classmethod
    def of(cls, network: FeatureNetwork, optimizer: str, regions: int = 0) -> Need:
        """What optimising a picture on this network needs; regions: how many masks there are."""
        with torch.no_grad():
            widest, found = _widest(network)
        targets = sum(_bytes(found[name]) for name in network.defaults.content)
        masks = regions * 4 * 1.5  # and halved, quartered, ... beside it
        element = next(network.parameters()).element_size()
        work = _kept(network) + widest * (WORK[0] * element + WORK[1])
        return cls(3 * 4 * CANVAS[optimizer] + targets / PROBE**2 + masks, HEAP * work / PROBE**2)


def tile_side(
    network: FeatureNetwork, height: int, width: int, bound: int, need: Need, asked: bool = True
) -> int | None:
    """The side of the largest tile, px, whose work stays under `bound` bytes; None where the whole picture does.

    Raises InputError where not even a small tile does, OutOfMemory where it was not a person who asked for this bound.
    """
    there = RESERVE + need.always * height * width
    rest = bound - there
    if need.work * height * width <= rest:
        return None
    side = math.isqrt(max(0, int(rest / need.work))) - 2 * network.margin
    smallest = 4 * network.stride
    if side < smallest:
        least = there + need.work * (2 * network.margin + smallest) ** 2
        words = f"{width}x{height} px needs {math.ceil(least / 2**20)} MB even in the smallest tiles, more than "
        if asked:
            raise InputError(f"{words}{bound / 2**20:.0f} MB: raise max_memory or lower size")
        raise OutOfMemory(f"{words}the {bound / 2**20:.0f} MB that there are for it: lower size")
    return side // network.stride * network.stride


@contextlib.contextmanager
def frugal() -> Iterator[None]:
    """While this is open, blocks of 4 MB and more go back to the system when they are freed.

    By itself glibc keeps whatever is smaller than the largest block it has seen freed (up to 32 MB), and what a run
    uses (200 MB for 1400 px in small tiles) is less than half of what it holds (470 MB). This way it holds 300 MB, for
    up to a third more time. The setting is the process's own; afterwards it is what glibc comes to by itself. Elsewhere
    than on Linux with glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        yield
        return
    mallopt(M_TRIM_THRESHOLD, 64 << 20)
    mallopt(M_MMAP_THRESHOLD, 4 << 20)
    try:
        yield
    finally:
        mallopt(M_MMAP_THRESHOLD, 32 << 20)


def _probe(network: FeatureNetwork) -> Tensor:
    return torch.zeros(1, 3, PROBE, PROBE, device=next(network.parameters()).device)


def _widest(network: FeatureNetwork) -> tuple[int, dict[str, Tensor]]:
    """Elements of the largest output of any layer, and the default taps."""
    sizes = [0]

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel())

    hooks = [module.register_forward_hook(note) for module in network.modules()]
    try:
        found = network(_probe(network), [*network.defaults.style, *network.defaults.content])
    finally:
        for hook in hooks:
            hook.remove()
    return max(sizes), found


def _kept(network: FeatureNetwork) -> int:
    """Bytes that autograd holds between the way there and the way back."""
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = network(_probe(network).requires_grad_(), [*network.defaults.style, *network.defaults.content])
        sums = [Sums.of(found[name]) for name in network.defaults.style]
    del sums  # alive until here, so that no storage was given out twice
    return sum(seen.values())


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
