"""Ctrl-C in stages: the first lets the running job finish, the second interrupts it, the third kills the process."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["Interruption"]


class Interruption:
    """Turns SIGINT and SIGTERM into a request while it is entered. Elsewhere than in the main thread, which alone gets
    signals, only the event asks.

    say: is told, once, that the request was heard; event: may be set by another thread.
    """

    def __init__(self, say: Callable[[str], None], event: threading.Event | None = None) -> None:
        self._say, self._event = say, event or threading.Event()
        self._before: dict[int, Any] = {}
        self.exit_status = 130

    @property
    def asked(self) -> bool:
        return self._event.is_set()

    def wait(self, seconds: float) -> None:
        """Sleeps, or until asked."""
        self._event.wait(seconds)

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._first)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _first(self, number: int, frame: Any) -> None:
        self.exit_status = 128 + number
        self._event.set()
        signal.signal(number, self._second)
        self._say("finishing the running job; once more interrupts it")

    def _second(self, number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        if number == signal.SIGTERM:  # as on the command line at any other moment
            raise SystemExit(128 + number)
        raise KeyboardInterrupt
