"""Two folders of pictures to learn a translation from: unpaired (each drawn by itself) or paired by their names.

Choices made here:
- Pictures are brought to a square of `load_size` whatever their ratio, bicubic, as published; `resize: cover` keeps the
  ratio and lets the crop decide. Reducing is antialiased, as Pillow's resize (which the authors used) is.
- A run may hold names out: the `held_out` names, over both folders, whose SHA-256 is smallest. That depends on nothing
  but the names, so the same pictures stay unseen in every run, both ways, and whoever measures finds them again.
- What is wrong with the data is said before anything is trained: what is left out by name, and refused if `strict`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from genkit.errors import InputError
from genkit.training.data import Draw, ImageFolder, fit, open_image
from genkit.training.task import Folders, Setup, TaskConfig

__all__ = ["Cropping", "Looks", "Paired", "Pairs", "Unpaired", "held_names", "paired_folders", "two_folders", "whole"]

LEFT_OUT = "; repair or remove them, or leave out `strict`"


class Looks(TaskConfig):
    a: Folders = Field(description="Folders of pictures in the first look.")
    b: Folders = Field(description="Folders of pictures in the second look.")


class Pairs(TaskConfig):
    a: Folders | None = Field(None, description="Folders of pictures in the first look.")
    b: Folders | None = Field(None, description="Folders of the same pictures, by name, in the second look.")
    ab: Folders | None = Field(None, description="Instead: folders of pictures whose left half is A, the right one B.")


class Cropping(TaskConfig):
    """How pictures come to the size of training: what the three tasks share of it."""

    held_out: int = Field(0, ge=0, le=10**6, description="Names that are not trained on, over both folders.")
    size: int = Field(256, ge=32, le=2048, multiple_of=4, description="Side of the crops, px.")
    load_size: int = Field(286, ge=32, le=4096, description="Side that pictures are brought to before cropping, px.")
    resize: Literal["square", "cover"] = Field(
        "square", description="Bring both sides to load_size, or the shorter one and keep the ratio."
    )
    flip: bool = Field(True, description="Mirror half of the pictures.")


def held_names(names: Iterable[str], count: int) -> frozenset[str]:
    """The `count` names that are held out: those whose SHA-256 is smallest."""
    return frozenset(sorted(set(names), key=lambda name: hashlib.sha256(name.encode()).digest())[:count])


def two_folders(
    looks: Looks, cropping: Cropping, setup: Setup
) -> tuple[ImageFolder, ImageFolder, list[Path], list[Path]]:
    """Pictures of A and of B to train on (-1..1), and the files of each that are held out.

    Raises InputError or MediaError for an empty folder, one that is held out entirely, the same files as A and as B.
    """
    a, b = _folder(looks.a, cropping, setup), _folder(looks.b, cropping, setup)
    same = {path.resolve() for path in a.paths} & {path.resolve() for path in b.paths}
    if same:
        raise InputError(f"data.a and data.b share {len(same)} file(s), as {min(same).name}; name two folders")
    held = held_names((path.stem for path in (*a.paths, *b.paths)), cropping.held_out)
    return a, b, _hold_out(a, held, looks.a), _hold_out(b, held, looks.b)


def paired_folders(
    pairs: Pairs, cropping: Cropping, setup: Setup
) -> tuple[ImageFolder, ImageFolder, list[Path], list[Path]]:
    """As `two_folders`, of pictures that belong together, in the same order.

    Raises InputError or MediaError also where nothing pairs, and if `setup.strict` where anything does not.
    """
    if pairs.ab and not pairs.a and not pairs.b:
        a, b = _folder(pairs.ab, cropping, setup, left_half), _folder(pairs.ab, cropping, setup, right_half)
        roots_a = roots_b = pairs.ab
    elif pairs.a and pairs.b and not pairs.ab:
        a, b = _folder(pairs.a, cropping, setup), _folder(pairs.b, cropping, setup)
        roots_a, roots_b = pairs.a, pairs.b
        _match(a, b, roots_a, roots_b, setup)
    else:
        raise InputError("give data.a and data.b, whose names pair them, or data.ab, pictures side by side")
    held = held_names((path.stem for path in a.paths), cropping.held_out)
    return a, b, _hold_out(a, held, roots_a), _hold_out(b, held, roots_b)


def _folder(
    folders: Sequence[Path], cropping: Cropping, setup: Setup, read: Callable[[Path], Tensor] = open_image
) -> ImageFolder:
    """The pictures of some folders in -1..1. Says how many are enlarged to the crop, or refuses them if strict."""
    c = cropping
    found = ImageFolder(
        folders,
        size=c.size,
        load_size=c.load_size,
        resize=c.resize,
        flip=c.flip,
        value_range=(-1.0, 1.0),
        read=read,
        setup=setup,
    )
    small = [path for path in found.paths if min(found.sizes[path]) < c.size]
    if small:
        words = f"{folders[0]}: {len(small)} picture(s) of {len(found)} smaller than the crop of {c.size} px"
        if setup.strict:
            raise InputError(f"{words}, as {small[0].name}; lower `size`, or leave out `strict` to enlarge them")
        setup.say(f"{words} are enlarged")
    return found


def _match(a: ImageFolder, b: ImageFolder, roots_a: Sequence[Path], roots_b: Sequence[Path], setup: Setup) -> None:
    """Leaves in both folders only what has its like in the other, in the same order."""
    of_a, of_b = _by_name(a.paths, roots_a), _by_name(b.paths, roots_b)
    bad = [f"{path}: no picture of that name in {roots_b[0]}" for name, path in of_a.items() if name not in of_b]
    bad += [f"{path}: no picture of that name in {roots_a[0]}" for name, path in of_b.items() if name not in of_a]
    names = [name for name in of_a if name in of_b]
    if not names:
        raise InputError(f"{roots_a[0]} and {roots_b[0]} have no name in common; pairs are found by their names")
    for name in names:
        (h, w), (h_b, w_b) = a.sizes[of_a[name]], b.sizes[of_b[name]]
        if abs(h * w_b - h_b * w) > 0.02 * h * w_b:
            bad.append(f"{of_a[name]}: {w}x{h} px, but its pair is {w_b}x{h_b}")
            del of_a[name]
    if bad and setup.strict:
        raise InputError(f"{bad[0]} ({len(bad)} such picture(s){LEFT_OUT})")
    for text in bad[:10]:
        setup.say(f"left out: {text}")
    if bad:
        setup.say(f"left out {len(bad)} picture(s) that do not pair; {len(names)} names are in both folders")
    a.paths = [of_a[name] for name in names if name in of_a]
    b.paths = [of_b[name] for name in names if name in of_a]
    if not a.paths:
        raise InputError(f"{roots_a[0]}: no picture has the ratio of its pair; the first: {bad[-1]}")


def _by_name(paths: Sequence[Path], roots: Sequence[Path]) -> dict[str, Path]:
    """Files by their name below their folder, without suffix. Raises InputError where two have the same."""
    found: dict[str, Path] = {}
    for path in paths:
        root = next(root for root in roots if path.is_relative_to(root))
        name = str(path.relative_to(root).with_suffix(""))
        if name in found:
            raise InputError(f"{path} and {found[name]} have the same name; pairs need names of their own")
        found[name] = path
    return found


def left_half(path: Path) -> Tensor:
    """A of a picture that has A and B side by side, as pix2pix's data sets have them."""
    picture = open_image(path)
    return picture[:, :, : picture.shape[2] // 2]


def right_half(path: Path) -> Tensor:
    """B of a picture that has A and B side by side; as wide as A, so a column in the middle may belong to neither."""
    picture = open_image(path)
    return picture[:, :, (picture.shape[2] + 1) // 2 :]


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
        again, place = divmod(int(draw), len(self.a))
        # Seeds that differ, so that a picture which comes twice in an epoch is cropped anew.
        return {
            "a": self.a[Draw(place, draw.epoch, draw.seed + again)],
            "b": self.b[Draw(other, draw.epoch, draw.seed + 1 + int(draw))],
        }


class Paired(Dataset[dict[str, Tensor]]):
    """A picture in both looks: the same draw decides, so both are cropped at the same place and mirrored together."""

    def __init__(self, a: ImageFolder, b: ImageFolder) -> None:
        self.a, self.b = a, b

    def __len__(self) -> int:
        return len(self.a)

    def __getitem__(self, draw: int) -> dict[str, Tensor]:
        return {"a": self.a[draw], "b": self.b[draw]}


def whole(like: ImageFolder, paths: Sequence[Path]) -> Tensor:
    """Pictures [B, 3, size, size] in -1..1, read as `like` reads its own, not cropped at random nor mirrored."""
    size, found = like.size, []
    for path in paths:
        picture = fit(like.read(path), size, square=like.square)
        top, left = ((side - size) // 2 for side in picture.shape[1:])
        found.append(picture[:, top : top + size, left : left + size].float() / 127.5 - 1)
    return torch.stack(found)
