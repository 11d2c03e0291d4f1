"""The pictures a style network learns on: varied crops from folders, and pictures drawn by rule.

Several folders take equal turns whatever their counts, so that two photographs are not drowned by a thousand icons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from genkit.training.data import IMAGE_SUFFIXES, Draw, fit, list_files, open_image, readable
from genkit.training.task import Setup
from pipelines.style_transfer.train.augment import dead_leaves, random_crop, recolour, uniform

__all__ = ["Crops", "Variety", "whole_pictures"]


@dataclass(frozen=True)
class Variety:
    """How far crops vary: `scale` of the shorter side, `colour` 0..1, shares of blended and of drawn pictures.

    flattest: crops whose channels all vary less over the positions (standard deviation) are not used. Instance
    normalisation of a single colour divides by next to nothing in every layer, and its gradient overflows.
    """

    scale: tuple[float, float] = (0.5, 1.0)
    colour: float = 0.0
    mixed: float = 0.0
    drawn: float = 0.0
    flattest: float = 0.0


class Crops(Dataset[Tensor]):
    """Crops [3, size, size] in 0..1, as many an epoch as there are pictures, each a pure function of its `Draw`.

    largest: pictures are brought to this shorter side when read, which bounds what is kept in memory.
    """

    def __init__(
        self, folders: Sequence[Path], size: int, variety: Variety, setup: Setup, *, largest: int = 768
    ) -> None:
        self.folders = [readable(list_files([folder], IMAGE_SUFFIXES), open_image, setup) for folder in folders]
        self.size, self.variety, self.largest = size, variety, largest
        self._kept: dict[Path, Tensor] = {}

    def __len__(self) -> int:
        return sum(map(len, self.folders))

    def __getitem__(self, draw: int) -> Tensor:
        draw = draw if isinstance(draw, Draw) else Draw(draw)
        generator = draw.generator()
        crop = self._one(generator)
        if uniform(generator, 0, 1) < self.variety.mixed:
            share = uniform(generator, 0, 1)
            crop = share * crop + (1 - share) * self._one(generator)
        return crop

    def _one(self, generator: torch.Generator) -> Tensor:
        if uniform(generator, 0, 1) < self.variety.drawn:
            return dead_leaves(self.size, generator)
        for _ in range(8):
            folder = self.folders[int(torch.randint(len(self.folders), (), generator=generator))]
            path = folder[int(torch.randint(len(folder), (), generator=generator))]
            crop = random_crop(self._read(path), self.size, generator, scale=self.variety.scale)
            if not self.variety.flattest or crop.std((1, 2)).max() > self.variety.flattest:
                return recolour(crop, generator, self.variety.colour) if self.variety.colour else crop
        return dead_leaves(self.size, generator)

    def _read(self, path: Path) -> Tensor:
        if path not in self._kept:
            picture = open_image(path)
            picture = fit(picture, self.largest) if min(picture.shape[1:]) > self.largest else picture
            if sum(kept.numel() for kept in self._kept.values()) + picture.numel() > 1 << 30:
                return picture.float() / 255
            self._kept[path] = picture
        return self._kept[path].float() / 255


def whole_pictures(folder: Path, setup: Setup, *, side: int = 256, count: int = 16) -> list[Tensor]:
    """The first pictures of a folder as [1, 3, H, W] in 0..1, their shorter side `side`: what validation looks at."""
    paths = readable(list_files([folder], IMAGE_SUFFIXES)[:count], open_image, setup)
    return [fit(open_image(path), side)[None].float() / 255 for path in paths]
