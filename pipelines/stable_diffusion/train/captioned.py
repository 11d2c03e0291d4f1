"""Folders of pictures with captions, as Hugging Face's `imagefolder` has them: a `metadata.jsonl` in each folder with a
line {"file_name": "a.png", "text": "red apple"} for every picture.

Choices made here:
- A caption is made by a template, so that several folders tell their pictures apart: with "{text}, {folder} style" the
  picture `a.png` of the folder `noto` is "red apple, noto style".
- A run may hold pictures out: the `held_out` file names whose SHA-256 is smallest, each in one of the folders that have
  it, which the same hash decides. Of every held-out picture the likeness in the other folders stays, so what is asked
  of a model that never saw it is a known thing in a known manner. That depends on the names alone: every training of a
  model (CLIP, VAE, UNet) and whoever measures it find the same ones.
- Pictures without a caption, and captions without a picture, are named and left out, or refused if `strict`.

B: pictures; S: their side in pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from genkit.errors import InputError
from genkit.training.data import Draw, ImageFolder, fit
from genkit.training.task import Folders, Setup, TaskConfig

__all__ = ["Captioned", "CaptionedConfig", "Pair", "filled", "find_pairs", "held_pairs", "in_rows", "picture"]

METADATA = "metadata.jsonl"
MOST = 1 << 30  # bytes of a metadata.jsonl


class CaptionedConfig(TaskConfig):
    """What the trainings that read captioned pictures share."""

    data: Folders = Field(description="Folders of pictures, each with a metadata.jsonl of captions.")
    caption: str = Field(
        "{text}", max_length=500, description="What a caption is made of: {text}, and {folder}, its folder's name."
    )
    held_out: int = Field(
        0, ge=0, le=10**6, description="Pictures that are not trained on; the card's numbers need some."
    )
    size: int = Field(128, ge=16, le=2048, multiple_of=8, description="Side of the pictures, px.")


@dataclass(frozen=True)
class Pair:
    """A picture's file and its caption. `text`: the caption before the template; `folder`: the folder's name."""

    path: Path
    caption: str
    text: str
    folder: str


def find_pairs(config: CaptionedConfig, setup: Setup) -> list[Pair]:
    """All pictures with their captions, by folder and name. Raises InputError where there are none."""
    found: list[Pair] = []
    complaints: list[str] = []
    for folder in config.data:
        texts = dict(_captions(folder))
        for name, text in sorted(texts.items()):
            path = folder / name
            if path.is_file():
                found.append(Pair(path, filled(config.caption, text, folder.name), text, folder.name))
            else:
                complaints.append(f"{folder / METADATA} names {name!r}, which is not there")
    if not found:
        raise InputError(f"{complaints[0] if complaints else config.data[0]}; no picture with a caption is left")
    if complaints and setup.strict:
        raise InputError(f"{complaints[0]} ({len(complaints)} such lines; mend them, or leave out `strict`)")
    for text in complaints[:10]:
        setup.say(f"left out: {text}")
    return found


def _captions(folder: Path) -> Iterator[tuple[str, str]]:
    """(file name, text) of each line of a folder's metadata. Raises InputError that names the line."""
    path = folder / METADATA
    if not path.is_file():
        raise InputError(
            f'{folder} has no {METADATA}; put one there with a line {{"file_name": ..., "text": ...}} for each picture'
        )
    if path.stat().st_size > MOST:
        raise InputError(f"{path} is larger than {MOST >> 30} GiB; split the folder")
    for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            name, text = value["file_name"], value["text"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise InputError(f'{path}, line {number}: is not {{"file_name": ..., "text": ...}}') from None
        if not isinstance(name, str) or not isinstance(text, str) or not name or not text.strip():
            raise InputError(f"{path}, line {number}: file_name and text must be words")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise InputError(f"{path}, line {number}: {name!r} points out of the folder")
        yield name, text.strip()


def filled(template: str, text: str, folder: str) -> str:
    """The caption that a template makes of a text."""
    return template.replace("{folder}", folder).replace("{text}", text)  # in this order: a text may hold braces


def held_pairs(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """The `count` pairs that are held out; see the module's docstring. Fewer where fewer names are in two folders.

    With one folder only there is no likeness to keep: then they are simply the `count` smallest hashes.
    """
    by_name: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_name.setdefault(pair.path.name, []).append(pair)
    several = len({pair.path.parent for pair in pairs}) > 1
    names = sorted((name for name, all_of in by_name.items() if len(all_of) > 1 or not several), key=_hash)
    return [by_name[name][_hash(name)[-1] % len(by_name[name])] for name in names[:count]]


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


class Captioned:
    """The pictures that are trained on and their captions; indexed by a `Draw` it gives {"picture": float32 [3, S, S]
    in -1..1, "index": the pair's number}.

    load_size, flip, crop: as of `ImageFolder`. Raises InputError or MediaError where there is nothing to learn from.
    """

    def __init__(
        self,
        config: CaptionedConfig,
        setup: Setup,
        *,
        load_size: int | None = None,
        flip: bool = False,
        crop: str = "center",
    ) -> None:
        pairs = find_pairs(config, setup)
        held = held_pairs(pairs, config.held_out)
        by_path = {pair.path: pair for pair in pairs}
        self.images = ImageFolder(
            config.data,
            size=config.size,
            load_size=load_size,
            crop=crop,
            flip=flip,
            value_range=(-1.0, 1.0),
            setup=setup,
        )
        good = set(self.images.paths)
        uncaptioned = sorted(path.name for path in good - set(by_path))
        if uncaptioned:
            setup.say(f"left out: {len(uncaptioned)} picture(s) without a caption, as {uncaptioned[0]}")
        self.held = [pair for pair in held if pair.path in good]
        """Pairs that are not trained on."""
        without = {pair.path for pair in held}
        self.images.paths = [path for path in self.images.paths if path in by_path and path not in without]
        self.pairs = [by_path[path] for path in self.images.paths]
        """Pairs that are trained on, in the order of the items."""
        if not self.pairs:
            raise InputError(f"{config.data[0]}: all {len(pairs)} pictures are held out; lower held_out")
        setup.say(f"{len(self.pairs)} captioned pictures to learn from, {len(self.held)} held out")

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, draw: int) -> dict[str, Tensor]:
        draw = draw if isinstance(draw, Draw) else Draw(draw)
        return {"picture": self.images[draw], "index": torch.tensor(int(draw))}

    def show(self, pairs: Sequence[Pair]) -> Tensor:
        """Whole pictures of some pairs, [B, 3, S, S] in -1..1."""
        return torch.stack([picture(self.images, pair.path) for pair in pairs])


def picture(images: ImageFolder, path: Path) -> Tensor:
    """One picture [3, S, S] in -1..1, its middle, read as the folder reads its own."""
    size = images.size
    found = fit(images.read(path), size)
    top, left = ((side - size) // 2 for side in found.shape[1:])
    return found[:, top : top + size, left : left + size].float() / 127.5 - 1


def in_rows(*rows: Tensor) -> Tensor:
    """Rows of pictures, [B, 3, H, W] each, as one picture [3, rows x H, B x W]."""
    return torch.cat([torch.cat(list(row.float()), 2) for row in rows], 1)
