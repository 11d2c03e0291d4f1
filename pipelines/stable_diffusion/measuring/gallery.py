"""The galleries that a text-to-image model is measured against, and who looks: a feature network, and the model's own
CLIP where it brings one.

B: queries; G: pictures of a gallery; S: their side in pixels; D: width of embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genkit.media.image import Image
from genkit.metrics.features import Features
from pipelines.stable_diffusion.measuring.retrieval import likeness, nearer, opened, ranks, shares

if TYPE_CHECKING:
    from pipelines.stable_diffusion.choosing import Judge
    from pipelines.stable_diffusion.train.captioned import Pair

__all__ = ["Gallery"]

BATCH = 16


@dataclass(frozen=True)
class Gallery:
    """True pictures, [G, 3, S, S] in 0..1, and what they look like."""

    name: str
    true: Tensor
    features: Features
    known: Tensor
    """Their features, [G, C]."""
    others: Tensor
    """The same things by another hand, [G, 3, S, S]; where there is none, the picture itself."""
    known_others: Tensor
    judge: Judge | None
    texts: Tensor | None
    """Embeddings of their captions, [G, D]."""

    @classmethod
    def of(
        cls,
        name: str,
        pairs: Sequence[Pair],
        partners: dict[Path, Path],
        size: int,
        features: Features,
        judge: Judge | None,
    ) -> Gallery:
        true = opened([pair.path for pair in pairs], size)
        others = opened([partners.get(pair.path, pair.path) for pair in pairs], size)
        texts = _texts(judge, [pair.caption for pair in pairs]) if judge else None
        device = features.mean.device
        known, known_others = features.of(true.to(device)), features.of(others.to(device))
        return cls(name, true, features, known, others, known_others, judge, texts)

    def row(self, way: str, pictures: Tensor, right: Tensor) -> dict[str, Any]:
        """How often the right one of the gallery is found for each of some pictures, [B, 3, S, S] in 0..1."""
        looks = self.features.of(pictures.to(self.features.mean.device))
        row: dict[str, Any] = {"pairs": self.name, "pictures": way, "count": len(pictures)}
        row |= shares(ranks(likeness(looks, self.known), right))
        row["right hand"] = nearer(looks, self.known, self.known_others, right)
        if self.judge and self.texts is not None:
            row |= shares(ranks(_pictures(self.judge, pictures) @ self.texts.T, right), "caption ")
        return row

    def rows(self, made: Tensor, again: Tensor) -> list[dict[str, Any]]:
        """made: from the first captions; again: as many true pictures as the VAE keeps them; both [B, 3, S, S]."""
        own = torch.arange(len(made))
        rows = [
            self.row("made", made, own),
            self.row("made from another caption", made.roll(1, 0), own),
            self.row("true, through the VAE", again, own),
            self.row("true", self.true[: len(made)], own),
        ]
        paired = own[(self.others != self.true).flatten(1).any(1)[: len(made)]]
        return rows + ([self.row("true, by another hand", self.others[paired], paired)] if len(paired) > 1 else [])


@torch.no_grad()
def _texts(judge: Judge, captions: Sequence[str]) -> Tensor:
    """[B, D] of unit length."""
    return F.normalize(torch.cat([judge.embedded(caption) for caption in captions]), dim=1)


@torch.no_grad()
def _pictures(judge: Judge, pictures: Tensor) -> Tensor:
    """[B, 3, S, S] in 0..1 -> [B, D] of unit length."""
    parts = [judge.seen([Image.from_tensor(picture) for picture in part]) for part in pictures.split(BATCH)]
    return F.normalize(torch.cat(parts), dim=1)
