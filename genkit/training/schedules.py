"""How a learning rate rises and falls over a run."""

from __future__ import annotations

import math
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["SCHEDULES", "scheduled", "share"]

SCHEDULES = ("cosine", "one-cycle", "linear", "trapezoid")


def scheduled(optimizer: Optimizer, schedule: str, steps: int, warmup: float) -> LambdaLR:
    """The schedule of an optimiser whose rate is the highest; see `share`."""
    return LambdaLR(optimizer, partial(share, schedule, steps, warmup))


def share(schedule: str, steps: int, warmup: float, step: int) -> float:
    """The learning rate at a step of `steps`, as a share of the highest.

    It rises in a straight line over the share `warmup` of the steps (one-cycle: over a quarter, Smith & Topin 2018;
    momentum stays as it is) and falls to 0: as half a cosine, in a straight line, or (trapezoid, Haegele et al. 2024)
    in a straight line over the last two fifths.
    """
    steps = max(steps, 1)
    rise = max(1, round((0.25 if schedule == "one-cycle" else warmup) * steps))
    if step < rise:
        return (step + 1) / rise
    done = min(1.0, (step - rise) / max(1, steps - rise))
    if schedule == "trapezoid":
        return min(1.0, max(0.0, (1 - step / steps) / 0.4))
    return 1 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
