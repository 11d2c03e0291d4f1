"""The course of a run: what is handed out next, and what is entered of what comes back.

`Course` is the `Source` that an engine takes jobs from and the only one who writes the journal; `genkit.batch.runner`
says by which rules.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

from genkit.batch import blackbox
from genkit.batch.engines.engine import Engine, Warm, Watch
from genkit.batch.engines.outcome import Outcome
from genkit.batch.engines.worker import put
from genkit.batch.job import Job
from genkit.batch.journal import Done, Failed, Journal
from genkit.batch.plan import Plan
from genkit.batch.planning import names
from genkit.batch.queue import Queue, Waits
from genkit.batch.signals import Interruption
from genkit.batch.sizes import Sizes, in_words
from genkit.batch.standing import Standing, earlier
from genkit.batch.store import Store
from genkit.errors import Cancelled, DiskFull

__all__ = ["Course", "Summary"]

DEATHS = 3
"""Processes that a job may kill before it is put in quarantine."""
KILLS = 10
"""The same, once a job that was killed by itself has been made: somebody outside kills, and may have hit any by
chance."""
NOTES = 20
"""Different notes on jobs that are passed on; of more, how many they were."""


@dataclass
class Summary:
    """How a run ended. skipped: done before; blocked: their inputs' jobs failed (a part of `failed`); left: not asked
    for; degraded: made with less than the usual memory; changed: the plan is another one than the folder's last;
    seconds: of work."""

    out: str
    total: int
    skipped: int = 0
    done: int = 0
    failed: list[Failed] = field(default_factory=list)
    blocked: int = 0
    left: int = 0
    degraded: int = 0
    changed: bool = False
    seconds: float = 0.0

    @property
    def quarantined(self) -> int:
        return sum(entry.quarantined for entry in self.failed)


class Course:
    """A `Source` of jobs, and the one who enters what became of them."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        journal: Journal,
        watch: Watch,
        interruption: Interruption,
        *,
        batch: int,
        retries: int,
        only: Collection[str] | None,
        replaces: bool,
    ) -> None:
        self.plan, self.store, self.journal, self.watch, self.interruption = plan, store, journal, watch, interruption
        self.retries, self.only = retries, only
        self.standing = Standing(store, journal, replaces=replaces)
        self.queue = Queue(plan.jobs, batch)
        self.attempts: Counter[str] = Counter()
        self.killed: Counter[str] = Counter()  # by output: processes that a SIGKILL ended in this run
        self.open: dict[str, int] = {}  # outputs that are still to be made, with their numbers
        self.lost: set[str] = set()  # outputs of the jobs given up
        self.numbered: dict[str, list[str]] = {}  # by an output, folded: others' names that its files could come to
        self.alone: set[str] = set()  # of these, those that had no others in their call
        self.outside = False  # one of those has been made since
        self.said: Counter[str] = Counter()  # notes, by their text
        self.full = ""
        self.sizes = Sizes()
        self.summary = Summary(store.name, len(plan.jobs))

    def run(self, engine: Engine) -> Summary:
        self.queue.workers = engine.workers
        self._recall()
        need = self._plan()
        summary, todo = self.summary, len(self.open)
        self.watch.start(todo, summary.skipped)
        outline, digest = self.plan.outline, self.plan.digest
        summary.changed = self.journal.state.plan.get("plan") != digest
        if todo or summary.changed:
            self.journal.plan(recipe=outline.name, digest=outline.digest, plan=digest, jobs=len(self.plan.jobs))
        free = _free(self.store)
        if need > free:
            self.watch.note(f"the disk has {in_words(free)} free, and {todo} jobs may need about {in_words(need)}")
        with closing(engine.run(self, self.watch)) as waves:  # type: ignore[type-var]
            for wave in waves if todo else ():
                self.queue.workers = engine.workers  # machines come and go
                self._enter(wave)
                self.store.keep()
        self._ended()
        return summary

    # What an engine asks for

    def take(self, warm: Warm | None = None, worker: int = 0) -> Sequence[Job] | None:
        if self.stopping:
            return None
        jobs = self.queue.take(warm, worker, self._ready)
        if jobs:
            self.journal.start([job.output for job in jobs])
            self.watch.job(jobs, worker)
        return jobs

    def wait(self) -> float | None:
        return None if self.stopping else self.queue.wait()

    @property
    def stopping(self) -> bool:
        return bool(self.full) or self.interruption.asked

    # Before

    def _recall(self) -> None:
        """Takes in how the last run ended: a crash of its process is held against the jobs that it had begun."""
        state = self.journal.state
        if reason := blackbox.read(self.store.home):
            for output in list(state.running):
                self.journal.died(output, reason)
            blackbox.clear(self.store.home)
        if self.only is not None:
            self.journal.release([output for output in self.only if output in state.failed or output in state.deaths])

    def _plan(self) -> int:
        """Puts what is not done into the queue; those that take from such a job are decided when their turn comes.
        Returns the bytes that they will probably need."""
        need = 0
        for number, job in enumerate(self.plan.jobs):
            for name in job.names:
                if base := names.numbered(name):
                    self.numbered.setdefault(base, []).append(names.folded(name))
            waits = any(take.output in self.open for take in job.takes.values())
            if not waits and self.standing.is_done(job):
                self.summary.skipped += 1
            elif self.only is not None and job.output not in self.only:
                self.summary.left += 1
            elif entry := self.standing.quarantined(job):
                self.summary.failed.append(entry)
                self.lost.add(job.output)
            elif not waits and self.standing.adopt(job):
                self.summary.skipped += 1
            else:
                self.open[job.output] = number
                self.queue.add(number, job, alone=job.output in self.journal.state.deaths)
                need += self.sizes.of([job])
        return need

    # A job's turn

    def _ready(self, number: int, job: Job) -> Job | None:
        """The job with what earlier stages made for it; None if there is nothing to do or no way to do it."""
        params, inputs = job.params, dict(job.inputs)
        for name, take in job.takes.items():
            if take.output in self.open:
                raise Waits
            made = None if take.output in self.lost else earlier(self.journal.state, take)
            if made is None:
                reason = "failed" if take.output in self.lost else "made fewer"
                self.summary.blocked += 1
                self._give_up(
                    Outcome(job, error=f"it takes file {take.number} of {take.output!r}, and that job {reason}")
                )
                return None
            params = put(params, name, lambda _, path=made.path: self.store.path(path))  # type: ignore[misc]
            inputs[name] = made.sha256
        if job.takes and self.standing.is_done(job):  # its input was made again and came out the same
            self.summary.skipped += 1
            del self.open[job.output]
            self.watch.done(Outcome(job, self.journal.state.done[job.output].files), True)
            return None
        older = self.standing.replaceable(job)
        reserved = self.numbered.get(names.folded(job.output), ())
        return replace(job, params=params, inputs=inputs, replaces=tuple(sorted(older)), reserved=tuple(reserved))

    # What became of it

    def _enter(self, wave: Iterable[Outcome]) -> None:
        done: list[Outcome] = []
        others: list[Outcome] = []
        for outcome in wave:
            (others if outcome.error or outcome.full or outcome.died else done).append(outcome)
        self.journal.enter(*map(self._done, done))
        for outcome in done:
            self._note(outcome)
            self.watch.done(outcome, True)
        killed = [outcome.job.output for outcome in others if outcome.died == "killed"]
        self.alone.update(killed if len(killed) == 1 else ())
        for outcome in others:
            self._failed(outcome)

    def _note(self, outcome: Outcome) -> None:
        """What the reader should know of a job; of ten thousand, once."""
        for text in outcome.notes:
            self.said[text] += 1
            if self.said[text] == 1 and len(self.said) <= NOTES:
                self.watch.note(f"{outcome.job.output}: {text}")

    def _done(self, outcome: Outcome) -> Done:
        job = outcome.job
        self.attempts[job.output] += 1
        self.open.pop(job.output, None)
        self.killed.pop(job.output, None)
        self.outside |= job.output in self.alone
        self.summary.done += 1
        self.summary.degraded += bool(outcome.degraded)
        self.summary.seconds += outcome.seconds
        self.sizes.learn(job.stage, sum(made.bytes for made in outcome.files))
        inputs = {name: job.inputs[name] for name in job.takes}
        attempt = self.attempts.pop(job.output)
        return Done(job.id, job.output, outcome.files, inputs, round(outcome.seconds, 3), attempt, outcome.degraded)

    def _failed(self, outcome: Outcome) -> None:
        job = outcome.job
        if outcome.full:
            self.full = self.full or outcome.error
        elif outcome.died == "node":
            self._again(job)
        elif outcome.died:
            self._died(outcome)
        else:
            self.attempts[job.output] += 1
            attempt = self.attempts[job.output]
            if outcome.retry == "never" or attempt > self.retries:
                self._give_up(outcome)
                return
            self.watch.done(outcome, False)
            self._again(job, 2.0**attempt if outcome.retry == "later" else 0.0)

    def _again(self, job: Job, after: float = 0.0) -> None:
        self.queue.again(self.open[job.output], job, after)

    def _died(self, outcome: Outcome) -> None:
        output = outcome.job.output
        if outcome.died == "crash":
            self.journal.died(output, outcome.error)
        else:
            self.killed[output] += 1
        deaths = self.journal.state.deaths[output] + self.killed[output]
        if deaths < (KILLS if self.outside and outcome.died == "killed" else DEATHS):
            self.watch.done(outcome, False)
            self._again(outcome.job)
            return
        self.attempts[output] = deaths
        error = f"{outcome.error}, {deaths} times; it is in quarantine until `genkit retry`"
        self._give_up(replace(outcome, error=error), quarantined=True)

    def _give_up(self, outcome: Outcome, *, quarantined: bool = False) -> None:
        job = outcome.job
        attempt = max(1, self.attempts.pop(job.output, 0))
        failed = Failed(job.id, job.output, outcome.error, attempt, outcome.trace, quarantined)
        self.journal.enter(failed)
        self.open.pop(job.output, None)
        self.lost.add(job.output)
        self.summary.failed.append(failed)
        self.watch.done(outcome, True)

    # After

    def _ended(self) -> None:
        told = list(self.said.items())
        for text, count in told[:NOTES]:
            if count > 1:
                self.watch.note(f"and of {count - 1} more: {text}")
        if len(told) > NOTES:
            self.watch.note(f"and {sum(count for _, count in told[NOTES:])} other notes on jobs")
        if self.full:
            missing = self.sizes.of(self.plan.jobs[number] for number in self.open.values()) - _free(self.store)
            more = f", about {in_words(missing)} more than is free" if missing > 0 else ""
            raise DiskFull(self._stopped(f"{self.full}{more}"))
        if self.interruption.asked:
            stopped = Cancelled(self._stopped("stopped on request"))
            stopped.exit_status = self.interruption.exit_status
            raise stopped

    def _stopped(self, reason: str) -> str:
        return f"{reason}; {self.summary.done} made, {len(self.open)} left to do by the same command"


def _free(store: Store) -> int:
    return shutil.disk_usage(store.home).free
