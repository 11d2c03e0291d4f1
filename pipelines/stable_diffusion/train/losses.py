"""What a reconstruction is measured by, besides its pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genkit.metrics.features import Features

__all__ = ["Perceptual"]


class Perceptual(nn.Module):
    """The distance between two pictures in the maps of a frozen SqueezeNet, in the manner of LPIPS without its learned
    weights (Zhang et al. 2018, equation 1): maps of every fire module, each place brought to unit length over the
    channels, squared differences summed over channels and averaged over places, averaged over modules.
    """

    def __init__(self, features: Features) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """[B, 3, H, W] in -1..1, twice; gradients reach x only -> scalar."""
        with torch.no_grad():
            true = self._maps(y)
        made = self._maps(x)
        return torch.stack([(a - b).square().sum(1).mean() for a, b in zip(made, true, strict=True)]).mean()

    def _maps(self, x: Tensor) -> list[Tensor]:
        f = self.features
        x = ((x + 1) / 2 - f.mean) / f.std
        found = []
        for layer in f.layers:
            x = layer(x)
            if type(layer).__name__ == "Fire":
                found.append(F.normalize(x.float(), dim=1, eps=1e-6))
        return found
