"""Sound files in blocks: a two-hour recording read, and written, without ever being in memory.

    with Reader("long.flac") as sound:
        write("louder.flac", (2 * block for block in sound.blocks()), sound.sample_rate, sound.channels)

Choices made here:
- The checks of `Audio` hold: kinds, codecs, headers, NaN, what is cut off; but for the limit on length, since nothing
  grows with it. What only the end of a file can tell is raised at its end.
- `write` takes the blocks as an iterable and pulls them: the file has its name only when the last one is in it, and an
  error or a cancel on the way leaves nothing.
- What is written does not depend on how it was cut into blocks: they are regrouped first (Vorbis hears the difference).
- A WAV whose length is not known to fit into 4 GB is written as RF64 (EBU Tech 3306); should it fit after all, its
  header becomes that of an ordinary WAV.

C: channels; T: samples per channel.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import soundfile
import torch
from torch import Tensor

from genkit.errors import MediaError
from genkit.media import _sounds, files

__all__ = ["Reader", "encode", "regroup", "write"]

BLOCK = _sounds.BLOCK
_WAV_BYTES = 2**32 - 65_536  # the size that a WAV can state, less its chunks


class Reader:
    """A sound file, open: `.sample_rate` in Hz, `.channels`, `.frames` (samples per channel; `.estimated` of an MP3,
    which does not state it), and `.name` for messages. Use it in a `with`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises MediaError: not there, not a sound, of a refused kind, or with a header that cannot be."""
        self.name = repr(str(path))
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(files.open_regular(path))
            self._sound = stack.enter_context(_sounds.opened(file, self.name))
            self._stack = stack.pop_all()
        self.sample_rate: int = self._sound.samplerate
        self.channels: int = self._sound.channels
        self.frames: int = self._sound.frames
        self.estimated = self._sound.format == "MP3"

    def blocks(self, size: int = BLOCK) -> Iterator[Tensor]:
        """The whole in blocks float32 [C, T], T = size but in the last. Raises MediaError: damaged, cut off, or NaN."""
        with self._named():
            if self._sound.tell():  # a decoder of MP3 that was wound back differs in the last bit
                self._sound.seek(0)
            place = 0
            while place < self.frames and (block := self._read(min(size, self.frames - place), place)).shape[1]:
                place += block.shape[1]
                yield block
            _sounds.check_whole(self._sound, place, self.name)

    def read(self, start: int, count: int) -> Tensor:
        """`count` samples from `start`, float32 [C, T]; fewer where the file ends. Raises MediaError."""
        with self._named():
            self._sound.seek(min(start, self.frames))
            return self._read(count, start)

    def _read(self, count: int, place: int) -> Tensor:
        parts, missing = [np.zeros((0, self.channels), np.float32)], count
        while missing > 0 and len(part := self._sound.read(min(missing, BLOCK), dtype="float32", always_2d=True)):
            parts.append(part)
            missing -= len(part)
        samples = np.ascontiguousarray(np.concatenate(parts).T)
        _sounds.check_finite(samples, self.sample_rate, self.name, place)
        return torch.from_numpy(samples)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except soundfile.LibsndfileError as error:
            raise MediaError(f"{self.name}: the sound is damaged or cut off ({error.error_string})") from error

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write(
    path: str | os.PathLike[str],
    blocks: Iterable[Tensor],
    sample_rate: int,
    channels: int,
    *,
    frames: int | None = None,
    **options: Any,
) -> Path:
    """Writes a sound from blocks [C, T], whole or not at all. The suffix is the format; options as in `Audio.encoded`.

    frames: how long it will be, if known; with it, a WAV is byte for byte that of `Audio.save`. Beyond -1..1 it is
    clipped. Returns the path. Raises MediaError (suffix, place, option, NaN, no samples), DiskFull, and whatever the
    blocks raise.
    """
    path = files.check_target(path, "audio")
    format = files.file_format(path, "audio")
    _sounds.coding(format, options)

    def content(temporary: Path) -> None:
        encode(
            temporary,
            format,
            blocks,
            sample_rate,
            channels,
            frames=frames,
            name=f"what was made for {str(path)!r}",
            **options,
        )

    return files.atomic_write(path, content)


def encode(
    path: Path,
    format: str,
    blocks: Iterable[Tensor],
    sample_rate: int,
    channels: int,
    *,
    frames: int | None = None,
    name: str = "the sound",
    **options: Any,
) -> None:
    """The bytes of a sound file, to a path that nobody else sees yet. format, options: as in `Audio.encoded`; name:
    opens its messages. Raises as `write` does; what is half written stays."""
    _sounds.check_bounds(channels, 1, sample_rate, name=name)
    settings, convert = _sounds.coding(format, options)
    if format == "WAV" and (frames is None or frames * channels * options.get("bits", 24) // 8 > _WAV_BYTES):
        format = "RF64"
    total = 0
    try:
        with soundfile.SoundFile(path, "w", sample_rate, channels, format=format, **settings) as sound:
            for block in regroup(blocks, BLOCK):
                array = block.detach().to("cpu", torch.float32).numpy()
                _sounds.check_finite(array, sample_rate, name, total)
                total += array.shape[1]
                sound.write(convert(array))
    except soundfile.LibsndfileError as error:
        raise _sounds.not_held(format, channels, sample_rate, error) from error
    _sounds.check_bounds(channels, total, sample_rate, name=name)
    if format == "OGG":
        with path.open("r+b") as file:
            _sounds.fix_serial(file)


def regroup(blocks: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """The same samples [C, T] in blocks of `size`; the last may be shorter, and none is empty."""
    kept: list[Tensor] = []
    count = 0
    for block in blocks:
        while count + block.shape[1] >= size:
            part, block = block[:, : size - count], block[:, size - count :]
            yield torch.cat((*kept, part), 1) if kept else part
            kept, count = [], 0
        if block.shape[1]:
            kept.append(block)
            count += block.shape[1]
    if kept:
        yield torch.cat(kept, 1)
