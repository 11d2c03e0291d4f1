"""What became of a job, as a worker tells it to the runner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from genkit.batch.job import Job
from genkit.batch.journal import Made

__all__ = ["Died", "Outcome", "Retry"]

Retry = Literal["never", "now", "later"]
Died = Literal["", "crash", "killed", "node"]


@dataclass(frozen=True)
class Outcome:
    """error: one line, empty if all went well; retry: whether and how trying again may help; full: the disk is, so
    nothing else should be started; notes: as `Output.notes`; degraded: as `Output.degraded`.

    died: the process that had it is gone: by a "crash" of its own; "killed" (SIGKILL: by the machine, out of memory, or
    by a hand from outside); with its whole "node", or without a fault of this job, which never counts against it.
    sick: the process is not to be trusted any more (a sticky CUDA error) and wants to be replaced.
    """

    job: Job
    files: tuple[Made, ...] = ()
    seconds: float = 0.0
    error: str = ""
    retry: Retry = "never"
    full: bool = False
    trace: str = ""
    notes: tuple[str, ...] = ()
    degraded: str = ""
    died: Died = ""
    sick: bool = False
