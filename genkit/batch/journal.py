"""What has been done in an output folder: an append-only JSONL file, `.genkit/journal.jsonl`.

Each line is one JSON object with a `kind`:

    plan     a run began: recipe and plan by name and digest, number of jobs
    done     a job's files are in place: paths, digests and sizes, and the digests of inputs that earlier stages made
    failed   a job was given up, and why

The files are the truth. A line is written after its file was renamed into place, so a line never promises what is not
there, and a file whose line was lost is known by the job id in its provenance. A file, not a database: SQLite's
write-ahead log is unsafe on network file systems, where outputs often live. Readers pass over kinds they do not know.

One process writes. The lock is a POSIX record lock: it dies with its process, and a forked child does not inherit it
(with `flock` an orphan holds it for ever).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from genkit._version import __version__
from genkit.errors import DiskFull, GenkitError, Locked, MediaError

__all__ = ["FOLDER", "Done", "Failed", "Journal", "Made", "State", "read"]

FOLDER = ".genkit"
NAME = "journal.jsonl"

_held: set[Path] = set()  # record locks do not keep two threads of one process apart; this does
_guard = threading.Lock()


@dataclass(frozen=True)
class Made:
    """A file in place. path: from the output folder down."""

    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Done:
    """inputs: digests of the files that earlier stages made, by field."""

    job: str
    output: str
    files: tuple[Made, ...]
    inputs: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    attempt: int = 1


@dataclass(frozen=True)
class Failed:
    """error: one line; trace: where it came from, for faults that are nobody's input."""

    job: str
    output: str
    error: str
    attempt: int = 1
    trace: str = ""


@dataclass
class State:
    """The last word on each output. damaged: lines that could not be read."""

    done: dict[str, Done] = field(default_factory=dict)
    failed: dict[str, Failed] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    damaged: int = 0

    def enter(self, line: dict[str, Any]) -> None:
        """Takes one line in. Raises TypeError, KeyError or ValueError for a malformed one."""
        kind, values = line["kind"], {key: value for key, value in line.items() if key not in ("kind", "at")}
        if kind == "plan":
            self.plan = values
        elif kind == "done":
            done = Done(**{**values, "files": tuple(Made(**made) for made in values["files"])})
            self.done[done.output] = done
            self.failed.pop(done.output, None)
        elif kind == "failed":
            failed = Failed(**values)
            self.failed[failed.output] = failed


def read(folder: str | Path) -> State:
    """What a folder's journal says, without locking it; empty if there is none."""
    return _parse(_content(Path(folder) / FOLDER / NAME))[0]


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
    for line in content[:whole].split(b"\n"):
        if line:
            try:
                state.enter(json.loads(line))
            except (ValueError, TypeError, KeyError, RecursionError):
                state.damaged += 1
    return state, whole


class Journal:
    """The one writer of a folder's journal; a context manager. Raises Locked if there is another."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).resolve()
        self.path = self.folder / FOLDER / NAME
        with _disk(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _acquire(self.folder)
        try:
            self.state, whole = _parse(_content(self.path))
            with _disk(self.path):
                self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
                if os.fstat(self._file).st_size > whole:  # a line torn by a kill or a full disk
                    os.ftruncate(self._file, whole)
                self._length = whole
        except BaseException:
            _release(self.folder, self._lock)
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._file)
        _release(self.folder, self._lock)

    def plan(self, **values: Any) -> None:
        """A run begins."""
        self._append({"kind": "plan", "genkit": __version__, "schema": 1, **values})

    def enter(self, entry: Done | Failed) -> None:
        """Writes a line and syncs it. Raises DiskFull; the journal is then as it was."""
        self._append({"kind": type(entry).__name__.lower(), **asdict(entry)})

    def _append(self, line: dict[str, Any]) -> None:
        data = json.dumps({**line, "at": round(time.time(), 3)}, separators=(",", ":")).encode() + b"\n"
        try:
            with _disk(self.path):
                rest = memoryview(data)
                while rest:  # a disk may take a part before it is full
                    rest = rest[os.pwrite(self._file, rest, self._length + len(data) - len(rest)) :]
                os.fsync(self._file)
        except GenkitError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._length)
            raise
        self._length += len(data)
        self.state.enter(json.loads(data))


@contextlib.contextmanager
def _disk(path: Path) -> Any:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"{str(path)!r}: no space left on its disk; free some and run the same command again"
            ) from None
        reason = error.strerror or str(error)
        raise MediaError(f"the output folder cannot be used: {str(path)!r}: {reason}; choose another") from None


def _acquire(folder: Path) -> int:
    # Imported here: Windows has no fcntl, and everything but running a batch works without.
    import fcntl

    with _guard:
        if folder in _held:
            raise Locked(f"another run of this program works in {str(folder)!r}; wait for it, or choose another folder")
        path = folder / FOLDER / "lock"
        with _disk(path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(handle, 200).decode("utf-8", "replace").strip() or "another process"
            os.close(handle)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise GenkitError(f"{str(folder)!r} cannot be locked ({error.strerror}); use a local disk") from None
            raise Locked(f"{owner} works in {str(folder)!r}; wait for it, or choose another folder") from None
        with contextlib.suppress(OSError):  # only words for the next one's message; a full disk may not take them
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        _held.add(folder)
        return handle


def _release(folder: Path, handle: int) -> None:
    with _guard:
        os.close(handle)
        _held.discard(folder)
