"""Plan -> files: does what is missing or changed, and says what it skipped.

The runner alone writes the journal. It hands batches to an engine (`worker.InProcess`; others have the same one
method), stage by stage, grouped by model, and enters each outcome as it comes:

- wrong input is never retried; anything else `retries` times, a lost connection after a pause; then it is recorded as
  failed and the run goes on;
- a full disk stops the run, since every job after it would fail the same way;
- the first Ctrl-C or SIGTERM lets the running call of a pipeline finish, the second interrupts it, the third kills.

A job is done if the journal has it under its output with the same id, its files (a piece and what it is rendered to)
are there in the size they were written in, and what it took from an earlier stage is still what that stage has. Files
without a line (the process died between the two) are recognised by the job id they carry, if all of a job's are there.
Anything else of that name is not overwritten unless it is the journal's.
"""

from __future__ import annotations

import shutil
import stat
import threading
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

from genkit import registry
from genkit.batch import names
from genkit.batch.job import Job, Take
from genkit.batch.journal import Done, Failed, Journal, Made, State, read
from genkit.batch.plan import Plan
from genkit.batch.signals import Interruption
from genkit.batch.worker import InProcess, Outcome, Worker, put
from genkit.errors import Cancelled, DiskFull, InputError
from genkit.media import rendering

__all__ = ["Summary", "Watch", "estimate", "finished", "is_done", "run"]

TYPICAL = {"image": 2 << 20, "audio": 6 << 20, "midi": 16 << 10, "roll": 32 << 10}
TYPICAL |= {"notation": 256 << 10, "spectrogram": 512 << 10}
"""Bytes of a file of each kind, for the estimate before the first one is made."""


@dataclass
class Summary:
    """How a run ended. skipped: done before; blocked: their inputs' jobs failed (a part of `failed`); seconds: of work;
    changed: the plan is another one than the folder's last."""

    out: Path
    total: int
    skipped: int = 0
    done: int = 0
    failed: list[Failed] = field(default_factory=list)
    blocked: int = 0
    changed: bool = False
    seconds: float = 0.0


class Watch:
    """Looks on. Override what is of interest; `step` is a `genkit.pipeline.Progress` and may raise Cancelled."""

    def start(self, todo: int, skipped: int) -> None: ...

    def note(self, text: str) -> None: ...

    def job(self, jobs: Sequence[Job]) -> None: ...

    def step(self, step: int, total: int, *, preview: Any = None, note: str = "") -> None: ...

    def done(self, outcome: Outcome, final: bool) -> None: ...


class Engine(Protocol):
    def map(self, batches: Iterable[Sequence[Job]]) -> Iterator[Outcome]: ...


def run(
    plan: Plan,
    out: str | Path,
    *,
    batch: int = 0,
    retries: int = 2,
    watch: Watch | None = None,
    stop: threading.Event | None = None,
    **runtime: Any,
) -> Summary:
    """Makes a plan's files in the folder `out`.

    batch: how many jobs may share one call of the pipeline, 0 for as many as it is best at; retries: how often a job is
    tried again; stop: set from another thread, the running call is finished and the run ends; runtime: device, dtype,
    deterministic.

    Raises Locked, DiskFull, Cancelled, and InputError if a file that is not the recipe's stands in the way. What was
    finished until then is kept and entered.
    """
    out = Path(out).absolute()
    watch = watch or Watch()
    with Journal(out) as journal, Interruption(watch.note, stop) as interruption:
        runner = _Runner(plan, journal, watch, interruption, batch=batch, retries=retries)
        planned = frozenset(names.folded(name) for job in plan.jobs for name in job.names)
        worker = Worker(out, planned=planned, batch=batch, **runtime)
        return runner.run(InProcess(worker, watch.step, lambda: interruption.asked))


def finished(plan: Plan, out: str | Path) -> frozenset[str]:
    """The outputs that are done as far as the journal tells, without locking or changing anything."""
    out = Path(out)
    state = read(out)
    open_: set[str] = set()
    for job in plan.jobs:
        if any(take.output in open_ for take in job.takes.values()) or not is_done(job, state, out):
            open_.add(job.output)
    return frozenset(job.output for job in plan.jobs) - open_


def is_done(job: Job, state: State, out: Path) -> bool:
    """Whether a job's files are in place, made from what its earlier stages have now."""
    done = state.done.get(job.output)
    if done is None or done.job != job.id or not all(_in_place(out, made) for made in done.files):
        return False
    if not {made.path for made in done.files}.issuperset(job.renders):  # they go by other names now
        return False
    taken = {name: _earlier(state, take) for name, take in job.takes.items()}
    return all(made is not None and done.inputs.get(name) == made.sha256 for name, made in taken.items())


def _maker(path: Path) -> str:
    """The id of the job that made a file. Raises InputError if none did."""
    from genkit.media import provenance

    record = provenance.read(path) if path.is_file() else None
    if record is None or record.job is None:
        raise InputError(f"{str(path)!r} exists and no batch made it; move it away, or choose another folder")
    return record.job


def _in_place(out: Path, made: Made) -> bool:
    try:
        status = (out / made.path).stat()
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == made.bytes


def _earlier(state: State, take: Take) -> Made | None:
    """The file that an earlier stage has for a later one."""
    done = state.done.get(take.output)
    fits = done is not None and done.job == take.job and take.number <= len(done.files)
    return done.files[take.number - 1] if done is not None and fits else None


class _Runner:
    def __init__(
        self, plan: Plan, journal: Journal, watch: Watch, interruption: Interruption, *, batch: int, retries: int
    ) -> None:
        self.plan, self.journal, self.watch, self.interruption = plan, journal, watch, interruption
        self.batch, self.retries = batch, retries
        self.out = journal.folder
        self.attempts: Counter[str] = Counter()
        self.again: list[Job] = []
        self.lost: set[str] = set()  # outputs of the jobs given up
        self.summary = Summary(self.out, len(plan.jobs))

    def run(self, engine: Engine) -> Summary:
        todo = self._todo()
        self.summary.skipped = len(self.plan.jobs) - len(todo)
        self.watch.start(len(todo), self.summary.skipped)
        recipe, digest = self.plan.recipe, self.plan.digest
        self.summary.changed = self.journal.state.plan.get("plan") != digest
        if todo or self.summary.changed:
            self.journal.plan(recipe=recipe.name, digest=recipe.digest, plan=digest, jobs=len(self.plan.jobs))
        if todo:
            _sweep(self.out, todo)
            self._estimate(todo)
        for _, jobs in groupby(todo, key=lambda job: job.stage):
            for outcome in engine.map(self._batches(list(jobs))):
                self._enter(outcome)
        if self.interruption.asked:
            stopped = Cancelled(self._stopped("stopped on request"))
            stopped.exit_status = self.interruption.exit_status
            raise stopped
        return self.summary

    def _todo(self) -> list[Job]:
        """The jobs that are not done. Those that take from one that is not are decided when their turn comes."""
        todo: list[Job] = []
        open_: set[str] = set()
        for job in self.plan.jobs:
            waits = any(take.output in open_ for take in job.takes.values())
            if waits or not (self._is_done(job) or self._adopt(job)):
                todo.append(job)
                open_.add(job.output)
        return todo

    def _is_done(self, job: Job) -> bool:
        return is_done(job, self.journal.state, self.out)

    def _adopt(self, job: Job) -> bool:
        """Whether the files are there though the journal has no line for them, which is then written."""
        from genkit.media import provenance

        done = self.journal.state.done.get(job.output)
        entered = {job.output, *(made.path for made in done.files)} if done else set()
        there = {name: self.out / name for name in job.names if name not in entered and (self.out / name).exists()}
        made_by = {_maker(path) for path in there.values()}
        if done or job.takes or len(there) < len(job.names) or made_by != {job.id}:
            return False
        made = [Made(name, provenance.digest_file(path), path.stat().st_size) for name, path in there.items()]
        self.journal.enter(Done(job.id, job.output, tuple(made)))
        return True

    def _batches(self, jobs: list[Job]) -> Iterator[list[Job]]:
        """A stage's jobs, grouped by model so that it is loaded once, then by what may share a call."""
        for _, group in groupby(sorted(jobs, key=lambda job: job.model or ""), key=lambda job: job.model):
            for batch in self._chunks(group):
                ready = [job for job in map(self._ready, batch) if job is not None]
                if self.interruption.asked:
                    return
                if ready:
                    self.watch.job(ready)
                    yield ready
                while self.again and not self.interruption.asked:
                    yield [self.again.pop()]

    def _chunks(self, jobs: Iterable[Job]) -> Iterator[list[Job]]:
        waiting: dict[Hashable, list[Job]] = {}
        for job in jobs:
            kind = registry.get(job.pipeline)
            size = self.batch or kind.together
            if size == 1:
                yield [job]
                continue
            # Inputs of earlier stages have no path yet; their placeholders differ, so they share no batch by it.
            key = kind.batch_key(kind.Params.parse(job.params, unchecked=True))
            chunk = waiting.setdefault(key, [])
            chunk.append(job)
            if len(chunk) == size:
                yield waiting.pop(key)
        yield from waiting.values()

    def _ready(self, job: Job) -> Job | None:
        """The job with what earlier stages made for it; None if there is nothing to do or no way to do it."""
        if not job.takes:
            return job
        params: dict[str, Any] = dict(job.params)
        for name, take in job.takes.items():
            made = None if take.output in self.lost else _earlier(self.journal.state, take)
            if made is None:
                reason = f"it takes file {take.number} of {take.output!r}, and that job "
                reason += "failed" if take.output in self.lost else "made fewer"
                self.summary.blocked += 1
                self._give_up(Outcome(job, error=reason))
                return None
            key, _, number = name.partition("[")
            params[key] = put(params[key], number, str(self.out / made.path))
        if self._is_done(job):  # its input was made again and came out the same
            self.summary.skipped += 1
            self.watch.done(Outcome(job, self.journal.state.done[job.output].files), True)
            return None
        return replace(job, params=params)

    def _enter(self, outcome: Outcome) -> None:
        job = outcome.job
        if outcome.full:
            raise DiskFull(self._stopped(outcome.error))
        self.attempts[job.output] += 1
        attempt = self.attempts[job.output]
        if not outcome.error:
            taken = {name: _earlier(self.journal.state, take) for name, take in job.takes.items()}
            inputs = {name: made.sha256 for name, made in taken.items() if made}
            self.journal.enter(Done(job.id, job.output, outcome.files, inputs, round(outcome.seconds, 3), attempt))
            self.summary.done += 1
            self.summary.seconds += outcome.seconds
            for text in outcome.notes:
                self.watch.note(f"{job.output}: {text}")
            self.watch.done(outcome, True)
        elif outcome.retry != "never" and attempt <= self.retries:
            self.watch.done(outcome, False)
            if outcome.retry == "later":
                self.interruption.wait(2.0**attempt)
            self.again.append(job)
        else:
            self._give_up(outcome)

    def _give_up(self, outcome: Outcome) -> None:
        job = outcome.job
        failed = Failed(job.id, job.output, outcome.error, max(1, self.attempts[job.output]), outcome.trace)
        self.journal.enter(failed)
        self.lost.add(job.output)
        self.summary.failed.append(failed)
        self.watch.done(outcome, True)

    def _estimate(self, todo: Sequence[Job]) -> None:
        """Says so if the disk will probably not hold what is to come; whether it does is seen when it does not."""
        need = _bytes(todo)
        free = shutil.disk_usage(self.out).free
        if need > free:
            self.watch.note(f"the disk has {_size(free)} free, and {len(todo)} jobs may need about {_size(need)}")

    def _stopped(self, reason: str) -> str:
        left = self.summary.total - self.summary.skipped - self.summary.done - len(self.summary.failed)
        return f"{reason}; {self.summary.done} made, {left} left to do by the same command"


def _sweep(out: Path, jobs: Iterable[Job]) -> None:
    """Removes what a killed run left half-written. Only this process writes here, so none is in use."""
    for folder in {(out / name).parent for job in jobs for name in job.names}:
        if folder.is_dir():
            for path in folder.glob(".*.genkit-*.tmp"):
                path.unlink(missing_ok=True)


def estimate(jobs: Sequence[Job]) -> str:
    """What jobs will probably take of the disk: "3 MB"."""
    return _size(_bytes(jobs))


def _bytes(jobs: Sequence[Job]) -> int:
    kinds = []
    for job in jobs:
        produces = registry.get(job.pipeline).produces
        kinds += [produces, *(_rendered(name, produces) for name in job.renders)]
    return sum(TYPICAL.get(kind, 0) for kind in kinds)


def _rendered(name: str, of: str) -> str:
    kind = rendering.kind_of(name, of)
    return {"midi": "roll", "audio": "spectrogram"}[of] if kind == "image" else kind


def _size(count: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit != "GB" else f"{count:.1f} GB"
        count /= 1000
    return f"{count:.1f} TB"
