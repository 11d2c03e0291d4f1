"""Sounds of any length: a `Recording` is an `Audio` whose samples stay on disk.

    made = keep(blocks, 44100, 2)        an Audio while it is short, a Recording from SMALL samples on
    Recording.open("concert.flac")       a file, of which nothing is read yet

Both are saved, digested and compared block by block, so two hours take no more memory than a minute.

Choices made here:
- What is made goes to a scratch file without a name: nothing is left, whatever ends the process.
- It lies in TMPDIR, else in /var/tmp, which is on a disk where /tmp may be in memory. Float32: a minute of CD stereo
  takes 21 MB there. Whether it fits is asked before the work.
- A digest runs over one channel after the other, as that of an Audio does: a file is read once for each channel.

C: channels; T: samples per channel.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from genkit.errors import DiskFull, MediaError
from genkit.media import _sounds, streaming
from genkit.media.audio import Audio

__all__ = ["SMALL", "Recording", "difference", "keep", "scratch_folder", "sound"]

SMALL = 1 << 23  # samples, all channels together, up to which a sound is held in memory: 34 MB
BLOCK = _sounds.BLOCK


class Source(Protocol):
    """Samples that can be read again and again."""

    sample_rate: int
    channels: int

    @property
    def frames(self) -> int: ...

    def blocks(self, size: int = BLOCK) -> Iterator[Tensor]: ...


class Recording(Audio):
    """A sound on disk, with the face of `Audio`. `.samples` reads all of it, as far as the limit on an Audio goes."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.sample_rate = source.sample_rate

    @classmethod
    def open(cls, source: Any, *, max_samples: int | None = None) -> Recording:
        """A sound file, read when it is needed and not before. It must stay where it is.

        max_samples: for `Audio.open`'s sake; nothing is limited here. Raises MediaError, while it is read too.
        """
        return source if isinstance(source, Recording) else cls(_File(source))

    @property
    def samples(self) -> Tensor:  # type: ignore[override]
        """float32 [C, T], read now. Raises MediaError above GENKIT_MAX_SAMPLES: use `blocks`."""
        limit = _sounds.limit(None)
        if self.channels * self.frames > limit:
            raise MediaError(f"{self!r} is over the limit of {limit} samples; use blocks(), or set GENKIT_MAX_SAMPLES")
        return torch.cat(list(self.blocks()), 1)

    @property
    def channels(self) -> int:
        return self._source.channels

    @property
    def frames(self) -> int:
        return self._source.frames

    def blocks(self, size: int = BLOCK) -> Iterator[Tensor]:
        """The whole in blocks float32 [C, T], T = size but in the last."""
        return self._source.blocks(size)

    def digest(self) -> str:
        """sha256 (hex) of the sound: that of `Audio.digest`."""
        found = hashlib.sha256(f"genkit audio {self.sample_rate} {self.channels}x{self.frames}\n".encode())
        for channel in range(self.channels):
            for block in self.blocks():
                found.update(block[channel].numpy().astype("<f4").tobytes())
        return found.hexdigest()

    def encode(self, path: Path, format: str, **options: Any) -> None:
        """The bytes of a file, without provenance, to a path that nobody sees yet; options as in `encoded`."""
        streaming.encode(
            path, format, self.blocks(), self.sample_rate, self.channels, frames=self.frames, name=repr(self), **options
        )

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """A player in a notebook, of the first five minutes."""
        start = next(self.blocks(300 * self.sample_rate))
        return {**Audio(start, self.sample_rate)._repr_mimebundle_(), "text/plain": repr(self)}


class _File:
    """A sound file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with streaming.Reader(self.path) as reader:
            self.sample_rate, self.channels = reader.sample_rate, reader.channels
            self._declared = None if reader.estimated else reader.frames

    @cached_property
    def frames(self) -> int:
        """Of an MP3, which does not state it, by counting."""
        return sum(block.shape[1] for block in self.blocks()) if self._declared is None else self._declared

    def blocks(self, size: int = BLOCK) -> Iterator[Tensor]:
        with streaming.Reader(self.path) as reader:  # one each, so that two may be read side by side
            yield from reader.blocks(size)


class _Scratch:
    """Samples in a file without a name, one after the other. Raises DiskFull."""

    def __init__(self, sample_rate: int, channels: int, frames: int | None) -> None:
        """frames: how many are to come, if known; whether they fit is checked."""
        self.sample_rate, self.channels, self.frames = sample_rate, channels, 0
        self.folder = scratch_folder()
        need, free = 4 * channels * (frames or 0), shutil.disk_usage(self.folder).free
        if need > free:
            raise self._full(f"the sound takes {need / 1e9:.1f} GB there, and {free / 1e9:.1f} are free")
        self._file = tempfile.TemporaryFile(dir=self.folder, prefix="genkit-")  # noqa: SIM115 - lives as long as this
        self.close = weakref.finalize(self, self._file.close)

    def add(self, block: Tensor) -> None:
        """block: [C, T]"""
        try:
            self._file.seek(0, os.SEEK_END)
            self._file.write(np.ascontiguousarray(block.numpy().T).tobytes())
            self._file.flush()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._full("no space is left on its disk") from error
            raise
        self.frames += block.shape[1]

    def blocks(self, size: int = BLOCK) -> Iterator[Tensor]:
        for place in range(0, self.frames, size):
            self._file.seek(4 * self.channels * place)
            data = self._file.read(4 * self.channels * min(size, self.frames - place))
            yield torch.from_numpy(np.frombuffer(data, np.float32).reshape(-1, self.channels).T.copy())

    def _full(self, why: str) -> DiskFull:
        return DiskFull(f"{str(self.folder)!r}: {why}; free some, or set TMPDIR to a folder on another disk")


def scratch_folder() -> Path:
    """Where sounds are put that are too long for memory: TMPDIR, else /var/tmp, else what the system has."""
    lasting = Path("/var/tmp")
    if not os.environ.get("TMPDIR") and os.access(lasting, os.W_OK | os.X_OK):
        return lasting
    return Path(tempfile.gettempdir())


def keep(
    blocks: Iterable[Tensor], sample_rate: int, channels: int, *, frames: int | None = None, name: str = "the sound"
) -> Audio:
    """The sound of blocks [C, T], pulled now: an Audio, or a Recording above SMALL samples.

    frames: how many are to come, if known. Raises MediaError (NaN, no samples; `name` opens the message), DiskFull, and
    whatever the blocks raise; then nothing is left.
    """
    held: list[Tensor] = []
    scratch, count = None, 0
    if frames is not None and frames * channels > SMALL:
        scratch = _Scratch(sample_rate, channels, frames)
    try:
        for block in blocks:
            block = block.detach().to("cpu", torch.float32)
            _sounds.check_finite(block.numpy(), sample_rate, name, count)
            count += block.shape[1]
            held.append(block)
            if scratch is None and count * channels > SMALL:
                scratch = _Scratch(sample_rate, channels, None)
            while scratch is not None and held:
                scratch.add(held.pop(0))
        _sounds.check_bounds(channels, count, sample_rate, name=name)
    except BaseException:
        if scratch is not None:
            scratch.close()
        raise
    return Audio(torch.cat(held, 1), sample_rate) if scratch is None else Recording(scratch)


def sound(path: str | os.PathLike[str]) -> Audio:
    """The sound in a file: an Audio, or a Recording above SMALL samples. Raises MediaError."""
    with streaming.Reader(path) as reader:
        small = reader.frames * reader.channels <= SMALL
    return Audio.open(path) if small else Recording.open(path)


def difference(one: Audio, other: Audio) -> tuple[float, float]:
    """Greatest and mean absolute difference of two sounds of the same rate, length and channels."""
    most, total = 0.0, 0.0
    for a, b in zip(one.blocks(BLOCK), other.blocks(BLOCK), strict=True):
        apart = (a - b).abs()
        most, total = max(most, float(apart.max())), total + float(apart.sum(dtype=torch.float64))
    return most, total / (one.channels * one.frames)
