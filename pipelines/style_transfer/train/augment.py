"""Pictures to learn from: crops, varied in scale, colour and mixture, and pictures drawn by rule.

Everything here is a pure function of a generator, so that an item depends on nothing but the run's seed and its place
in it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["dead_leaves", "random_crop", "recolour"]


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()


def random_crop(
    picture: Tensor, size: int, generator: torch.Generator, *, scale: tuple[float, float] = (0.5, 1.0)
) -> Tensor:
    """A square part of a picture [3, H, W], its side `scale` of the shorter one, as [3, size, size]; half mirrored."""
    _, h, w = picture.shape
    side = max(2, round(min(h, w) * uniform(generator, *scale)))
    top = int(uniform(generator, 0, h - side + 1 - 1e-6))
    left = int(uniform(generator, 0, w - side + 1 - 1e-6))
    crop = picture[None, :, top : top + side, left : left + side]
    crop = F.interpolate(crop, (size, size), mode="bilinear", antialias=True, align_corners=False)[0]
    return crop.flip(2) if uniform(generator, 0, 1) < 0.5 else crop


def recolour(picture: Tensor, generator: torch.Generator, amount: float = 0.5) -> Tensor:
    """Mixes the channels of [3, H, W] at random and bends the tone curve; amount 0 leaves the picture as it is."""
    mix = torch.eye(3) + amount * (torch.rand(3, 3, generator=generator) - 0.5)
    mix = mix / mix.sum(1, keepdim=True)  # greys stay grey
    mixed = torch.einsum("ij,jhw->ihw", mix, picture).clamp(0, 1)
    return mixed ** math.exp(amount * uniform(generator, -0.7, 0.7))


def dead_leaves(size: int, generator: torch.Generator, leaves: int = 40) -> Tensor:
    """A picture [3, size, size] of overlapping textured discs and bars whose radii follow r^-3, as objects in
    photographs do (Lee, Mumford & Huang 2001); networks learn useful features from such pictures alone (Baradad et al.
    2021)."""
    ys, xs = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    picture = torch.rand(3, 1, 1, generator=generator).expand(3, size, size).clone()
    smallest = 0.02
    for _ in range(leaves):
        u = uniform(generator, 0.05, 1)
        radius = min(smallest / math.sqrt(u) * uniform(generator, 1, 8), 0.5) * size  # inverse of the r^-3 law
        cy, cx = uniform(generator, 0, size), uniform(generator, 0, size)
        angle = uniform(generator, 0, math.pi)
        dy, dx = ys - cy, xs - cx
        along = dx * math.cos(angle) + dy * math.sin(angle)
        across = dy * math.cos(angle) - dx * math.sin(angle)
        shape = (along / uniform(generator, 1, 4)) ** 2 + across**2 < radius**2
        phase = along * uniform(generator, 0.02, 2.0) + across * uniform(generator, -0.5, 0.5)
        wave = torch.sin(phase) * uniform(generator, 0, 0.3)
        colour = torch.rand(3, 1, 1, generator=generator) + wave
        picture = torch.where(shape, colour, picture)
    noise = torch.randn(3, size, size, generator=generator) * uniform(generator, 0, 0.05)
    return (picture + noise).clamp(0, 1)
