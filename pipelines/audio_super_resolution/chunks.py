"""Long sounds piece by piece: each with what is before and after it, which is computed and thrown away.

A function that looks no further than `context` samples to either side gives the same numbers for the middle of a piece
as for the whole file. So every piece is taken with that much around it, and only its middle is kept: the result is the
whole in one piece, up to the arithmetic, with no seam to be cross-faded. At the two ends of the file there is nothing
to take, and the function meets the end just as it would in one piece.

Choices made here:
- Pieces begin at multiples of `grid`, so that strides and the hops of an STFT fall where they do over the whole. The
  last piece has whatever length is left.
- A function may change the rate by `new / old`: grid must then be a multiple of `old` (in lowest terms).
- From disk to disk nothing is held but one piece and its surroundings, and the result has its name only when it is
  whole.

C: channels; T: samples per channel.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genkit.errors import InputError
from genkit.media.streaming import Reader, write
from genkit.pipeline import Progress, silent

__all__ = ["Part", "Pieces", "clock", "convert", "cut", "process"]


@dataclass(frozen=True)
class Pieces:
    """How a sound is cut.

    size: samples of a piece that are kept; context: samples at either side that are computed and thrown away, at least
    the reach of the function; grid: what a piece's beginning is a multiple of (size and context are rounded up to it);
    old, new: the function turns `old` samples into `new`, ceil(T new / old) in all.
    """

    size: int
    context: int
    grid: int = 1
    old: int = 1
    new: int = 1

    def __post_init__(self) -> None:
        if self.size < 1 or self.context < 0 or self.grid < 1 or self.old < 1 or self.new < 1:
            raise InputError(f"{self} is no way to cut: sizes must be at least 1, the context at least 0")
        common = math.gcd(self.old, self.new)
        # A piece must begin at a sample of the result too.
        grid = math.lcm(self.grid, self.old // common)
        for name, value in (("old", self.old // common), ("new", self.new // common), ("grid", grid)):
            object.__setattr__(self, name, value)
        for name in ("size", "context"):
            object.__setattr__(self, name, -(-getattr(self, name) // grid) * grid)

    def output(self, samples: int) -> int:
        """The length of the result of so many samples."""
        return -(-samples * self.new // self.old)


class Part(NamedTuple):
    """A piece with what is around it: [C, T], of which `start` to `end` are the piece."""

    samples: Tensor
    start: int
    end: int


def process(blocks: Iterable[Tensor], function: Callable[[Tensor], Tensor], pieces: Pieces) -> Iterator[Tensor]:
    """The whole through a function, piece by piece, [C, T] each.

    blocks: the sound [C, T], in blocks of any length; function: [C, T] -> [C, pieces.output(T)] for any T, each result
    depending on nothing further than `pieces.context` samples away. Raises InputError if it gives another length.
    """
    for part in cut(blocks, pieces):
        yield _middle(function, part, pieces)


def cut(blocks: Iterable[Tensor], pieces: Pieces) -> Iterator[Part]:
    """The pieces of a sound [C, T] given in blocks of any length; where they begin and end does not depend on these."""
    kept: list[Tensor] = []  # from the sample `start - context` on
    held, before = 0, 0  # samples in `kept`; how many of them are context
    for block in blocks:
        kept.append(block)
        held += block.shape[1]
        while held > before + pieces.size + pieces.context:
            whole = torch.cat(kept, 1)
            end = before + pieces.size
            yield Part(whole[:, : end + pieces.context], before, end)
            dropped = max(0, end - pieces.context)
            kept = [whole[:, dropped:].clone()]  # a view would keep what was dropped
            held, before = held - dropped, end - dropped
    if held > before:
        whole = torch.cat(kept, 1)
        for start in range(before, held, pieces.size):
            end = min(start + pieces.size, held)
            first = max(0, start - pieces.context)
            yield Part(whole[:, first : end + pieces.context], start - first, end - first)


def _middle(function: Callable[[Tensor], Tensor], part: Part, pieces: Pieces) -> Tensor:
    found = function(part.samples)
    length = part.samples.shape[1]
    if found.shape[-1] != pieces.output(length):
        raise InputError(f"a piece of {length} samples came back as {found.shape[-1]}, not {pieces.output(length)}")
    return found[:, pieces.output(part.start) : pieces.output(part.end)]


def convert(
    source: str | Path,
    target: str | Path,
    function: Callable[[Tensor], Tensor],
    pieces: Pieces,
    *,
    progress: Progress = silent,
    **options: Any,
) -> Path:
    """A sound file through a function into another file, in memory that does not grow with its length.

    function, pieces: see `process`; the result's rate is the source's times pieces.new / pieces.old; progress: called
    after every piece with the milliseconds of sound done, and the time left as its note; options: as in
    `Audio.encoded`.

    Returns the path. Raises MediaError, DiskFull, and whatever function and progress raise (`Cancelled`): then nothing
    is left behind.
    """
    with Reader(source) as sound:
        rate = sound.sample_rate * pieces.new / pieces.old
        if rate != int(rate):
            raise InputError(f"{sound.sample_rate} Hz times {pieces.new} / {pieces.old} is no whole rate")
        made = _told(process(sound.blocks(), function, pieces), pieces.output(sound.frames), int(rate), progress)
        frames = None if sound.estimated else pieces.output(sound.frames)
        return write(target, made, int(rate), sound.channels, frames=frames, **options)


def _told(made: Iterator[Tensor], total: int, rate: int, progress: Progress) -> Iterator[Tensor]:
    """The pieces, each told of after it was made."""
    begun, done = time.monotonic(), 0
    whole = max(1, 1000 * total // rate)
    for piece in made:
        done += piece.shape[1]
        left = (time.monotonic() - begun) * (total - done) / done
        progress(min(whole, max(1, 1000 * done // rate)), whole, note=f"{clock(left)} left")
        yield piece


def clock(seconds: float) -> str:
    """ "1:02:03", or "2:03" below an hour; rounded up, so that 0:00 is the end."""
    minutes, rest = divmod(math.ceil(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
