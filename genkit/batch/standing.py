"""What stands in an output folder of a plan's jobs: what is done, and from what."""

from __future__ import annotations

from pathlib import Path

from genkit.batch import store as stores
from genkit.batch.job import Job, Take
from genkit.batch.journal import Done, Failed, Journal, Made, State, read
from genkit.batch.plan import Plan
from genkit.batch.store import Store
from genkit.errors import InputError

__all__ = ["Standing", "earlier", "finished", "is_done"]


def earlier(state: State, take: Take) -> Made | None:
    """The file that an earlier stage has for a later one."""
    done = state.done.get(take.output)
    fits = done is not None and done.job == take.job and take.number <= len(done.files)
    return done.files[take.number - 1] if done is not None and fits else None


def is_done(job: Job, state: State, store: Store) -> bool:
    """Whether a job's files are in place, made from what its earlier stages have now."""
    done = state.done.get(job.output)
    if done is None or done.job != job.id or not all(store.in_place(made) for made in done.files):
        return False
    if job.renders and not {made.path for made in done.files}.issuperset(job.renders):  # they go by other names now
        return False
    taken = {name: earlier(state, take) for name, take in job.takes.items()}
    return all(made is not None and done.inputs.get(name) == made.sha256 for name, made in taken.items())


def finished(plan: Plan, out: str | Path) -> frozenset[str]:
    """The outputs that are done as far as the journal tells, without locking or changing anything."""
    store = stores.open(out)
    state = read(store.home)
    open_: set[str] = set()
    done: set[str] = set()
    for job in plan.jobs:
        waits = any(take.output in open_ for take in job.takes.values())
        (open_ if waits or not is_done(job, state, store) else done).add(job.output)
    return frozenset(done)


class Standing:
    """What a run finds. replaces: another batch's files may be written over."""

    def __init__(self, store: Store, journal: Journal, *, replaces: bool = False) -> None:
        self.store, self.journal, self.replaces = store, journal, replaces

    def is_done(self, job: Job) -> bool:
        return is_done(job, self.journal.state, self.store)

    def quarantined(self, job: Job) -> Failed | None:
        entry = self.journal.state.failed.get(job.output)
        return entry if entry is not None and entry.quarantined and entry.job == job.id else None

    def replaceable(self, job: Job) -> set[str]:
        """Names that hold an older version of a job's files."""
        return self._entered(job) | ({*job.names} if self.replaces else set())

    def adopt(self, job: Job) -> bool:
        """Whether the files are there though the journal has no line for them, which is then written. Raises InputError
        if a file stands in the way."""
        entered = self._entered(job)
        there = [name for name in job.names if name not in entered and self.store.exists(name)]
        makers = {name: self.store.maker(name) for name in there}
        for name, maker in makers.items():
            place = self.store.path(name)
            if maker is None:
                raise InputError(f"{place!r} exists and no batch made it; move it away, or choose another folder")
            if maker != job.id and not self.replaces:
                remedy = "--replace makes it again, or choose another folder"
                raise InputError(f"{place!r} was made by another batch; {remedy}")
        if entered or job.takes or len(there) < len(job.names) or set(makers.values()) != {job.id}:
            return False
        self.journal.enter(Done(job.id, job.output, tuple(map(self.store.made, there))))
        return True

    def _entered(self, job: Job) -> set[str]:
        """Names that the journal has for a job's output."""
        done = self.journal.state.done.get(job.output)
        return {job.output, *(made.path for made in done.files)} if done else set()
