"""Which items come when, and folders of pictures.

Order is a pure function of a position (the number of batches drawn so far), so a checkpoint saves one integer. A
sampler gives the whole batch of that position; each process takes its part of it, so that the global batch is the same
whatever the number of processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from genkit.errors import InputError, MediaError
from genkit.media import files
from genkit.media.image import Image

if TYPE_CHECKING:
    from genkit.training.task import Setup

__all__ = [
    "IMAGE_SUFFIXES",
    "Draw",
    "ImageFolder",
    "Lanes",
    "Sampler",
    "Shuffled",
    "batches",
    "fit",
    "list_files",
    "open_image",
    "readable",
]

IMAGE_SUFFIXES = files.SUFFIXES["image"]


class Draw(int):
    """An item's number, with what its randomness is made from. A dataset that needs none uses it as the int it is."""

    seed: int
    epoch: int

    def __new__(cls, index: int, epoch: int = 0, seed: int = 0) -> Draw:
        self = super().__new__(cls, index)
        self.epoch, self.seed = epoch, seed
        return self

    def __getnewargs__(self) -> tuple[int, int, int]:  # type: ignore[override]
        return int(self), self.epoch, self.seed

    def generator(self, stream: str = "") -> torch.Generator:
        """A CPU generator of this item's own in this epoch. `stream` gives independent ones to independent uses."""
        return torch.Generator().manual_seed(_hash(self.seed, self.epoch, int(self), stream))


def _hash(*parts: object) -> int:
    """63 bits from any parts, the same in every process and Python (unlike `hash`)."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


class Sampler(Protocol):
    """Says which items make the batch at a position, for ever."""

    def batch(self, position: int) -> list[Draw]:
        """The whole batch, for all processes together; always of the same length."""


class Shuffled:
    """Every item once an epoch, in an order of that epoch's own; batches run across the ends of epochs."""

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self._order = lru_cache(2)(self._shuffle)

    def _shuffle(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(_hash(self.seed, epoch, "order"))
        return torch.randperm(self.count, generator=generator).tolist()

    def batch(self, position: int) -> list[Draw]:
        places = range(position * self.batch_size, (position + 1) * self.batch_size)
        rounds = (divmod(place, self.count) for place in places)
        return [Draw(self._order(epoch)[place], epoch, self.seed) for epoch, place in rounds]

    def __getstate__(self) -> dict[str, Any]:  # a reading process makes its own cache
        return {"count": self.count, "batch_size": self.batch_size, "seed": self.seed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class Lanes:
    """Ordered items: `batch_size` lanes walk through the items side by side, each in order, so row b of one batch is
    what follows row b of the batch before (segments of long texts or pieces, with memory carried across them).

    A lane has `count // batch_size` items; what is left over at the end is not used. At the start of a lane
    (`draw.epoch` has changed) memory must be forgotten.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.batch_size, self.seed = batch_size, seed
        self.length = count // batch_size
        if not self.length:
            raise InputError(
                f"{count} segments are fewer than batch_size {batch_size}; give more data or a smaller batch"
            )

    def batch(self, position: int) -> list[Draw]:
        epoch, place = divmod(position, self.length)
        return [Draw(lane * self.length + place, epoch, self.seed) for lane in range(self.batch_size)]


class _Positions:
    """The keys of this process's part of each batch, from a position on: what a DataLoader calls a batch sampler."""

    def __init__(self, sampler: Sampler, start: int, rank: int, processes: int) -> None:
        self.sampler, self.start, self.rank, self.processes = sampler, start, rank, processes

    def __iter__(self) -> Iterator[list[Draw]]:
        position = self.start
        while True:
            keys = self.sampler.batch(position)
            share = len(keys) // self.processes
            yield keys[self.rank * share : (self.rank + 1) * share]
            position += 1


def batches(
    dataset: Any,
    sampler: Sampler,
    *,
    start: int = 0,
    rank: int = 0,
    processes: int = 1,
    workers: int = 0,
    pinned: bool = False,
    collate: Callable[[list[Any]], Any] | None = None,
) -> Iterator[Any]:
    """Batches for ever, from position `start` on. pinned: in memory that a GPU copies from on the side."""
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=_Positions(sampler, start, rank, processes),
        collate_fn=collate,
        num_workers=workers,
        # A loader draws a number when it starts: from a generator of its own, so that resuming changes nothing else.
        generator=torch.Generator().manual_seed(0),
        multiprocessing_context="spawn" if workers else None,
        persistent_workers=bool(workers),
        pin_memory=pinned,
    )
    return iter(loader)


def list_files(folders: Sequence[Path], suffixes: Sequence[str], *, recursive: bool = True) -> list[Path]:
    """The files of some folders with one of these suffixes (lower case, with dot), sorted, hidden ones left out.

    Raises InputError if there is none.
    """
    found = [
        path
        for folder in folders
        for path in sorted(folder.rglob("*") if recursive else folder.iterdir())
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    ]
    if not found:
        names = ", ".join(map(str, folders))
        raise InputError(
            f"{names}: no files ending in {', '.join(sorted(suffixes))} in there; name a folder that holds some"
        )
    return found


def readable(paths: Sequence[Path], check: Callable[[Path], object], setup: Setup | None) -> list[Path]:
    """The files that `check` reads without an error. The others are named and counted, or refused if `setup.strict`.

    Raises MediaError if none is left, or at the first bad one if strict.
    """

    def complaint(path: Path) -> str | None:
        try:
            check(path)
        except (MediaError, OSError, ValueError, SyntaxError) as error:
            return str(error) if str(path) in str(error) else f"{path}: {error}"
        return None

    with ThreadPoolExecutor(4) as pool:  # decoding lets go of Python's lock
        complaints = list(pool.map(complaint, paths))
    bad = [text for text in complaints if text]
    if bad and setup and setup.strict:
        raise MediaError(f"{bad[0]} ({len(bad)} such file(s); repair or remove them, or leave out `strict`)")
    if bad and setup:
        for text in bad[:10]:
            setup.say(f"left out: {text}")
        setup.say(f"left out {len(bad)} unreadable file(s) of {len(paths)}")
    good = [path for path, text in zip(paths, complaints, strict=True) if text is None]
    if not good:
        raise MediaError(f"none of {len(paths)} files can be read; the first: {bad[0]}")
    return good


class ImageFolder(Dataset[Tensor]):
    """The pictures of a folder as float32 [3, size, size]: the shorter side brought to `load_size`, a random square of
    `size` px cut out, mirrored half the time if `flip`. Indexed by a `Draw`, whose generator decides.

    load_size: px, default `size`; resize: "cover", or "square" to bring both sides to `load_size` whatever their ratio;
    value_range: what black and white become; crop: "random" or "center" (nothing random then); read: a file as uint8
    [3, H, W]; keep: bytes of memory for decoded pictures (at load_size, 8 bits). Unreadable files are left out by name,
    or refused if `setup.strict`. Raises InputError or MediaError where there is nothing to learn from.
    """

    def __init__(
        self,
        folders: Path | Sequence[Path],
        *,
        size: int,
        load_size: int | None = None,
        resize: str = "cover",
        crop: str = "random",
        flip: bool = True,
        value_range: tuple[float, float] = (0.0, 1.0),
        recursive: bool = True,
        read: Callable[[Path], Tensor] | None = None,
        keep: int = 1 << 30,
        setup: Setup | None = None,
    ) -> None:
        paths = list_files([folders] if isinstance(folders, Path) else folders, IMAGE_SUFFIXES, recursive=recursive)
        self.size, self.load_size = size, max(size, load_size or size)
        self.square = resize == "square"
        self.crop, self.flip, self.value_range = crop, flip, value_range
        self.read = read or open_image
        self.keep = keep
        self._kept: dict[int, Tensor] = {}
        self.sizes: dict[Path, tuple[int, int]] = {}
        """Height and width of every picture as its file has it, px."""
        self.paths = readable(paths, self._measure, setup)

    def _measure(self, path: Path) -> None:
        _, h, w = self.read(path).shape
        self.sizes[path] = h, w

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, draw: int) -> Tensor:
        draw = draw if isinstance(draw, Draw) else Draw(draw)
        picture = self._loaded(int(draw))
        _, h, w = picture.shape
        top, left = (h - self.size) // 2, (w - self.size) // 2
        mirrored = False
        if self.crop == "random":
            a, b, c = torch.rand(3, generator=draw.generator()).tolist()
            top, left = int(a * (h - self.size + 1)), int(b * (w - self.size + 1))
            mirrored = self.flip and c < 0.5
        picture = picture[:, top : top + self.size, left : left + self.size]
        picture = (picture.flip(2) if mirrored else picture).float() / 255
        low, high = self.value_range
        return picture * (high - low) + low

    def _loaded(self, index: int) -> Tensor:
        """The picture as uint8 [3, H, W], its shorter side `load_size`, or both."""
        if index not in self._kept:
            picture = fit(self.read(self.paths[index]), self.load_size, square=self.square)
            if picture.numel() > self.keep:
                return picture
            self.keep -= picture.numel()
            self._kept[index] = picture
        return self._kept[index]

    def __getstate__(self) -> dict[str, Any]:  # a reading process keeps its own
        return {**self.__dict__, "_kept": {}}


def open_image(path: Path) -> Tensor:
    """A picture as uint8 [3, H, W], read as genkit reads any picture. Raises MediaError."""
    return torch.from_numpy(np.array(Image.open(path).pil)).permute(2, 0, 1)


def fit(picture: Tensor, side: int, *, square: bool = False) -> Tensor:
    """Scales uint8 [3, H, W] so that its shorter side is `side`, or both are if `square`; bicubic, antialiased."""
    _, h, w = picture.shape
    size = [side, side] if square else [max(side, round(n * side / min(h, w))) for n in (h, w)]
    if size == [h, w]:
        return picture.contiguous()
    return F.interpolate(picture[None], size, mode="bicubic", antialias=True, align_corners=False)[0]
