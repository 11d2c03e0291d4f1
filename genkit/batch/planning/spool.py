"""Jobs on disk: a line of JSON each, read back as they are asked for, so that a hundred thousand take no memory."""

from __future__ import annotations

import tempfile
import threading
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, overload

from genkit.batch import jsonl
from genkit.batch.job import Job
from genkit.errors import GenkitError

__all__ = ["Jobs"]

IN_MEMORY = 4 << 20  # bytes; a plan of some thousand jobs never touches the disk
BLOCK = 256  # jobs read at once


class Jobs(Sequence[Job]):
    """A sequence of jobs that is kept as lines of a file. Raises GenkitError for a line that is no job."""

    def __init__(self, file: IO[bytes], starts: array[int]) -> None:
        """starts: where each line begins, and where the last one ends."""
        self._file, self._starts = file, starts
        weakref.finalize(self, file.close)
        self._guard = threading.Lock()

    @classmethod
    def of(cls, jobs: Iterable[Job]) -> Jobs:
        """Jobs put into a temporary file, one after the other."""
        file: IO[bytes] = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115
        starts = array("Q", [0])
        try:
            for job in jobs:
                starts.append(starts[-1] + file.write(encoded(job)))
        except BaseException:
            file.close()
            raise
        return cls(file, starts)

    @classmethod
    def open(cls, path: Path) -> tuple[bytes, Jobs]:
        """The first line of a file, and the jobs in the others."""
        file = path.open("rb")
        head = file.readline()
        starts = array("Q", [len(head)])
        for line in file:
            starts.append(starts[-1] + len(line))
        return head, cls(file, starts)

    def lines(self) -> Iterator[bytes]:
        """The jobs as they lie in the file, many lines at once."""
        for first in range(0, len(self), BLOCK):
            yield self._read(first, min(first + BLOCK, len(self)))

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __iter__(self) -> Iterator[Job]:
        for block in self.lines():
            yield from map(_decoded, block.splitlines())

    @overload
    def __getitem__(self, index: int) -> Job: ...
    @overload
    def __getitem__(self, index: slice) -> list[Job]: ...
    def __getitem__(self, index: int | slice) -> Job | list[Job]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        return _decoded(self._read(place, place + 1))

    def _read(self, first: int, end: int) -> bytes:
        with self._guard:
            self._file.seek(self._starts[first])
            return self._file.read(self._starts[end] - self._starts[first])


def encoded(job: Job) -> bytes:
    return jsonl.written(job.to_json())


def _decoded(line: bytes) -> Job:
    try:
        return Job.of(jsonl.read(line))
    except (ValueError, TypeError, KeyError, RecursionError):
        raise GenkitError("the plan in the output folder is damaged; give the recipe again with --replace") from None
