"""What a run of a batch shows as it goes: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from genkit.batch.engines.engine import Watch
from genkit.cli._common import LINE_EVERY, note, span

if TYPE_CHECKING:
    from genkit.batch.engines.outcome import Outcome
    from genkit.batch.job import Job

__all__ = ["watching"]

NAME = 48  # signs of an output's name beside its bar
SHOWN = 8  # workers that have a bar


@contextlib.contextmanager
def watching(name: str, total: int, *, quiet: bool = False) -> Iterator[Watch]:
    """A `Watch` that draws a bar for the batch and one for what each worker is at; nothing if quiet."""
    if quiet:
        yield Watch()
    elif sys.stderr.isatty():
        with _bars(name, total) as watch:
            yield watch
    else:
        yield _Lines()


@contextlib.contextmanager
def _bars(name: str, total: int) -> Iterator[Watch]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        whole = bar.add_task(escape(name), total=total)
        current: dict[int, Any] = {}  # by worker
        busy: dict[int, set[str]] = {}

        class Bars(Watch):
            def start(self, todo: int, skipped: int) -> None:
                bar.update(whole, completed=skipped)

            def note(self, text: str) -> None:
                bar.console.print(escape(text))

            def job(self, jobs: Sequence[Job], worker: int = 0) -> None:
                if worker >= SHOWN:
                    return
                if worker not in current:
                    current[worker] = bar.add_task("", total=None)
                more = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
                busy[worker] = {job.output for job in jobs}
                name = escape(jobs[0].output[-NAME:] + more)
                bar.reset(current[worker], description=name, total=None, visible=True)

            def step(self, step: int, total: int, *, preview: Any = None, note: str = "", worker: int = 0) -> None:
                if worker in current:
                    bar.update(current[worker], completed=step, total=total)

            def done(self, outcome: Outcome, final: bool) -> None:
                bar.advance(whole, int(final))
                for worker, outputs in busy.items():
                    outputs.discard(outcome.job.output)
                    bar.update(current[worker], visible=bool(outputs))

        yield Bars()


class _Lines(Watch):
    """A line every few seconds."""

    def __init__(self) -> None:
        self.count, self.total, self.begun, self.said = 0, 0, 0.0, time.monotonic()
        self.skipped = 0

    def start(self, todo: int, skipped: int) -> None:
        self.count = self.skipped = skipped
        self.total, self.begun = todo + skipped, time.monotonic()

    def note(self, text: str) -> None:
        note(text)

    def done(self, outcome: Outcome, final: bool) -> None:
        self.count += final
        now = time.monotonic()
        if now - self.said >= LINE_EVERY:
            self.said = now
            made, rest = self.count - self.skipped, self.total - self.count
            left = f", {span((now - self.begun) / made * rest)} left" if made and rest else ""
            note(f"{self.count} of {self.total} jobs{left}")
