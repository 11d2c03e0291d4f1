"""KID and FID while training: whether what the generators make looks like the pictures they are to look like.

A task needs three lines, and a Config with `features: FeatureRef = None`:

    best = ("kid", "min")                                               # in the class: the best checkpoint
    self.quality = Quality.of(config.features, setup.device)            # in __init__; None where it is not wanted
    return self.quality.measure(self, {"b": to_b, "a": to_a}) if self.quality else {}       # in validate

`kid` is the mean over the directions; `kid_b` and `fid_b` are those of what is made to look like B, and so on.

Choices made here:
- What is made of held-out pictures is held against the pictures of the other look that are trained on: they are many,
  and show other things than the held-out ones, as two independent draws should.
- At most `MOST` pictures on each side, evenly from all; the features of the real ones are kept from the first time on.
- Without held-out pictures, those trained on are translated.
- Every picture is a square of the training's size, read as the training reads it: its middle, not mirrored.
- Lower numbers are better, and comparable within one feature network, size and choice of pictures. FID of few pictures
  is high for that alone.

B: pictures; S: their side in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Protocol, TypeAlias

import torch
from pydantic import Field
from torch import Tensor

from genkit.metrics.features import LAST, Features
from genkit.metrics.image import fid, kid
from genkit.training.data import ImageFolder
from pipelines.image_translation.train.pictures import whole

__all__ = ["MOST", "FeatureRef", "Quality"]

FeatureRef: TypeAlias = Annotated[
    str | None,
    Field(
        description="Feature network that KID and FID are measured with every `validate_every` steps: "
        "torchvision:squeezenet1_0 (fetched where it is not here) or a file; null: they are not measured."
    ),
]
Generator: TypeAlias = Callable[[Tensor], Tensor]
MOST = 500
BATCH = 16


class Looks(Protocol):
    """What a task holds: pictures of both looks to train on, and the files of each that are held out."""

    a: ImageFolder
    b: ImageFolder
    held_a: list[Path]
    held_b: list[Path]


class Quality:
    """Measures generators by a feature network. Make one with `Quality.of`."""

    def __init__(self, features: Features, device: torch.device) -> None:
        self.features, self.device = features, device
        self.real: dict[str, Tensor] = {}
        """Features of the real pictures, by look."""

    @classmethod
    def of(cls, ref: str | None, device: torch.device) -> Quality | None:
        """With the network that a reference names; None for none. Raises ModelError, InputError."""
        if not ref:
            return None
        probe = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
        fid(probe, probe)  # whether torchmetrics is there is known before anything is trained
        return cls(Features.load(ref).to(device), device)

    @torch.no_grad()
    def measure(self, looks: Looks, generators: Mapping[str, Generator]) -> dict[str, float]:
        """generators: by the look that they make, "b" or "a"; each takes pictures [B, 3, S, S] in -1..1 of the other.

        Returns kid_b, fid_b and so on, and `kid` and `fid`, their means.
        """
        found: dict[str, float] = {}
        for look, generator in generators.items():
            target, source, held = (looks.b, looks.a, looks.held_a) if look == "b" else (looks.a, looks.b, looks.held_b)
            if look not in self.real:
                self.real[look] = self._features(target, target.paths, lambda pictures: pictures)
            made = self._features(source, held if len(held) > 1 else source.paths, generator)
            found[f"kid_{look}"] = kid(self.real[look], made).value
            found[f"fid_{look}"] = fid(self.real[look][:, -LAST:], made[:, -LAST:])
        for measure in ("kid", "fid"):
            found[measure] = sum(found[f"{measure}_{look}"] for look in generators) / len(generators)
        return found

    def _features(self, like: ImageFolder, paths: Sequence[Path], generator: Generator) -> Tensor:
        count = min(MOST, len(paths))
        chosen = [paths[place * len(paths) // count] for place in range(count)]
        found = []
        for start in range(0, count, BATCH):
            pictures = whole(like, chosen[start : start + BATCH]).to(self.device)
            made = generator(pictures).float().clamp(-1, 1)
            found.append(self.features.of((made + 1) / 2))
        return torch.cat(found)
