"""The ResNet generator of CycleGAN (Zhu et al. 2017), as its authors, CUT and pix2pix's `resnet_9blocks` have it.

Layout and key names are those of pytorch-CycleGAN-and-pix2pix and contrastive-unpaired-translation, so that their files
load unchanged: convolution 7x7, two that halve the sides, residual blocks, two that double them, convolution 7x7, tanh.
The modules lie in one `nn.Sequential` because the numbers in published keys are places in it; `Layout` is all that
decides those places.

Legend: B pictures, C channels, H, W px.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.image_translation.networks.modes import BatchNorm, Dropout

__all__ = ["Block", "Down", "Layout", "ResnetGenerator", "Up", "norm_layer"]

Norm = Literal["instance", "batch"]


@dataclass(frozen=True)
class Layout:
    """What tells one ResNet generator from another. The defaults are CycleGAN's at 256 px."""

    channels_in: int = 3
    channels_out: int = 3
    width: int = 64
    """Channels behind the first convolution (`ngf`); twice and four times that follow."""
    blocks: int = 9
    norm: Norm = "instance"
    dropout: bool = False
    antialias_down: bool = False
    """Halves by a blur instead of a stride, as CUT does (Zhang 2019)."""
    antialias_up: bool = False
    halvings: int = 2
    """How often the sides are halved; the channels double each time."""
    residual: bool = False
    """Every scale is added to what is drawn at it later, the picture itself to the result, so the network draws changes
    only: genkit's own, for two looks that are close. Costs nothing, and training begins at a picture left as it is."""


def norm_layer(kind: Norm, width: int) -> nn.Module:
    """Instance norm without weights and without running statistics, or batch norm with both, as published."""
    return BatchNorm(width) if kind == "batch" else nn.InstanceNorm2d(width)


class Block(nn.Module):
    """x + two convolutions 3x3 with reflection padding; [B, C, H, W] -> the same."""

    def __init__(self, width: int, norm: Norm, dropout: bool) -> None:
        super().__init__()
        bias = norm == "instance"
        half = [nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3, bias=bias), norm_layer(norm, width), nn.ReLU(True)]
        rest = [nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3, bias=bias), norm_layer(norm, width)]
        self.conv_block = nn.Sequential(*half, *([Dropout(0.5)] if dropout else []), *rest)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class Down(nn.Module):
    """Halves [B, C, H, W] behind a binomial blur (Zhang 2019); odd sides round up. The filter is a buffer, `filt`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("filt", _binomial(3).expand(width, 1, 3, 3).clone())
        self.filt: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.filt, stride=2, groups=x.shape[1])


class Up(nn.Module):
    """Doubles [B, C, H, W] by a transposed convolution with a binomial filter of four taps."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("filt", (_binomial(4) * 4).expand(width, 1, 4, 4).clone())
        self.filt: Tensor

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1), mode="replicate")
        doubled = F.conv_transpose2d(x, self.filt, stride=2, padding=2, groups=x.shape[1])
        return doubled[:, :, 1:-1, 1:-1]


def _binomial(taps: int) -> Tensor:
    # On the CPU even for a network on the meta device, where arithmetic begins by importing sympy, for seconds.
    row = torch.tensor({3: [1.0, 2.0, 1.0], 4: [1.0, 3.0, 3.0, 1.0]}[taps], device="cpu")
    square = row[:, None] * row[None, :]
    return (square / square.sum())[None, None]


class ResnetGenerator(nn.Module):
    """[B, 3, H, W] in -1..1 -> the same size, in -1..1; H and W multiples of `multiple`, at least `smallest`."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self.multiple = 2**layout.halvings
        self.smallest = max(2 * self.multiple, 4)  # reflection padding takes one value at the bottom, three at the top
        norm, width = layout.norm, layout.width
        bias = norm == "instance"

        def finished(convolution: nn.Module, to: int) -> list[nn.Module]:
            return [convolution, norm_layer(norm, to), nn.ReLU(True)]

        # Ends of the scales, as places in the sequence: where a skip is taken, and where it is added.
        self.taken: list[int] = []
        self.added: list[int] = []
        layers: list[nn.Module] = [nn.ReflectionPad2d(3)]
        layers += finished(nn.Conv2d(layout.channels_in, width, 7, bias=bias), width)
        for c in (width * 2**i for i in range(layout.halvings)):
            self.taken.append(len(layers) - 1)
            stride = 1 if layout.antialias_down else 2
            layers += finished(nn.Conv2d(c, 2 * c, 3, stride, padding=1, bias=bias), 2 * c)
            layers += [Down(2 * c)] if layout.antialias_down else []
        layers += [Block(width * self.multiple, norm, layout.dropout) for _ in range(layout.blocks)]
        for c in (width * 2**i for i in range(layout.halvings, 0, -1)):
            if layout.antialias_up:
                layers += [Up(c), *finished(nn.Conv2d(c, c // 2, 3, padding=1, bias=bias), c // 2)]
            else:
                larger = nn.ConvTranspose2d(c, c // 2, 3, stride=2, padding=1, output_padding=1, bias=bias)
                layers += finished(larger, c // 2)
            self.added.append(len(layers) - 1)
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(width, layout.channels_out, 7)]
        self.model = nn.Sequential(*layers, *([] if layout.residual else [nn.Tanh()]))

    def forward(self, x: Tensor) -> Tensor:
        if not self.layout.residual:
            return self.model(x)
        drawn, skips = x, []
        for place, layer in enumerate(self.model):
            drawn = layer(drawn)
            if place in self.taken:
                skips.append(drawn)
            elif place in self.added:
                drawn = drawn + skips.pop()
        # Clamped only where nobody needs a gradient: in training a value out of range must be pulled back.
        return x + drawn if self.training else (x + drawn).clamp(-1, 1)
