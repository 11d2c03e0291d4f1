"""What stands in an output folder of a plan's jobs: what is done, and from what."""

from __future__ import annotations

from pathlib import Path

from genkit.batch import store as stores
from genkit.batch.job import Job, Take
from genkit.batch.journal import Made, State, read
from genkit.batch.plan import Plan
from genkit.batch.store import Store

__all__ = ["earlier", "finished", "is_done"]


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
