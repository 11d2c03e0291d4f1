"""A discriminator that sees through a network trained on photographs: heads on its features, at several scales.

Projected GAN (Sauer, Chitta, Müller & Geiger 2021) found that this teaches a generator in a small part of the steps:
what tells two hands of drawing apart has not to be learned from nothing. Of its design the frozen network, the scales
and the small convolutional heads are taken; the fixed random mixing of channels is not: a head's first layer mixes.

B pictures, C channels, H, W px.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["FeatureDiscriminator", "Scales"]


class Scales(nn.Module):
    """The maps of a feature network before each of its poolings, and its last: [B, 3, H, W] in -1..1 -> a list of them.

    Each is brought to mean 0 and deviation 1 by channel, over the pictures given to `measure`.
    """

    def __init__(self, network: nn.Sequential, mean: Tensor, std: Tensor) -> None:
        """network: layers in order, taking RGB in 0..1 minus `mean` over `std` ([1, 3, 1, 1] each); `measure` it once
        before it is used."""
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.network = network
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        pools = [place for place, layer in enumerate(network) if isinstance(layer, nn.MaxPool2d)]
        self.taps = [*(place - 1 for place in pools if place), len(network) - 1]
        self.channels: list[int] = []

    @torch.no_grad()
    def measure(self, pictures: Tensor) -> None:
        """Takes means and deviations from pictures [B, 3, H, W] in -1..1."""
        self.channels = []
        for i, found in enumerate(self._maps(pictures)):
            std, mean = torch.std_mean(found, (0, 2, 3), keepdim=True)
            self.register_buffer(f"mean_{i}", mean)
            self.register_buffer(f"std_{i}", std + 1e-3 * std.mean() + 1e-6)  # a channel may be silent
            self.channels.append(found.shape[1])

    def _maps(self, x: Tensor) -> list[Tensor]:
        x = ((x + 1) / 2 - self.mean) / self.std
        found = []
        for place, layer in enumerate(self.network):
            x = layer(x)
            if place in self.taps:
                found.append(x)
        return found

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = self._maps(x)
        return [(m - getattr(self, f"mean_{i}")) / getattr(self, f"std_{i}") for i, m in enumerate(maps)]


class FeatureDiscriminator(nn.Module):
    """Maps of features, one list entry a scale -> as many maps of scores [B, 1, H, W], high for real."""

    def __init__(self, channels: Sequence[int], width: int = 64) -> None:
        super().__init__()
        self.heads = nn.ModuleList(_head(c, width) for c in channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [head(m) for head, m in zip(self.heads, maps, strict=True)]


def _head(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, width, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, 1, 1),
    )
