"""How the weights are moved: which optimiser takes which of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

__all__ = ["optimizers"]


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
