"""The pictures that a translation is measured on: two folders, split as the trainings split them.

Every picture is brought to a square of one size: its shorter side scaled to it, the middle cut out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from genkit.errors import InputError
from genkit.training.data import IMAGE_SUFFIXES, fit, list_files, open_image, readable

__all__ = ["Split", "opened", "parts", "split"]

PART = 64  # pictures held as floats at once


@dataclass(frozen=True)
class Split:
    """The files of both looks that a training learned from, and those that it held out; by name, sorted."""

    learned_a: list[Path]
    learned_b: list[Path]
    held_a: list[Path]
    held_b: list[Path]

    def partners(self, paths: Sequence[Path]) -> dict[int, Path]:
        """Place among `paths`, of A -> the held-out picture of B with the same name."""
        other = {path.stem: path for path in self.held_b}
        return {place: other[path.stem] for place, path in enumerate(paths) if path.stem in other}


def split(a: Path, b: Path, held_out: int, say: Callable[[str], None]) -> Split:
    """The files of two folders, as a training with this `held_out` splits them. Unreadable ones are told to `say`.

    Raises InputError where a folder has no pictures, or too few on one side of the split; MediaError where none of
    its pictures can be read.
    """
    from pipelines.image_translation.train.pictures import held_names

    found = [_listed(folder, say) for folder in (a, b)]
    held = held_names((path.stem for paths in found for path in paths), held_out)
    learned_a, learned_b = ([path for path in paths if path.stem not in held] for paths in found)
    held_a, held_b = ([path for path in paths if path.stem in held] for paths in found)
    for folder, learned, out in ((a, learned_a, held_a), (b, learned_b, held_b)):
        if len(learned) < 2:
            count = len(learned) + len(out)
            raise InputError(
                f"{folder}: {len(out)} of {count} pictures are held out; lower --held-out, two must be left"
            )
        if len(out) < 2:
            raise InputError(f"{folder}: {len(out)} of its pictures are held out, two are needed; raise --held-out")
    return Split(learned_a, learned_b, held_a, held_b)


def _listed(folder: Path, say: Callable[[str], None]) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give one that holds pictures of one look")
    paths = list_files([folder], IMAGE_SUFFIXES)
    good = readable(paths, open_image, None)
    if len(good) < len(paths):
        bad = next(path for path in paths if path not in set(good))
        say(f"left out {len(paths) - len(good)} unreadable file(s) of {len(paths)} in {folder}, such as {bad.name}")
    return good


def opened(paths: Iterable[Path], size: int) -> Tensor:
    """Pictures [B, 3, size, size] in 0..1."""
    return torch.stack([_square(path, size) for path in paths])


def parts(paths: Sequence[Path], size: int) -> Iterator[Tensor]:
    """The same, some at a time."""
    for start in range(0, len(paths), PART):
        yield opened(paths[start : start + PART], size)


def _square(path: Path, size: int) -> Tensor:
    picture = fit(open_image(path), size)
    top, left = ((side - size) // 2 for side in picture.shape[1:])
    return picture[:, top : top + size, left : left + size].float() / 255
