"""Choosing a token: temperature, then what is too unlikely is left out (top-k, top-p, min-p), then a draw.

In float64 on the CPU, each piece from a generator of its own, so that a piece is the same alone or in a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

__all__ = ["Sampling", "choose"]

RECENT = 64  # notes back that the repetition penalty looks


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn."""

    temperature: float = 1.0
    """Of everything but durations. 0 takes the likeliest."""
    duration_temperature: float = 1.0
    top_k: int = 0
    """Only the k likeliest; 0 for all."""
    top_p: float = 1.0
    """Only the likeliest that come to this share together (Holtzman et al. 2020)."""
    min_p: float = 0.0
    """Only those at least this share as likely as the likeliest (Nguyen et al. 2024)."""
    repetition_penalty: float = 1.0
    """Divides the odds of pitches that were just played. The penalty of Keskar et al. 2019 divides their logit, which
    means something else with every constant that is added to all logits."""


def choose(
    logits: np.ndarray,
    allowed: np.ndarray,
    sampling: Sampling,
    generator: torch.Generator,
    *,
    duration: bool = False,
    recent: Sequence[int] = (),
) -> int:
    """One token. logits: float [V]; allowed: bool [V], at least one; duration: it is one, with its own temperature;
    recent: tokens that the repetition penalty makes less likely.

    One number is drawn from the generator whatever the choice, even where there is none.
    """
    drawn = float(torch.rand((), generator=generator, dtype=torch.float64))
    candidates = np.flatnonzero(allowed)
    if len(candidates) == 1:
        return int(candidates[0])
    scores = logits.astype(np.float64)
    if sampling.repetition_penalty != 1 and len(recent):
        again = np.unique(np.asarray(recent[-RECENT:], np.int64))
        scores[again] -= np.log(sampling.repetition_penalty)
    scores = scores[candidates]
    temperature = sampling.duration_temperature if duration else sampling.temperature
    if temperature == 0:
        return int(candidates[scores.argmax()])
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    shares = np.exp((scores - scores[0]) / temperature)
    shares /= shares.sum()
    kept = len(shares)
    if sampling.top_k:
        kept = min(kept, sampling.top_k)
    if sampling.top_p < 1:
        kept = min(kept, int(np.searchsorted(shares.cumsum(), sampling.top_p)) + 1)
    if sampling.min_p > 0:
        kept = min(kept, int((shares >= sampling.min_p * shares[0]).sum()))
    sums = shares[:kept].cumsum()
    place = int(np.searchsorted(sums, drawn * sums[-1], side="right"))
    return int(candidates[order[min(place, kept - 1)]])
