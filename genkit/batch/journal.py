"""What has been done in an output folder: an append-only JSONL file, `.genkit/journal.jsonl`.

Each line is one JSON object with a `kind`:

    plan     a run began: recipe and plan by name and digest, number of jobs
    start    jobs were begun, by their outputs
    done     a job's files are in place: paths, digests and sizes, and the digests of inputs that earlier stages made
    failed   a job was given up, and why; `quarantined` if it kills its process, so that no run tries it again by itself
    died     a process died over a job
    release  a job that failed or killed is to be tried as if nothing had happened

The files are the truth. A line is written after its file was renamed into place, so a line never promises what is not
there, and a file whose line was lost is known by the job id in its provenance. A start is written but not synced: it
has to outlive the process, not the machine. A file, not a database: SQLite's write-ahead log is unsafe on network file
systems, where outputs often live. Readers pass over kinds they do not know.

One process writes, see `genkit.batch.lock`.
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genkit._version import __version__
from genkit.batch import jsonl, lock
from genkit.errors import DiskError, DiskFull, GenkitError, MediaError
from genkit.media import files

__all__ = ["FOLDER", "Done", "Failed", "Journal", "Made", "State", "owner", "read"]

FOLDER = ".genkit"
NAME = "journal.jsonl"
LOCK = "lock"


@dataclass(frozen=True)
class Made:
    """A file in place. path: from the output folder down."""

    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Done:
    """job: empty if the files are the batch's and no good, so that only their names count (`genkit.batch.repair`);
    inputs: digests of the files that earlier stages made, by field; degraded: what was given up for memory."""

    job: str
    output: str
    files: tuple[Made, ...]
    inputs: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    attempt: int = 1
    degraded: str = ""


@dataclass(frozen=True)
class Failed:
    """error: one line; trace: where it came from, for faults that are nobody's input; quarantined: see above."""

    job: str
    output: str
    error: str
    attempt: int = 1
    trace: str = ""
    quarantined: bool = False


@dataclass
class State:
    """The last word on each output. running: begun in the last run and not ended, with the time (s since 1970); deaths:
    how often a process died over it; began, made: when the last run began, and how many jobs it has done; damaged:
    lines that could not be read."""

    done: dict[str, Done] = field(default_factory=dict)
    failed: dict[str, Failed] = field(default_factory=dict)
    running: dict[str, float] = field(default_factory=dict)
    deaths: Counter[str] = field(default_factory=Counter)
    plan: dict[str, Any] = field(default_factory=dict)
    began: float = 0.0
    made: int = 0
    damaged: int = 0

    def enter(self, line: dict[str, Any]) -> None:
        """Takes one line in. Raises TypeError, KeyError, AttributeError or ValueError for a malformed one."""
        kind, at = line.pop("kind"), line.pop("at", 0.0)
        if kind == "done":
            line["files"] = tuple([Made(**made) for made in line["files"]])
            self.take(Done(**line))
        elif kind == "failed":
            self.take(Failed(**line))
        elif kind == "start":
            self.running |= dict.fromkeys(line["outputs"], at)
        elif kind == "died":
            self.deaths[line["output"]] += 1
            self.running.pop(line["output"], None)
        elif kind == "release":
            for output in line["outputs"]:
                self.failed.pop(output, None)
                self.deaths.pop(output, None)
        elif kind == "plan":
            self.plan, self.began, self.made = line, at, 0
            self.running.clear()

    def take(self, entry: Done | Failed) -> None:
        """Takes in how a job ended."""
        if isinstance(entry, Done):
            self.done[entry.output] = entry
            if not entry.job:
                return
            self.failed.pop(entry.output, None)
            self.deaths.pop(entry.output, None)
            self.made += 1
        else:
            self.failed[entry.output] = entry
        self.running.pop(entry.output, None)


def read(folder: str | Path) -> State:
    """What a folder's journal says, without locking it; empty if there is none."""
    return _parse(_content(Path(folder) / FOLDER / NAME))[0]


def owner(folder: str | Path) -> str:
    """Who runs in a folder, in words; empty if nobody does. Changes nothing."""
    return lock.owner(Path(folder) / FOLDER / LOCK)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise GenkitError(f"{str(path)!r} cannot be read: {error.strerror}") from None


def _parse(content: bytes) -> tuple[State, int]:
    """The state, and the length up to which the file consists of whole lines."""
    state = State()
    whole = content.rfind(b"\n") + 1
    for line in io.BytesIO(content[:whole]):  # one by one: a list of them takes more than the file
        if line != b"\n":
            try:
                state.enter(jsonl.read(line))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                state.damaged += 1
    return state, whole


class Journal:
    """The one writer of a folder's journal; a context manager. Raises Locked if there is another.

    mend: lines that cannot be read are dropped (`dropped`), and the journal as it was is kept beside (`kept`).
    """

    def __init__(self, folder: str | Path, *, mend: bool = False) -> None:
        self.folder = Path(folder).resolve()
        self.path = self.folder / FOLDER / NAME
        with _disk(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = self.path.with_name(LOCK)
        with _disk(self._lock):
            lock.acquire(self._lock)
        self.dropped = 0
        self.kept: Path | None = None
        try:
            if mend:
                self._mend()
            self.state, whole = _parse(_content(self.path))
            with _disk(self.path):
                self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
                if os.fstat(self._file).st_size > whole:  # a line torn by a kill or a full disk
                    os.ftruncate(self._file, whole)
                self._length = whole
        except BaseException:
            lock.release(self._lock)
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._file)
        lock.release(self._lock)

    def _mend(self) -> None:
        content = _content(self.path)
        lines = [line for line in content.split(b"\n") if line]
        good = [line for line in lines if not _parse(line + b"\n")[0].damaged]
        if len(good) == len(lines) and content[-1:] in (b"", b"\n"):
            return
        self.dropped = len(lines) - len(good)
        names = (f"{NAME}.old{number or ''}" for number in itertools.count())
        self.kept = next(path for path in map(self.path.with_name, names) if not path.exists())
        files.atomic_write(self.kept, content)
        files.atomic_write(self.path, b"".join(line + b"\n" for line in good))

    def plan(self, **values: Any) -> None:
        """A run begins."""
        self._append([{"kind": "plan", "genkit": __version__, "schema": 1, **values}])

    def start(self, outputs: Sequence[str]) -> None:
        """Jobs begin."""
        self._append([{"kind": "start", "outputs": list(outputs)}], sync=False)

    def died(self, output: str, reason: str) -> None:
        """A process died over a job, by the job's fault."""
        self._append([{"kind": "died", "output": output, "reason": reason}])

    def release(self, outputs: Sequence[str]) -> None:
        """Jobs are to be tried as if they had not failed."""
        self._append([{"kind": "release", "outputs": list(outputs)}])

    def enter(self, *entries: Done | Failed) -> None:
        """Writes a line for each and syncs them at once. Raises DiskFull; the journal is then as it was."""
        self._append([{"kind": type(entry).__name__.lower(), **_plain(entry)} for entry in entries])

    def _append(self, lines: Sequence[dict[str, Any]], *, sync: bool = True) -> None:
        at = round(time.time(), 3)
        stamped = [{**line, "at": at} for line in lines]
        data = b"".join(map(jsonl.written, stamped))
        try:
            with _disk(self.path):
                rest = memoryview(data)
                while rest:  # a disk may take a part before it is full
                    rest = rest[os.pwrite(self._file, rest, self._length + len(data) - len(rest)) :]
                if sync:
                    os.fsync(self._file)
        except GenkitError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._length)
            raise
        self._length += len(data)
        for line in stamped:
            self.state.enter(line)


def _plain(entry: Done | Failed) -> dict[str, Any]:
    """An entry as JSON values."""
    values = dict(vars(entry))
    if isinstance(entry, Done):
        values["files"] = [vars(made) for made in entry.files]
    return values


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"{str(path)!r}: no space left on its disk; free some and run the same command again"
            ) from None
        reason = error.strerror or str(error)
        if error.errno in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT):
            raise DiskError(f"{str(path)!r}: {reason}; see to its disk and run the same command again") from None
        raise MediaError(f"the output folder cannot be used: {str(path)!r}: {reason}; choose another") from None
