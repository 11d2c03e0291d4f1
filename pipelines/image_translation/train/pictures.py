"""Two folders of pictures to learn a translation from: unpaired (each drawn by itself) or paired by file name.

A run may hold names out: the `held_out` names, over both folders, whose SHA-256 is smallest. That depends on nothing but
the names, so the same pictures stay unseen in every run, in both directions, and whoever measures finds them again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from genkit.errors import InputError
from genkit.training.data import Draw, ImageFolder
from genkit.training.task import Folders, Setup, TaskConfig

__all__ = ["Looks", "Unpaired", "held_names", "two_folders"]


class Looks(TaskConfig):
    a: Folders = Field(description="Folders of pictures in the first look.")
    b: Folders = Field(description="Folders of pictures in the second look.")


def held_names(names: Iterable[str], count: int) -> frozenset[str]:
    """The `count` names that are held out: those whose SHA-256 is smallest."""
    return frozenset(sorted(set(names), key=lambda name: hashlib.sha256(name.encode()).digest())[:count])


def two_folders(
    looks: Looks, *, size: int, load_size: int, flip: bool, held_out: int, setup: Setup | None
) -> tuple[ImageFolder, ImageFolder, list[Path], list[Path]]:
    """Pictures of A and of B to train on (-1..1), and the files of each that are held out.

    Raises InputError or MediaError for an empty folder, for one that is held out entirely, for pictures too small.
    """
    sides = {"size": size, "load_size": load_size, "flip": flip, "value_range": (-1.0, 1.0), "setup": setup}
    a, b = ImageFolder(looks.a, **sides), ImageFolder(looks.b, **sides)  # type: ignore[arg-type]
    held = held_names((path.stem for path in (*a.paths, *b.paths)), held_out)
    out_a, out_b = _hold_out(a, held, looks.a), _hold_out(b, held, looks.b)
    return a, b, out_a, out_b


def _hold_out(pictures: ImageFolder, held: frozenset[str], folders: Sequence[Path]) -> list[Path]:
    """Takes the held-out files from a folder's pictures, and returns them."""
    out = [path for path in pictures.paths if path.stem in held]
    pictures.paths = [path for path in pictures.paths if path.stem not in held]
    if not pictures.paths:
        raise InputError(f"{folders[0]}: all {len(out)} pictures are held out; lower held_out or give more pictures")
    return out


class Unpaired(Dataset[dict[str, Tensor]]):
    """A picture of each look, as many items as the larger folder has: A in turn, B drawn at random, as published."""

    def __init__(self, a: ImageFolder, b: ImageFolder) -> None:
        self.a, self.b = a, b

    def __len__(self) -> int:
        return max(len(self.a), len(self.b))

    def __getitem__(self, draw: int) -> dict[str, Tensor]:
        draw = draw if isinstance(draw, Draw) else Draw(draw)
        other = int(torch.randint(len(self.b), (), generator=draw.generator("partner")))
        return {
            "a": self.a[Draw(int(draw) % len(self.a), draw.epoch, draw.seed)],
            "b": self.b[Draw(other, draw.epoch, draw.seed + 1)],
        }
