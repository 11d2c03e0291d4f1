"""How a batch stands, from its folder alone: the plan, the journal, the sizes of the files, and whether a runner lives.

Reads and never locks, so it may be asked at any time, of a folder that cannot be written too. Every job is one of:

    done         its files are in place, see `genkit.batch.standing`
    running      begun by the runner that lives now
    failed       given up, or in quarantine; the next run tries it again, or only `genkit retry` does
    blocked      it takes from a job that failed
    to do        anything else: what a killed runner had begun, too
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from genkit.batch.job import Job
from genkit.batch.journal import Done, Failed, State, owner, read
from genkit.batch.plan import Plan
from genkit.batch.standing import is_done
from genkit.batch.store import Store

__all__ = ["Standing", "Status", "Tally", "examine", "standings"]

Standing = Literal["done", "running", "failed", "quarantined", "blocked", "to do"]


@dataclass
class Tally:
    """Jobs by how they stand. degraded: done with less than the usual memory; bytes: of the files that are done;
    seconds: of work that they took."""

    jobs: int = 0
    done: int = 0
    degraded: int = 0
    running: int = 0
    failed: int = 0
    quarantined: int = 0
    blocked: int = 0
    to_do: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def take(self, standing: Standing, done: Done | None) -> None:
        self.jobs += 1
        name = standing.replace(" ", "_")
        setattr(self, name, getattr(self, name) + 1)
        if standing == "done" and done is not None:
            self.degraded += bool(done.degraded)
            self.bytes += sum(made.bytes for made in done.files)
            self.seconds += done.seconds


@dataclass
class Status:
    """runner: who works there now, in words; began, made: when the last run began (s since 1970) and how many jobs it
    has done; left: seconds until this run ends, at its rate so far, None if nobody works or there is no rate yet;
    running: outputs and since when; failures: what failed or is in quarantine; damaged: lines of the journal."""

    runner: str
    began: float
    made: int
    left: float | None = None
    total: Tally = field(default_factory=Tally)
    stages: dict[str, Tally] = field(default_factory=dict)
    running: dict[str, float] = field(default_factory=dict)
    failures: list[Failed] = field(default_factory=list)
    damaged: int = 0

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        failures = [{name: value for name, value in vars(one).items() if name != "trace"} for one in self.failures]
        return {
            "runner": self.runner or None,
            "began": self.began or None,
            "made": self.made,
            "seconds_left": None if self.left is None else round(self.left, 1),
            **asdict(self.total),
            "now": [{"output": output, "since": since} for output, since in self.running.items()],
            "failures": failures,
            "stages": {name: asdict(tally) for name, tally in self.stages.items()},
            "damaged_lines": self.damaged,
        }


def examine(plan: Plan, store: Store) -> Status:
    """How every job of a plan stands. Raises GenkitError if plan or journal cannot be read."""
    runner = owner(store.home)
    state = read(store.home)
    status = Status(runner, state.began, state.made, damaged=state.damaged)
    for job, standing in standings(plan, store, state, alive=bool(runner)):
        for tally in (status.total, status.stages.setdefault(job.stage, Tally())):
            tally.take(standing, state.done.get(job.output))
        if standing == "running":
            status.running[job.output] = state.running[job.output]
        elif standing in ("failed", "quarantined"):
            status.failures.append(state.failed[job.output])
    if runner and state.made:
        rate = state.made / max(0.001, time.time() - state.began)
        status.left = (status.total.to_do + status.total.running) / rate
    return status


def standings(plan: Plan, store: Store, state: State, *, alive: bool) -> Iterator[tuple[Job, Standing]]:
    """Every job of a plan and how it stands. alive: whether a runner works there now."""
    lost: set[str] = set()
    open_: set[str] = set()
    for job in plan.jobs:
        takes = {take.output for take in job.takes.values()}
        standing: Standing = "to do"
        if takes & lost:
            standing = "blocked"
        elif not takes & open_ and is_done(job, state, store):
            standing = "done"
        elif alive and job.output in state.running:
            standing = "running"
        elif not takes & open_ and (failed := state.failed.get(job.output)) and failed.job == job.id:
            standing = "quarantined" if failed.quarantined else "failed"
        if standing in ("failed", "quarantined", "blocked"):
            lost.add(job.output)
        if standing != "done":
            open_.add(job.output)
        yield job, standing
