"""The rows of a model's card: what was made of held-out pictures, beside what needs no model.

A row's numbers:

    KID, KID error      to the pictures of look B that the training learned from, and its standard error
    FID                 to the same, on the deepest features alone
    KID to held-out     to the held-out pictures of B: fewer, so less sure; and where they show what the inputs show
                        (partners), lower than two independent draws would be
    taken for B         the share that a judge of the two looks takes for B (see judge.py)
    feature distance    to the true picture in look B: between the features of both, Euclidean, mean over pairs
    L1                  to it: mean absolute difference, values in 0..1
    SSIM                to it
    cycle L1            of the picture sent back to the input: mean absolute difference, values in 0..1

Features are those that all numbers share, one vector a picture. The four that need the true picture in look B are
taken over the pictures that have one, and left out where none has.

N: held-out pictures; P: those of them with a partner; C: features; S: their side in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genkit.metrics.features import LAST, Features
from genkit.metrics.image import fid, kid, ssim
from genkit.pipeline import Progress
from pipelines.image_translation.measuring.judge import Judge
from pipelines.image_translation.measuring.pictures import Split, opened, parts

__all__ = ["Card", "Translator"]

Translator = Callable[[Tensor], Tensor]
"""Pictures [B, 3, S, S] in 0..1 -> as many in another look."""
UNCHANGED, NEAREST, TRUE = "unchanged", "nearest training picture", "the true pictures"


@dataclass
class Card:
    """What a card is measured against. Make it with `Card.prepare`, then ask for rows."""

    features: Features
    size: int
    split: Split
    inputs: Tensor
    """[N, 3, S, S]: the held-out pictures of A that are translated."""
    places: list[int]
    """Those among them that have a partner in B, by place."""
    true: Tensor
    """[P, 3, S, S]: the partners."""
    input_features: Tensor
    learned_b: Tensor
    """[M, C]: features of what the training saw of B."""
    held_a: Tensor
    held_b: Tensor
    judge: Judge

    @classmethod
    def prepare(cls, split: Split, features: Features, size: int, limit: int | None, progress: Progress) -> Card:
        """Reads all pictures once; limit: at most so many inputs, evenly from all. Raises MediaError, InputError."""
        count = min(limit or len(split.held_a), len(split.held_a))
        chosen = [split.held_a[n * len(split.held_a) // count] for n in range(count)]
        partners = split.partners(chosen)
        total = sum(map(len, (split.learned_a, split.learned_b, split.held_a, split.held_b)))
        done = 0

        def seen(paths: Sequence[Path]) -> Tensor:
            nonlocal done
            found = []
            for part in parts(paths, size):
                found.append(features.of(part))
                done += len(part)
                progress(done, total, note="features of real pictures")
            return torch.cat(found)

        learned_a, learned_b = seen(split.learned_a), seen(split.learned_b)
        inputs = opened(chosen, size)
        true = opened(partners.values(), size) if partners else inputs[:0]
        held = seen(split.held_a), seen(split.held_b)
        judge = Judge(learned_a, learned_b)
        return cls(features, size, split, inputs, list(partners), true, features.of(inputs), learned_b, *held, judge)

    def nearest(self) -> Tensor:
        """For each input the picture of B that the training saw whose features are the nearest: [N, 3, S, S]."""
        places = torch.cdist(self.input_features, self.learned_b).argmin(1).tolist()
        return opened([self.split.learned_b[place] for place in places], self.size)

    def row(self, way: str, made: Tensor, back: Tensor | None = None) -> dict[str, Any]:
        """The numbers of pictures [N, 3, S, S], one for each input; back: the same sent back."""
        found = self.features.of(made)
        numbers = {"way": way, **self._against_look(found)}
        if self.places:
            numbers |= self._against_true(made[self.places], found[self.places])
        numbers["cycle L1"] = math.nan if back is None else _l1(back, self.inputs)
        return numbers

    def true_row(self) -> dict[str, Any]:
        """The held-out pictures of B themselves: what a perfect translation would have."""
        empty = dict.fromkeys(("feature distance", "L1", "SSIM"), math.nan) if self.places else {}
        numbers = self._against_look(self.held_b) | {"KID to held-out": math.nan}
        return {"way": TRUE, **numbers, **empty, "cycle L1": math.nan}

    def _against_look(self, found: Tensor) -> dict[str, float]:
        look = kid(self.learned_b, found)
        return {
            "KID": look.value,
            "KID error": look.error,
            "FID": fid(self.learned_b[:, -LAST:], found[:, -LAST:]),
            "KID to held-out": kid(self.held_b, found).value,
            "taken for B": float(self.judge.is_b(found).double().mean()),
        }

    def _against_true(self, made: Tensor, found: Tensor) -> dict[str, float]:
        wanted = self.features.of(self.true)
        return {
            "feature distance": float((found - wanted).norm(dim=1).mean()),
            "L1": _l1(made, self.true),
            "SSIM": float(ssim(self.true, made).mean()),
        }

    def grid(self, made: Tensor, back: Tensor | None, columns: int = 12) -> Tensor:
        """[3, H, W]: rows of inputs, what was made of them, their true partners, and what was sent back; a partner that
        is not there is white."""
        count = min(columns, len(self.inputs))
        shown = [n * len(self.inputs) // count for n in range(count)]
        rows = [self.inputs[shown], made[shown]]
        if self.places:
            true = torch.ones_like(self.inputs)
            true[self.places] = self.true
            rows.append(true[shown])
        if back is not None:
            rows.append(back[shown])
        return torch.cat([torch.cat(list(row), 2) for row in rows], 1)


def _l1(x: Tensor, y: Tensor) -> float:
    return float((x - y).abs().mean())
