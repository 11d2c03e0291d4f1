"""StarGAN's generator and discriminator (Choi et al. 2018): one generator for many looks, told which by labels.

Layout and key names are those of yunjey/stargan, so that its files load unchanged: convolutions padded by zeros and
without bias, instance norm with weights and running statistics, two halvings.

Legend: B pictures, C channels, L labels, H, W px.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipelines.image_translation.networks.modes import InstanceNorm

__all__ = ["CriticLayout", "Layout", "StarganDiscriminator", "StarganGenerator"]


@dataclass(frozen=True)
class Layout:
    """What tells one StarGAN generator from another. The defaults are the published ones for CelebA."""

    channels: int = 3
    """Of the picture, going in and coming out."""
    labels: int = 5
    """Planes that go in beside the picture, one a label (`c_dim`)."""
    width: int = 64
    """Channels behind the first convolution; twice and four times that follow."""
    blocks: int = 6


@dataclass(frozen=True)
class CriticLayout:
    """What tells one StarGAN discriminator from another. The defaults are the published ones for 128 px."""

    channels: int = 3
    labels: int = 5
    width: int = 64
    """Channels of the first layer, doubled with each."""
    layers: int = 6
    side: int = 128
    """Of the pictures it judges, px: the head for labels sees a whole picture."""


class Block(nn.Module):
    """x + two convolutions 3x3 with zero padding; [B, C, H, W] -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        first = [nn.Conv2d(width, width, 3, padding=1, bias=False), InstanceNorm(width), nn.ReLU(True)]
        second = [nn.Conv2d(width, width, 3, padding=1, bias=False), InstanceNorm(width)]
        self.main = nn.Sequential(*first, *second)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.main(x)


class StarganGenerator(nn.Module):
    """[B, C, H, W] in -1..1 and labels [B, L] -> the same size, in -1..1; H and W multiples of `multiple`."""

    multiple = 4
    smallest = 8

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        w = layout.width

        def finished(convolution: nn.Module, to: int) -> list[nn.Module]:
            return [convolution, InstanceNorm(to), nn.ReLU(True)]

        layers = finished(nn.Conv2d(layout.channels + layout.labels, w, 7, padding=3, bias=False), w)
        for c in (w, 2 * w):
            layers += finished(nn.Conv2d(c, 2 * c, 4, 2, 1, bias=False), 2 * c)
        layers += [Block(4 * w) for _ in range(layout.blocks)]
        for c in (4 * w, 2 * w):
            layers += finished(nn.ConvTranspose2d(c, c // 2, 4, 2, 1, bias=False), c // 2)
        self.main = nn.Sequential(*layers, nn.Conv2d(w, layout.channels, 7, padding=3, bias=False), nn.Tanh())

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        planes = labels.to(x)[:, :, None, None].expand(-1, -1, *x.shape[2:])  # [B, L, H, W]
        return self.main(torch.cat([x, planes], 1))


class StarganDiscriminator(nn.Module):
    """[B, C, H, W] -> a map of scores [B, 1, h, w], high for real, and logits of the labels [B, L]."""

    def __init__(self, layout: CriticLayout) -> None:
        super().__init__()
        self.layout = layout
        widths = [layout.width * 2**i for i in range(layout.layers)]
        body: list[nn.Module] = []
        for c, to in zip([layout.channels, *widths], widths, strict=False):
            body += [nn.Conv2d(c, to, 4, 2, 1), nn.LeakyReLU(0.01)]
        self.main = nn.Sequential(*body)
        self.conv1 = nn.Conv2d(widths[-1], 1, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(widths[-1], layout.labels, layout.side // 2**layout.layers, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.main(x)
        return self.conv1(features), self.conv2(features).flatten(1)
