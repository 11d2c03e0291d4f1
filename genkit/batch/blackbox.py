"""What a run's process leaves behind when it crashes: the signal and where each thread was, in `.genkit/crash`.

A process of its own tells of its death by being gone; a run without workers takes its own death along. Python's
`faulthandler` still writes a few lines, from which the next run knows that the jobs which had begun may be to blame. A
SIGKILL leaves nothing, and nobody is blamed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import re
from collections.abc import Iterator
from pathlib import Path

from genkit.batch.journal import FOLDER

__all__ = ["clear", "read", "recording"]

NAME = "crash"


@contextlib.contextmanager
def recording(home: Path) -> Iterator[None]:
    """While it lasts a crash is written down, unless somebody else has it written elsewhere already."""
    try:
        file = None if faulthandler.is_enabled() else (home / FOLDER / NAME).open("wb")
    except OSError:  # no reason not to run; what is wrong with the disk is told by what matters more
        file = None
    if file is None:
        yield
        return
    with file:
        faulthandler.enable(file)
        try:
            yield
        finally:
            faulthandler.disable()
    clear(home)


def read(home: Path) -> str:
    """How the last run's process died, in words; empty if it did not crash."""
    try:
        text = (home / FOLDER / NAME).read_text("utf-8", "replace")
    except OSError:
        return ""
    found = re.search(r"Fatal Python error: ([^\n]{1,100})", text)
    return f"its process died ({found[1]})" if found else ""


def clear(home: Path) -> None:
    with contextlib.suppress(OSError):
        (home / FOLDER / NAME).unlink(missing_ok=True)
