"""How the weights are moved: which optimiser takes which of them, and how the rate rises and falls."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

__all__ = ["SCHEDULES", "optimizers", "share"]

SCHEDULES = ("cosine", "one-cycle", "linear", "trapezoid")


def optimizers(network: nn.Module, kind: str, rate: float, weight_decay: float) -> dict[str, Optimizer]:
    """kind: "adamw", or "muon" for the matrices of hidden layers and AdamW for the rest. Decay is of those matrices."""
    inner = [p for name, p in network.named_parameters() if p.ndim == 2 and _is_matrix(name)]
    chosen = {id(p) for p in inner}
    outer = [p for p in network.parameters() if id(p) not in chosen]
    made: dict[str, Optimizer] = {}
    groups: list[dict[str, Any]] = [{"params": outer, "weight_decay": 0.0}]
    if kind == "muon":
        made["matrices"] = torch.optim.Muon(inner, rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    else:
        groups.insert(0, {"params": inner, "weight_decay": weight_decay})
    made["rest"] = torch.optim.AdamW(groups, rate, betas=(0.9, 0.99))
    return made


def _is_matrix(name: str) -> bool:
    """Weights of hidden layers: what Muon is for; embeddings and the output are not."""
    return "embedding" not in name and "wte" not in name and "wpe" not in name and "bias" not in name


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
