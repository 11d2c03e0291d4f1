"""How likely a network finds pieces: negative log-likelihood, per token, per note and per second.

A Transformer-XL reads segment after segment with its memory before each (`likelihood`). A network without a memory
reads windows of its whole context, each half a context further on, and is asked for the second half of each
(`windowed`): every token but a piece's first has at least half a context before it, which is the kinder way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Likelihood", "likelihood", "windowed"]


@dataclass(frozen=True)
class Likelihood:
    """What it came to over all pieces."""

    nats: float
    tokens: int
    notes: int
    seconds: float = 0.0

    @property
    def nll(self) -> float:
        """Nats per token."""
        return self.nats / max(self.tokens, 1)

    @property
    def bits_per_note(self) -> float:
        return self.nats / math.log(2) / max(self.notes, 1)

    @property
    def bits_per_second(self) -> float:
        return self.nats / math.log(2) / self.seconds if self.seconds else math.nan


@torch.no_grad()
def likelihood(
    network: Any,
    lines: Sequence[tuple[np.ndarray, ...]],
    *,
    segment: int = 512,
    memory: int = 512,
    batch: int = 16,
    pitches: np.ndarray,
    seconds: float = 0.0,
    done: Callable[[int], None] = lambda tokens: None,
) -> Likelihood:
    """lines: of each piece tokens, place, bar and weight, int64 [T] (`tasks.Line.arrays`); pitches: bool [V], which
    tokens are notes. A token's likelihood is taken once; where weight is 0 it is not counted.

    Each piece is read in segments of `segment` tokens with `memory` tokens before each, `batch` pieces side by side.
    done: told how many tokens have been read since it was last told.
    """
    device = next(network.parameters()).device
    nats, tokens, notes = 0.0, 0, 0
    longest_first = sorted(range(len(lines)), key=lambda i: len(lines[i][0]), reverse=True)
    for start in range(0, len(lines), batch):
        rows = [lines[i] for i in longest_first[start : start + batch]]
        kept: Any = None
        for begin in range(0, len(rows[0][0]) - 1, segment):
            rows = [row for row in rows if len(row[0]) - 1 > begin]  # the longer come first: a prefix
            kept = [m[: len(rows)] for m in kept] if kept is not None else None
            x, place, bar, target, weight = _segment(rows, begin, segment, device)
            logits, kept = network(x, kept, place=place, bar=bar, memory_len=memory)
            losses = F.cross_entropy(logits.float().flatten(0, 1), target.flatten(), reduction="none")
            counted = weight.flatten() > 0
            nats += float(losses[counted].double().sum())
            tokens += int(counted.sum())
            notes += int(pitches[target.flatten()[counted].cpu().numpy()].sum())
            done(int(counted.sum()))
    return Likelihood(nats, tokens, notes, seconds)


@torch.no_grad()
def windowed(
    network: Any,
    lines: Sequence[tuple[np.ndarray, ...]],
    *,
    context: int,
    batch: int = 16,
    pitches: np.ndarray,
    done: Callable[[int], None] = lambda tokens: None,
) -> Likelihood:
    """As `likelihood`, for a network that sees `context` tokens and no more."""
    device = next(network.parameters()).device
    stride = max(1, context // 2)
    windows = [
        (tokens[begin : begin + context + 1], weight[begin : begin + context + 1], context - stride if begin else 0)
        for tokens, _, _, weight in lines
        for begin in range(0, max(1, len(tokens) - 1 - context + stride), stride)
    ]
    windows.sort(key=lambda window: len(window[0]), reverse=True)
    nats, read, notes = 0.0, 0, 0
    for start in range(0, len(windows), batch):
        rows = windows[start : start + batch]
        t = len(rows[0][0])
        tokens = torch.from_numpy(np.stack([np.pad(row, (0, t - len(row))) for row, _, _ in rows])).to(device)
        counted = np.stack([np.pad(weight, (0, t - len(weight))) > 0 for _, weight, _ in rows])[:, 1:]
        for row, (_, _, seen) in zip(counted, rows, strict=True):
            row[:seen] = False
        target = tokens[:, 1:]
        logits, _ = network(tokens[:, :-1])
        losses = F.cross_entropy(logits.float().flatten(0, 1), target.flatten(), reduction="none").double()
        nats += float(losses[torch.from_numpy(counted.ravel()).to(device)].sum())
        notes += int(pitches[target.cpu().numpy()[counted]].sum())
        read += int(counted.sum())
        done(int(counted.sum()))
    return Likelihood(nats, read, notes)


def _segment(rows: Sequence[tuple[np.ndarray, ...]], begin: int, segment: int, device: Any) -> tuple[Tensor, ...]:
    """Tokens, place, bar, target and weight of a segment, [B, T], padded at the right with weight 0."""
    t = min(segment, len(rows[0][0]) - 1 - begin)
    parts: list[list[np.ndarray]] = [[], [], [], [], []]
    for tokens, place, bar, weight in rows:
        end = begin + t
        for part, (array, shift) in zip(
            parts, ((tokens, 0), (place, 0), (bar, 0), (tokens, 1), (weight, 1)), strict=True
        ):
            cut = array[begin + shift : end + shift][: len(tokens) - 1 - begin]
            part.append(np.pad(cut, (0, t - len(cut))))
    return tuple(torch.from_numpy(np.stack(part)).to(device) for part in parts)
