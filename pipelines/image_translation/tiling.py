"""A picture of any size through a network, tile by tile, and the same as in one piece.

A norm needs statistics of the whole picture, which no tile can tell. So the network is gone through norm by norm: all
tiles are computed up to it and its mean and variance gathered, then all tiles up to the next. The statistics are exact,
every pixel is what it is in the whole picture up to rounding, and there is no seam. No tile needs more context than the
few convolutions since the last kept layer (see `regions`); a U-Net, whose innermost level sees everything, goes the
same way.

Choices made here:
- So that nothing is computed over and over, layers are kept from one pass to the next: those that a norm measures, and
  sums that are read more than once; and only where they are small, a quarter of the largest layer (deep inside the
  network, at a quarter of the picture's sides or less). What is larger is computed again from the picture or the kept
  layers: an eighth more arithmetic for CycleGAN's nine blocks. At 4096 px the shipped network's layout took 2.6 GB in
  tiles of 1024 px and 8.0 GB in one piece, all told; the pictures differed by one 255th in 16 values of 50 million.
- Kept layers lie in memory where they fit in a quarter of what is free, else in a file that has no name any more, so
  that nothing is left behind whatever happens. Its place on the disk is taken before it is written.
- Means and squares are gathered in float64, tile by tile (Chan, Golub & LeVeque 1979).

Legend: B pictures (one here), C channels, H, W px.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from genkit.errors import DiskFull
from pipelines.image_translation.program import Program
from pipelines.image_translation.regions import Drop, Norm, Part, Shape, Span

__all__ = ["Plan", "Step", "peak", "tiled"]

Step = Callable[[int, int, str], None]
"""Called after each tile: tiles done, tiles in all, a few words."""


class Plan:
    """What is computed in which order for a picture [C, height, width] in tiles of `tile` px."""

    def __init__(self, program: Program, height: int, width: int, tile: int) -> None:
        self.program, self.tile = program, tile
        self.shapes = program.shapes(height, width)
        self.measured = {  # the steps whose statistics are taken, and who needs them
            n: norms for n in range(len(self.shapes)) if (norms := [i for i in program.readers[n] if self._measures(i)])
        }
        self.kept = self._kept()
        self.targets = sorted({*self.measured, *self.kept, program.result})
        self.reads = {target: self._read(target) for target in self.targets}

    def _measures(self, place: int) -> bool:
        rule = self.program.rules[place]
        return isinstance(rule, Norm) and rule.measured

    def _kept(self) -> set[int]:
        shared = {i for i, of in enumerate(self.program.parents) if len(of) > 1 and len(self.program.readers[i]) > 1}
        wanted = {*self.measured, *shared} - {0}
        sizes = [math.prod(shape) for shape in self.shapes]
        bound = max(max(sizes) // 4, min((sizes[n] for n in wanted), default=0))
        return {n for n in wanted if sizes[n] <= bound}

    def _read(self, target: int) -> set[int]:
        """The steps that computing `target` goes through, down to kept ones."""
        read, open_ = set(), [*self.program.parents[target]]
        while open_:
            place = open_.pop()
            if place not in read:
                read.add(place)
                open_ += () if place in self.kept else self.program.parents[place]
        return read

    def parts(self, target: int) -> list[Part]:
        """The tiles of a step, `tile` px of the picture each."""
        shape, whole = self.shapes[target], self.shapes[0]
        return [
            Part(rows, columns)
            for rows in _cut(shape.height, self.tile, whole.height)
            for columns in _cut(shape.width, self.tile, whole.width)
        ]

    def wanted(self, target: int, part: Part, there: set[int] | frozenset[int] = frozenset()) -> dict[int, Part]:
        """What of which step has to be computed, or read where it is `there`, for a part of `target`; in order."""
        wanted = {target: part}
        for place in range(target, 0, -1):
            if place in wanted and (place == target or place not in there):
                for parent in self.program.parents[place]:
                    need = self.needs(place, parent, wanted[place])
                    wanted[parent] = wanted[parent].joined(need) if parent in wanted else need
        return dict(sorted(wanted.items()))

    def needs(self, place: int, parent: int, part: Part) -> Part:
        rule, shape = self.program.rules[place], self.shapes[parent]
        return Part(rule.needs(part.rows, shape.height), rule.needs(part.columns, shape.width))

    def scratch(self, element: int) -> int:
        """Bytes that kept layers take when they take the most; element: bytes of a value."""
        most, held = 0, set[int]()
        for i, target in enumerate(self.targets):
            held |= {target} & self.kept
            most = max(most, sum(math.prod(self.shapes[n]) for n in held))
            held = {n for n in held if any(n in self.reads[later] for later in self.targets[i + 1 :])}
        return most * element

    def work(self, element: int) -> int:
        """Bytes that a tile takes at most, beside the kept layers."""
        most = 0
        for target in self.targets:
            parts = self.parts(target)
            wanted = self.wanted(target, parts[len(parts) // 2], self.kept)
            most = max(most, _live(self.program, self.shapes, wanted, self.kept - {target}))
        return most * element


def peak(program: Program, height: int, width: int, element: int) -> int:
    """Bytes of all that is there at once when the picture goes through in one piece."""
    shapes = program.shapes(height, width)
    wanted = {n: Part(Span(0, shape.height), Span(0, shape.width)) for n, shape in enumerate(shapes)}
    return element * _live(program, shapes, wanted, set())


def _live(program: Program, shapes: list[Shape], wanted: dict[int, Part], there: set[int]) -> int:
    """Values held at once while the wanted parts are computed in order."""
    sizes = {
        n: shapes[n].channels * (rows.end - rows.start) * (columns.end - columns.start)
        for n, (rows, columns) in wanted.items()
    }
    most, held = 0, set[int]()
    for place in sizes:
        held.add(place)
        most = max(most, sum(sizes[n] for n in held))
        held = {n for n in held if any(reader > place and reader in sizes for reader in program.readers[n])}
    return most


def _cut(length: int, tile: int, whole: int) -> list[Span]:
    """An axis of `length`, where the picture has `whole` px, in stretches of about `tile` px of the picture."""
    count = max(1, min(length, round(whole / tile)))
    edges = [length * i // count for i in range(count + 1)]
    return [Span(start, end) for start, end in itertools.pairwise(edges)]


def tiled(plan: Plan, picture: Tensor, *, device: torch.device, dtype: torch.dtype, free: int, step: Step) -> Tensor:
    """The picture [1, C, H, W], on the CPU, through the plan's network -> [1, C', H, W], float32 on the CPU.

    device, dtype: where and as what tiles are computed, those of the network; free: bytes of memory that may be taken;
    step: called after each tile, and may raise to stop. Raises DiskFull.
    """
    total = sum(len(plan.parts(target)) for target in plan.targets)
    element = torch.empty((), dtype=dtype).element_size()
    with contextlib.ExitStack() as files:
        folder = None
        if plan.scratch(element) > free // 4:
            place = tempfile.TemporaryDirectory(prefix="genkit-", ignore_cleanup_errors=True)
            folder = Path(files.enter_context(place))
        passes = _Passes(plan, picture, device, dtype, folder)
        done = 0
        for number, target in enumerate(plan.targets, 1):
            for _ in passes.go(target):
                done += 1
                step(done, total, f"pass {number} of {len(plan.targets)}")
        return passes.result


class _Passes:
    """The state from pass to pass: layers kept so far and statistics taken (these lie in the program's norms)."""

    def __init__(
        self, plan: Plan, picture: Tensor, device: torch.device, dtype: torch.dtype, folder: Path | None
    ) -> None:
        self.plan, self.device, self.dtype, self.folder = plan, device, dtype, folder
        self.there: dict[int, Tensor] = {0: picture[0]}
        self.result = torch.empty(0)

    def go(self, target: int) -> Iterator[None]:
        """All tiles of one step: kept, measured, or the result."""
        plan, program = self.plan, self.plan.program
        shape, last = plan.shapes[target], target == program.result
        for place in sorted(plan.reads[target]):
            rule = program.rules[place]
            if isinstance(rule, Drop) and rule.mask is None:
                rule.draw(plan.shapes[place])
        dtype = torch.float32 if last else self.dtype
        kept = self._empty(shape, dtype) if last or target in plan.kept else None
        moments = _Moments()
        for part in plan.parts(target):
            value = self._compute(target, part)
            if kept is not None:
                part.of(kept).copy_(value[0])
            if target in plan.measured:
                moments.add(value[0])
            yield
        for place in plan.measured.get(target, ()):
            norm = program.rules[place]
            assert isinstance(norm, Norm)
            norm.statistics = moments.mean.float(), moments.variance.float()
        if kept is not None:
            self.there[target] = kept
        if last:
            self.result = kept[None] if kept is not None else self.result
        self._forget(target)

    def _compute(self, target: int, part: Part) -> Tensor:
        """A part of a step, [1, C, h, w]."""
        plan, program = self.plan, self.plan.program
        wanted = plan.wanted(target, part, set(self.there))
        made: dict[int, Tensor] = {}
        for place, here in wanted.items():
            if place in self.there:
                made[place] = here.of(self.there[place])[None].to(self.device, self.dtype)
            else:
                parents = program.parents[place]
                inputs = [plan.needs(place, n, here).of(made[n], wanted[n]) for n in parents]
                made[place] = program.rules[place].apply(inputs, here, plan.shapes[parents[0]])
            for n in (place, *program.parents[place]):
                if n in made and n != target and not any(i > place and i in wanted for i in program.readers[n]):
                    del made[n]
        return made[target]

    def _forget(self, target: int) -> None:
        """Lets go of what no later pass reads."""
        later = [self.plan.reads[other] for other in self.plan.targets if other > target]
        for place in [n for n in self.there if n and not any(n in read for read in later)]:
            del self.there[place]
        for place in self.plan.reads[target]:
            rule = self.plan.program.rules[place]
            if isinstance(rule, Drop) and not any(place in read for read in later):
                rule.mask = None

    def _empty(self, shape: Shape, dtype: torch.dtype) -> Tensor:
        if self.folder is None:
            return torch.empty(shape, dtype=dtype)
        return _on_disk(self.folder, shape, dtype)


def _on_disk(folder: Path, shape: Shape, dtype: torch.dtype) -> Tensor:
    """A tensor in a file of the folder, which loses its name at once where the system allows it."""
    count = math.prod(shape)
    handle, name = tempfile.mkstemp(dir=folder)
    try:
        size = count * torch.empty((), dtype=dtype).element_size()
        # A file that is written through memory and finds the disk full would end the process.
        os.posix_fallocate(handle, 0, size) if hasattr(os, "posix_fallocate") else os.truncate(handle, size)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DiskFull(f"{folder.parent} has no room for {size / 1e9:.1f} GB: set TMPDIR to a larger disk") from None
    finally:
        os.close(handle)
    tensor = torch.from_file(name, shared=True, size=count, dtype=dtype).view(shape)
    with contextlib.suppress(OSError):
        Path(name).unlink()
    return tensor


@dataclass
class _Moments:
    """Mean and variance of each channel over all that was added; [C], float64."""

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))
    squares: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))

    def add(self, x: Tensor) -> None:
        """x: [C, h, w]."""
        n = x.shape[1] * x.shape[2]
        variance, mean = (one.double().cpu() for one in torch.var_mean(x.float(), (1, 2), correction=0))
        apart, total = mean - self.mean, self.count + n
        self.squares = self.squares + variance * n + apart**2 * (self.count * n / total)
        self.mean = self.mean + apart * (n / total)
        self.count = total

    @property
    def variance(self) -> Tensor:
        return self.squares / self.count
