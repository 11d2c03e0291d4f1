"""The heads that CUT compares patches by (Park et al. 2020, section 3): features of a generator, projected.

Key names are those of contrastive-unpaired-translation's `PatchSampleF` (`mlp_0.0.weight`, ...): two linear layers for
each place in the generator, whose result is a unit vector.

Legend: B pictures, P patches (places in a feature map), C channels, H, W px.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.image_translation.networks.resnet import ResnetGenerator

__all__ = ["PatchSampler", "features"]


def features(generator: ResnetGenerator, x: Tensor, places: Sequence[int]) -> list[Tensor]:
    """What leaves the layers at these places of the generator's sequence, in its encoding half, for pictures x."""
    found = {}
    for place, layer in enumerate(generator.model[: max(places) + 1]):
        x = layer(x)
        if place in places:
            found[place] = x
    return [found[place] for place in places]


class PatchSampler(nn.Module):
    """Feature maps [B, C, H, W] of several places -> unit vectors [B, P, width] of each; the same P in all pictures."""

    def __init__(self, channels: Sequence[int], width: int = 256) -> None:
        super().__init__()
        self.heads = [nn.Sequential(nn.Linear(c, width), nn.ReLU(), nn.Linear(width, width)) for c in channels]
        for i, head in enumerate(self.heads):
            self.add_module(f"mlp_{i}", head)

    @staticmethod
    def choose(maps: Sequence[Tensor], count: int) -> list[Tensor]:
        """`count` places in each map (all if it has fewer), drawn from torch's generator without repetition."""
        return [torch.randperm(x.shape[2] * x.shape[3], device=x.device)[:count] for x in maps]

    def forward(self, maps: Sequence[Tensor], chosen: Sequence[Tensor]) -> list[Tensor]:
        patches = [x.flatten(2)[:, :, places].transpose(1, 2) for x, places in zip(maps, chosen, strict=True)]
        vectors = [head(patch).float() for head, patch in zip(self.heads, patches, strict=True)]  # [B, P, width]
        return [F.normalize(vector, dim=2) for vector in vectors]
