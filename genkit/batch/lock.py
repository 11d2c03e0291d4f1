"""One runner in a folder: a POSIX record lock on `.genkit/lock`, which says who has it.

It dies with its process, and a forked child does not inherit it (with `flock` an orphan holds it for ever). Two traps
are minded here: such a lock does not keep two threads of one process apart, and a process loses it as soon as it closes
any handle to the file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
import threading
from pathlib import Path

from genkit.errors import GenkitError, Locked

__all__ = ["acquire", "owner", "release"]

_held: dict[Path, int] = {}  # handles of this process's locks
_guard = threading.Lock()


def acquire(path: Path) -> None:
    """Takes the lock of a folder. Raises Locked, and OSError if the file cannot be made."""
    # Imported here: Windows has no fcntl, and everything but running a batch works without.
    import fcntl

    folder = str(path.parents[1])
    with _guard:
        if path.resolve() in _held:
            raise Locked(f"another run of this program works in {folder!r}; wait for it, or choose another folder")
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            words = _words(handle) or "another process"
            os.close(handle)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise GenkitError(f"{folder!r} cannot be locked ({error.strerror}); use a local disk") from None
            raise Locked(f"{words} works in {folder!r}; wait for it, or choose another folder") from None
        with contextlib.suppress(OSError):  # only words for the next one's message; a full disk may not take them
            os.ftruncate(handle, 0)
            os.pwrite(handle, _own_words().encode(), 0)
        _held[path.resolve()] = handle


def release(path: Path) -> None:
    """Gives it back."""
    with _guard:
        os.close(_held.pop(path.resolve()))


def owner(path: Path) -> str:
    """Who has the lock, in words; empty if nobody has. Takes it not even for a moment, so that a run which begins just
    then is not turned away."""
    try:
        import fcntl
    except ImportError:
        return ""
    with _guard, contextlib.suppress(OSError):
        if path.resolve() in _held:
            return _own_words()
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            answer = fcntl.fcntl(handle, fcntl.F_GETLK, _flock(kind=fcntl.F_WRLCK))
            words = _words(handle)
        finally:
            os.close(handle)
        found = dict(zip(_FIELDS, struct.unpack(_FORM, answer), strict=True))
        if found["kind"] != fcntl.F_UNLCK:
            # Until a runner has written who it is, the words are those of the one before.
            process = found["process"]
            return words if process <= 0 or f"process {process} " in words else f"process {process}"
    return ""


# `struct flock` of 64-bit systems: Linux, and the BSDs with macOS
_FORM = "hhqqi" if sys.platform == "linux" else "qqihh"
_FIELDS = ("kind", "whence", "start", "length", "process")
if sys.platform != "linux":
    _FIELDS = ("start", "length", "process", "kind", "whence")


def _flock(**values: int) -> bytes:
    return struct.pack(_FORM, *(values.get(name, 0) for name in _FIELDS))


def _words(handle: int) -> str:
    return os.pread(handle, 200, 0).decode("utf-8", "replace").strip()


def _own_words() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"
