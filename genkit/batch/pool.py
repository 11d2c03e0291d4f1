"""The engine of worker processes on one machine: a process for each lane, pulling from one queue.

A process is started when there is something for it to do, and all that are needed start at once; see `child` for how.
Each keeps the model it has loaded, and is asked for first what needs that one. What they have to say is collected from
all of them at once, so that a wave of outcomes is one sync of the journal.

When a process dies, another takes its place. Of the jobs it had, those of the running call are suspects (of a model
that was being loaded: the first), and their outcome says `died`; those that had not been begun come back with
`died="node"`, which is held against nobody. The same holds where the runner ends a process itself: for a call that
takes too long, and for one that says it is `sick`.

A SIGKILL may come from the machine, out of memory, or from outside. The kernel counts those of its own making; where
that number has not risen, it is "killed", which does not count as much as a crash.
"""

from __future__ import annotations

import math
import re
import signal
import time
from collections.abc import Collection, Iterator, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from genkit.batch.child import Child
from genkit.batch.engine import Source, Watch
from genkit.batch.outcome import Died, Outcome, Retry
from genkit.batch.store import Store
from genkit.errors import GenkitError
from genkit.lanes import Lane

__all__ = ["Pool"]

TICK = 0.1  # seconds after which a wish to stop is heard, or a call's time found to be over
GRACE = 1.0  # seconds that processes have to leave by themselves
TRIES = 3
UNHARMED = "its process ended before its turn"


class Pool:
    """store: where the files go; lanes: a device and a number of threads for each process (`genkit.lanes`); batch: jobs
    that share a call, 0 for as many as the pipeline is best at; job_timeout: seconds that a call may take for each of
    its jobs, without the loading of the model; runtime: what `genkit.load` takes.

    `run` raises GenkitError if processes end again and again before they are ready.
    """

    def __init__(
        self, store: Store, lanes: Sequence[Lane], *, batch: int = 1, job_timeout: float | None = None, **runtime: Any
    ) -> None:
        self.store, self.lanes, self.batch, self.runtime = store, lanes, batch, runtime
        self.job_timeout = job_timeout or math.inf
        self._children: dict[int, Child] = {}
        self._stillborn = 0  # in a row
        self._oom_kills = 0

    @property
    def workers(self) -> int:
        return len(self.lanes)

    def run(self, source: Source, watch: Watch) -> Iterator[list[Outcome]]:
        self._oom_kills = oom_kills()
        try:
            while True:
                self._hand_out(source)
                pause = None
                if not any(child.jobs for child in self._children.values()) and (pause := source.wait()) is None:
                    return
                outcomes = self._listen(watch, pause)
                if outcomes:
                    yield outcomes
        finally:
            self._end()

    def _hand_out(self, source: Source) -> None:
        """Something to do for everybody who has nothing; those who are there come before those yet to be started."""
        if source.stopping:
            for child in self._children.values():
                child.stop()
            return
        for number in sorted(range(len(self.lanes)), key=lambda number: number not in self._children):
            there = self._children.get(number)
            if there is None or not there.jobs:
                jobs = source.take(there.warm if there else None, number)
                if jobs:
                    (there or self._started(number)).give(jobs)

    def _started(self, number: int) -> Child:
        child = self._children[number] = Child(number, self.lanes[number], self.store, self.batch, self.runtime)
        return child

    def _listen(self, watch: Watch, pause: float | None) -> list[Outcome]:
        """What has come of it so far, waiting a moment for something to come."""
        children = list(self._children.values())
        patience = TICK if pause is None else min(TICK, pause)
        wait([end for child in children for end in child.ends], patience)
        outcomes: list[Outcome] = []
        for child in children:
            for what, of in child.messages():
                if what == "made":
                    outcomes += of
                elif what == "step":
                    step, total, note = of
                    watch.step(step, total, note=note, worker=child.number)
                elif what == "ready":
                    self._stillborn = 0
            outcomes += self._looked_after(child)
        return outcomes

    def _looked_after(self, child: Child) -> list[Outcome]:
        """The outcomes of what a child leaves behind, if it is dead or is not to live."""
        if child.dead and not child.ready:
            self._born_dead(child)
        elif child.dead:
            error, died = self._why(child.fate())
            return self._without(child, child.begun or list(child.jobs)[:1], error, died=died)
        elif child.begun and time.monotonic() - child.since > self.job_timeout * len(child.begun):
            error = f"took longer than {self.job_timeout:g} s (--job-timeout)"
            return self._without(child, child.begun, error, retry="now")
        elif child.sick:
            return self._without(child)
        return []

    def _without(
        self, child: Child, suspects: Collection[str] = (), error: str = "", died: Died = "", retry: Retry = "never"
    ) -> list[Outcome]:
        """Takes leave of a child. error, died, retry: what is said of the suspects; its other jobs go back unharmed."""
        self._children.pop(child.number).end()
        blamed = {
            output: Outcome(child.jobs[output], error=error, died=died, retry=retry, trace=child.trace)
            for output in suspects
        }
        return [blamed.get(output) or Outcome(job, error=UNHARMED, died="node") for output, job in child.jobs.items()]

    def _born_dead(self, child: Child) -> None:
        """Another is given the same to do, unless it is hopeless."""
        error, _ = self._why(child.fate())
        self._children.pop(child.number).end()
        self._stillborn += 1
        if self._stillborn == TRIES:
            last = f": {child.last_line}" if child.last_line else ""
            raise GenkitError(f"no worker process can be started: {error}{last}; `genkit doctor` shows what is missing")
        if child.jobs:
            self._started(child.number).give(list(child.jobs.values()))

    def _why(self, status: int | None) -> tuple[str, Died]:
        if status is None:
            return "its process answered no more", "crash"
        if status >= 0:
            return f"its process ended by itself (exit status {status})", "crash"
        if status != -signal.SIGKILL:
            return f"its process died ({_signal(-status)})", "crash"
        before, self._oom_kills = self._oom_kills, oom_kills()
        if self._oom_kills > before:
            return "its process ran out of memory and was killed", "crash"
        return "its process was killed (out of memory?)", "killed"

    def _end(self) -> None:
        children, self._children = list(self._children.values()), {}
        for child in children:
            child.leave()
        until = time.monotonic() + GRACE
        for child in children:
            child.end(after=max(0.0, until - time.monotonic()))


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # one that has no name, such as the real-time ones
        return f"signal {number}"


def oom_kills(root: Path = Path("/")) -> int:
    """How many processes the kernel has killed for want of memory: of our control group, if it tells, else of all."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
        path = next(line[3:] for line in lines if line.startswith("0::"))
        return _counted(root / "sys/fs/cgroup" / path.strip("/") / "memory.events")
    except (OSError, StopIteration):
        pass
    try:
        return _counted(root / "proc/vmstat")
    except OSError:
        return 0


def _counted(path: Path) -> int:
    found = re.search(r"^oom_kill (\d+)$", path.read_text(), re.MULTILINE)
    return int(found[1]) if found else 0
