"""The game that the trainings of image translation play: its loss, the pool of pictures made, first weights and rates.

Each is the published one, as pytorch-CycleGAN-and-pix2pix and the papers have it: LSGAN (Mao et al. 2017), the pool
(Shrivastava et al. 2017), a rate that is constant and then falls to zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["GAN", "Initial", "Pool", "gan_loss", "initialise", "judged", "rate_schedule", "scale_loss"]

GAN = Literal["lsgan", "vanilla"]
Initial = Literal["normal", "xavier"]


def gan_loss(scores: Tensor, real: bool, kind: GAN) -> Tensor:
    """How far a discriminator's scores are from calling pictures real, or made: squares (lsgan) or logits (vanilla)."""
    scores = scores.float()
    wanted = torch.full_like(scores, float(real))
    return F.mse_loss(scores, wanted) if kind == "lsgan" else F.binary_cross_entropy_with_logits(scores, wanted)


def scale_loss(scores: Sequence[Tensor], real: bool, kind: GAN) -> Tensor:
    """The mean over the scales of a discriminator that has several."""
    return torch.stack([gan_loss(one, real, kind) for one in scores]).mean()


def judged(discriminator: nn.Module, real: Tensor, made: Tensor, kind: GAN) -> Tensor:
    """A discriminator's loss on real pictures and on pictures made, whose maker gets no gradient."""
    return (gan_loss(discriminator(real), True, kind) + gan_loss(discriminator(made.detach()), False, kind)) / 2


def initialise(network: nn.Module, *, kind: Initial = "normal", gain: float = 0.02) -> None:
    """Weights from N(0, gain) or Xavier's normal distribution, those of batch norm from N(1, gain); biases are zero.
    A network that adds to its picture begins by adding nothing."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            if kind == "xavier":
                nn.init.xavier_normal_(module.weight, gain)
            else:
                nn.init.normal_(module.weight, 0.0, gain)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, gain)
            nn.init.zeros_(module.bias)
    layout = getattr(network, "layout", None)
    if getattr(layout, "residual", False):
        nn.init.zeros_([m for m in network.modules() if isinstance(m, nn.Conv2d)][-1].weight)


def rate_schedule(optimizer: Optimizer, *, steps: int, epoch: int, constant: float) -> LambdaLR:
    """The published schedule: the rate stays for the share `constant` of the run, then falls to zero in equal parts,
    one an epoch: 1 - max(0, e + 1 - n) / (d + 1) in epoch e (from 0) of n constant and d falling ones (as published,
    100 and 100). epoch: steps in one.
    """
    total = max(1.0, steps / epoch)
    constant_epochs = constant * total
    falling = total - constant_epochs

    def factor(step: int) -> float:
        return max(0.0, 1 - max(0.0, step // epoch + 1 - constant_epochs) / (falling + 1))

    return LambdaLR(optimizer, factor)


class Pool:
    """Pictures made before. Half of the time a discriminator is shown one in place of a new one, so that it does not
    forget what the generator has left off doing. Holds `size` pictures; 0 passes everything through. Draws from torch's
    generator.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.pictures: list[Tensor] = []

    def swap(self, made: Tensor) -> Tensor:
        """Pictures [B, C, H, W] to show: each new one goes in; while there is room it is shown too, afterwards a coin
        decides between it and an old one, whose place it takes."""
        shown = [self._one(picture) for picture in made.detach()] if self.size else [*made.detach()]
        return torch.stack(shown)

    def _one(self, picture: Tensor) -> Tensor:
        if len(self.pictures) < self.size:
            self.pictures.append(picture.clone())
            return picture
        if torch.rand(()).item() <= 0.5:
            return picture
        place = int(torch.randint(self.size, ()))
        old, self.pictures[place] = self.pictures[place], picture.clone()
        return old

    def state_dict(self) -> dict[str, Any]:
        return {"pictures": self.pictures}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self.pictures = [picture.to(device) for picture in state["pictures"]]
