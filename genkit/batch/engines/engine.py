"""What carries out a run's jobs: the small interface between the runner and its engines, and the plainest of them.

The runner owns the plan, the queue and the journal; an engine owns processes. It takes jobs from the `Source` whenever
one of its workers is free and hands back what became of them in waves, all that came in at once. The runner enters a
wave before it asks for the next, so the source knows it when it is asked for more. An engine never writes the journal.

    InProcess       here: the jobs are made in the runner's own process
    pool.Pool       worker processes of this machine
    ray.Ray         actors of a Ray cluster
    ranks.Ranks     the processes that `accelerate launch` started
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from genkit.batch import blackbox
from genkit.batch.engines.outcome import Outcome
from genkit.batch.job import Job

if TYPE_CHECKING:
    from genkit.batch.engines.worker import Worker

__all__ = ["Engine", "InProcess", "Source", "Warm", "Watch"]

Warm: TypeAlias = tuple[str, str | None]
"""The pipeline and model that a worker has loaded."""


class Source(Protocol):
    def take(self, warm: Warm | None = None, worker: int = 0) -> Sequence[Job] | None:
        """Jobs of one pipeline, model and `batch_key` to be made together, for a worker that has `warm` loaded; None if
        there is nothing at the moment."""

    def wait(self) -> float | None:
        """Asked when nothing runs and there was nothing to take: the seconds until there may be; None if never."""

    @property
    def stopping(self) -> bool:
        """Whether no other call of a pipeline should be begun."""


class Engine(Protocol):
    @property
    def workers(self) -> int:
        """How many take jobs side by side."""

    def run(self, source: Source, watch: Watch) -> Iterator[list[Outcome]]:
        """Ends when nothing runs and there is nothing to wait for. Closing it ends every process that it began."""


class Watch:
    """Looks on. Override what is of interest; `step` is a `genkit.pipeline.Progress` and may raise Cancelled in a run
    of one process. worker: which of several, from 0."""

    def start(self, todo: int, skipped: int) -> None: ...

    def note(self, text: str) -> None: ...

    def job(self, jobs: Sequence[Job], worker: int = 0) -> None: ...

    def step(self, step: int, total: int, *, preview: Any = None, note: str = "", worker: int = 0) -> None: ...

    def done(self, outcome: Outcome, final: bool) -> None: ...


class InProcess:
    """Jobs are made here, one batch after the other."""

    workers = 1

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def run(self, source: Source, watch: Watch) -> Iterator[list[Outcome]]:
        with blackbox.recording(self.worker.store.home):
            while True:
                batch = source.take(self.worker.warm)
                if batch is not None:
                    yield from self._made(batch, source, watch)
                elif (seconds := source.wait()) is not None:
                    time.sleep(min(seconds, 0.2))  # a short nap, so that a wish to stop is heard
                else:
                    return

    def _made(self, batch: Sequence[Job], source: Source, watch: Watch) -> Iterator[list[Outcome]]:
        for part in self.worker.parts(batch):
            if source.stopping:
                return
            yield self.worker.perform(part, partial(watch.step, worker=0))
