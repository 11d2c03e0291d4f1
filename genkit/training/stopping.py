"""Stopping a run politely: a signal is a wish that the loop grants after its step. And one folder has one trainer."""

from __future__ import annotations

import contextlib
import fcntl
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from genkit.errors import Cancelled, GenkitError, Locked

__all__ = ["Stop", "Stopped", "locked"]


class Stopped(Cancelled):
    """A signal ended the run, after a checkpoint. The exit status is the shell's: 128 + the signal's number."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(number).name} after step {step}, checkpoint saved; --resume goes on"
        )
        self.exit_status = 128 + number


class Stop:
    """While entered, SIGINT and SIGTERM are remembered in `signal`; a second one acts at once."""

    signal: int | None = None

    def __enter__(self) -> Stop:
        self._old: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a folder for this process. Raises Locked if another one has it; the system frees it when a process dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise GenkitError(f"{folder} cannot be written: {error.strerror}; choose another place with --out") from None
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Locked(f"another process is training in {folder}; wait for it or choose another --out") from None
        yield
