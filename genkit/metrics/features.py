"""A picture as a few thousand numbers that say what it shows and how it is drawn: what KID and FID compare.

The network is torchvision's SqueezeNet (Iandola et al. 2016), trained on ImageNet, without its classifier. It is read
at each of its eight fire modules: the mean of every map over the picture. `squeezenet1_0` and `squeezenet1_1` have 2560
features so; which of the two it is, is read off the weights.

Choices made here:
- All depths count, since a look shows in the shallow ones: on emoji of two hands a logistic regression tells 85 % of
  unseen pictures rightly from all depths, 75 % from the last alone. FID takes the last alone (`LAST` features): its
  covariance wants fewer features than there are pictures.
- The features of each depth are brought to a root mean square of 1: a network without normalisation layers gives them
  any scale, and KID's cube then lets a few pictures decide.
- Pictures are normalised as ImageNet's were, and looked at in the size they have: nothing is resized here. Whoever
  compares two sets brings both to one size first, and says which.
- Weights may be named as torchvision names them, with or without `features.`, below any one prefix; those of the
  classifier are left out.

B: pictures; C: features; H, W: height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from genkit import weights
from genkit.errors import InputError, ModelError

__all__ = ["ARCHITECTURES", "LAST", "Features"]

ARCHITECTURES = ("squeezenet1_0", "squeezenet1_1")
LAST = 512
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
SMALLEST = 32  # px; below it the pooling of the network leaves nothing
BATCH = 16


class Features(nn.Module):
    """A frozen feature network in float32. Make one with `Features.load`; `name` says which it is."""

    mean: Tensor
    std: Tensor

    def __init__(self, layers: nn.Sequential, name: str) -> None:
        super().__init__()
        self.layers, self.name = layers, name
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    @classmethod
    def load(cls, ref: str | Path) -> Features:
        """From a reference: "torchvision:squeezenet1_0" (fetched where it is not here) or a file; on the CPU.

        Raises ModelError.
        """
        path = weights.locate(ref)
        held = weights.read(path)
        tensors = {key: value.float() for key, value in _bare(held).items()}
        shapes = {key: value.shape for key, value in tensors.items()}
        for name in ARCHITECTURES:
            layers = _empty(name)
            if {key: value.shape for key, value in layers.state_dict().items()} == shapes:
                weights.load_into(layers, tensors, name=str(path))
                return cls(layers, name)
        seen = weights.looks_like(held)
        hint = f" (it looks like {seen})" if seen and "SqueezeNet" not in seen else ""
        raise ModelError(f"{path} is no feature network{hint}: give torchvision's {' or '.join(ARCHITECTURES)}")

    def forward(self, pictures: Tensor) -> Tensor:
        """[B, 3, H, W] in 0..1 -> [B, C], float32, the deepest last. Raises InputError for pictures under 32 px."""
        if pictures.ndim != 4 or pictures.shape[1] != 3 or min(pictures.shape[-2:]) < SMALLEST:
            shape = list(pictures.shape)
            raise InputError(f"features need pictures [B, 3, H, W] of {SMALLEST} px and more, not {shape}")
        x = (pictures.to(self.mean) - self.mean) / self.std
        found: list[Tensor] = []
        for layer in self.layers:
            x = layer(x)
            if type(layer).__name__ == "Fire":
                pooled = x.mean((2, 3))
                found.append(pooled / pooled.square().mean(1, keepdim=True).sqrt().clamp(1e-8))
        return torch.cat(found, 1)

    @torch.no_grad()
    def of(self, pictures: Tensor) -> Tensor:
        """The same for any number of pictures, some at a time; on the CPU."""
        return torch.cat([self(part).cpu() for part in pictures.split(BATCH)])


def _empty(name: str) -> nn.Sequential:
    """The convolutions of a network, taking no memory."""
    from torchvision import models

    with torch.device("meta"):
        return getattr(models, name)(weights=None).features


def _bare(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys below `features.`, whatever stands before it; all of them where there is no such word."""
    below = {key.partition("features.")[2]: value for key, value in tensors.items() if "features." in key}
    return below or dict(tensors)
