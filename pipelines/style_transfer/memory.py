"""How much memory a step of `optimize` takes, and the tile that keeps it under a bound.

Autograd keeps the output of every layer that the next one's derivative needs; that is what grows with the picture. It
is counted here by running the network once on a small picture and adding up what the layers put out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from genkit.errors import InputError
from pipelines.style_transfer.networks.features import FeatureNetwork

__all__ = ["bytes_per_pixel", "tile_side"]

OVERHEAD = 1.6
"""Gradients and a convolution's workspace beside the activations; measured with benchmarks/style_transfer.py."""
CANVAS = {"adam": 8, "lbfgs": 28}
"""Full-size float32 pictures: iterate, gradient, moments, average, photo; L-BFGS's history."""


@torch.no_grad()
def bytes_per_pixel(network: FeatureNetwork) -> float:
    """Bytes of activations for each pixel of the picture, forward and backward."""
    side, counted = 64, 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal counted
        counted += output.numel() * output.element_size()

    hooks = [m.register_forward_hook(count) for m in network.modules() if not list(m.children())]
    names = list(dict.fromkeys([*network.defaults.style, *network.defaults.content]))
    parameter = next(network.parameters())
    network(torch.zeros(1, 3, side, side, device=parameter.device), names)
    for hook in hooks:
        hook.remove()
    return OVERHEAD * counted / side**2


def tile_side(network: FeatureNetwork, height: int, width: int, bound: int, optimizer: str) -> int | None:
    """The side of the largest tile, px, whose work stays under `bound` bytes; None where the whole picture does.

    Raises InputError where not even a small tile does.
    """
    per_pixel = bytes_per_pixel(network)
    rest = bound - 3 * 4 * height * width * CANVAS[optimizer]
    if per_pixel * height * width <= rest:
        return None
    side = math.isqrt(max(0, int(rest / per_pixel))) - 2 * network.margin
    if side < network.stride * 4:
        need = 3 * 4 * height * width * CANVAS[optimizer] + per_pixel * (2 * network.margin + 4 * network.stride) ** 2
        raise InputError(
            f"{width}x{height} px needs {need / 2**20:.0f} MB even in the smallest tiles, more than "
            f"{bound / 2**20:.0f} MB: raise max_memory or lower size"
        )
    return side // network.stride * network.stride
