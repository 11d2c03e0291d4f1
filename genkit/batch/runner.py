"""Plan -> files: does what is missing or changed, and says what it skipped.

The runner alone writes the journal. It is the `Source` that an engine (`genkit.batch.engines.engine`) takes jobs from,
and enters what the engine says became of them:

- wrong input is never retried; anything else `retries` times, a lost connection or a failing disk after a pause; then
  it is recorded as failed and the run goes on;
- a job over which three processes died is put in quarantine: it is recorded as failed, and no run tries it again until
  `genkit retry` says so. A SIGKILL may come from outside, so it counts only among those of the same run, and less once
  it has shown that it does; a lost machine never counts;
- a full disk stops the run, since every job after it would fail the same way;
- the first Ctrl-C or SIGTERM lets the running calls of a pipeline finish, the second interrupts them, the third kills.

A job is done if the journal has it under its output with the same id, its files (a piece and what it is rendered to)
are there in the size they were written in, and what it took from an earlier stage is still what that stage has. Files
without a line (the process died between the two) are recognised by the job id they carry, if all of a job's are there.
Anything else of that name is not overwritten unless it is the journal's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from genkit.batch import store as stores
from genkit.batch.course import Course, Summary
from genkit.batch.engines.engine import Engine, InProcess, Watch
from genkit.batch.engines.worker import Worker
from genkit.batch.journal import Journal
from genkit.batch.plan import Plan
from genkit.batch.planning import compare
from genkit.batch.signals import Interruption
from genkit.batch.store import Store
from genkit.errors import InputError

__all__ = ["Summary", "Watch", "run"]


def run(
    plan: Plan,
    out: str | Path,
    *,
    workers: int | None = 0,
    engine: Callable[[Store], Engine] | None = None,
    batch: int = 0,
    retries: int = 2,
    job_timeout: float | None = None,
    extend: bool = False,
    replace: bool = False,
    only: Collection[str] | None = None,
    watch: Watch | None = None,
    stop: threading.Event | None = None,
    **runtime: Any,
) -> Summary:
    """Makes a plan's files in `out`, a folder or a URL.

    workers: processes that make them, 0 for this one, None for one a GPU (see `genkit.lanes`); engine: another engine,
    made for the store; batch: how many jobs may share one call of the pipeline, 0 for as many as it is best at;
    retries: how often a job is tried again; job_timeout: s that a job may take, for worker processes; extend, replace:
    what becomes of another plan's folder, see `genkit.batch.planning.compare`; only: outputs, the other jobs are left
    as they are; quarantined and failed ones among these are released; stop: set from another thread, the running calls
    are finished and the run ends; runtime: device, dtype, deterministic.

    Raises Locked, PlanChanged, DiskFull, Cancelled, and InputError if a file that is not the recipe's stands in the
    way. What was finished until then is kept and entered.
    """
    watch = watch or Watch()
    store = stores.open(out)
    make = engine or _engine(workers, batch, job_timeout, runtime)
    with Journal(store.home) as journal, Interruption(watch.note, stop) as interruption, ExitStack() as ended:
        store.begin()
        ended.callback(store.end)
        plan = compare.settle(plan, store.home, extend=extend, anew=replace)
        options: dict[str, Any] = {"batch": batch, "retries": retries, "only": only, "replaces": replace}
        return Course(plan, store, journal, watch, interruption, **options).run(make(store))


def _engine(
    workers: int | None, batch: int, job_timeout: float | None, runtime: dict[str, Any]
) -> Callable[[Store], Engine]:
    if workers == 0:
        if job_timeout is not None:
            raise InputError("a job can be timed out only in a process of its own: give --workers 1 or more")
        return lambda store: InProcess(Worker(store, batch=batch, **runtime))
    from genkit.batch.engines.pool import Pool
    from genkit.lanes import lanes

    return lambda store: Pool(
        store, lanes(workers, runtime.get("device")), batch=batch, job_timeout=job_timeout, **runtime
    )
