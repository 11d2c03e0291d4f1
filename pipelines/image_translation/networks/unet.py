"""The U-Net generator of pix2pix (Isola et al. 2017): halved down to a single value a side, and back with skips.

Layout and key names are those of pytorch-CycleGAN-and-pix2pix (`unet_128`, `unet_256`), so that its files load
unchanged: each level holds the next one in its middle, and the keys nest with it (`model.model.1.model.3...`).

Legend: B pictures, C channels, H, W px.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipelines.image_translation.networks.modes import Dropout
from pipelines.image_translation.networks.resnet import Norm, norm_layer

__all__ = ["Layout", "UnetGenerator"]


@dataclass(frozen=True)
class Layout:
    """What tells one U-Net from another. The defaults are pix2pix's at 256 px."""

    channels_in: int = 3
    channels_out: int = 3
    width: int = 64
    """Channels of the outermost level (`ngf`), doubled inwards up to eight times that."""
    downs: int = 8
    """How often the sides are halved."""
    norm: Norm = "batch"
    dropout: bool = True
    """In the levels between the bottleneck and those that get narrower; a dropout of half the values."""

    def channels(self, level: int) -> int:
        """Inside level 0 (the outermost), 1, ..."""
        return self.width * min(2**level, 8)


class Level(nn.Module):
    """[B, C, H, W] -> itself beside what it makes of it, [B, 2C, H, W]; from the outermost only what it makes."""

    def __init__(self, layout: Layout, level: int = 0) -> None:
        super().__init__()
        self.outermost, innermost = level == 0, level == layout.downs - 1
        inner = layout.channels(level)
        outer = layout.channels_out if self.outermost else layout.channels(level - 1)
        bias = layout.norm == "instance"
        inside: list[nn.Module] = [] if innermost else [Level(layout, level + 1)]
        middle = inner if innermost else 2 * inner
        if self.outermost:
            down: list[nn.Module] = [nn.Conv2d(layout.channels_in, inner, 4, 2, 1, bias=bias)]
            up: list[nn.Module] = [nn.ConvTranspose2d(middle, outer, 4, 2, 1), nn.Tanh()]
        else:
            down = [nn.LeakyReLU(0.2), nn.Conv2d(outer, inner, 4, 2, 1, bias=bias)]
            # The bottleneck is a single value a side where a picture is as small as can be: nothing to normalise by.
            down += [] if innermost else [norm_layer(layout.norm, inner)]
            up = [nn.ConvTranspose2d(middle, outer, 4, 2, 1, bias=bias), norm_layer(layout.norm, outer)]
            up += [Dropout(0.5)] if layout.dropout and outer == inner and not innermost else []
        self.model = nn.Sequential(*down, *inside, nn.ReLU(), *up)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) if self.outermost else torch.cat([x, self.model(x)], 1)


class UnetGenerator(nn.Module):
    """[B, C, H, W] in -1..1 -> the same size, in -1..1; H and W multiples of `multiple`."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self.multiple = 2**layout.downs
        self.smallest = self.multiple
        self.model = Level(layout)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)
