"""The engine of worker processes on one machine: a process for each lane, pulling from one queue.

A process (`genkit.batch.engines.process`) is started when there is something for it to do, and all that are needed
start at once. Each keeps the model it has loaded, and gets first what needs that one. What they have to say is
collected from all of them at once, so that a wave of outcomes is one sync of the journal.

When a process dies, another takes its place. Of the jobs it had, those of the running call are suspects, and their
outcome says `died`; those that had not been begun come back with `died="node"`, which is held against nobody. The same
holds where the runner ends a process itself: for a call that takes too long, and for one that says it is `sick`. No job
is to blame for what dies while it loads a model; if that happens time and again, the model's jobs are not made. Nor for
what dies before it is ready; if that happens time and again, nothing can be made, and the run ends.

A SIGKILL may come from the machine, out of memory, or from outside. The kernel counts those of its own making; where
that number has not risen, it is "killed", which does not count as much as a crash.
"""

from __future__ import annotations

import math
import re
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from genkit.batch.engines.engine import Source, Warm, Watch
from genkit.batch.engines.outcome import Died, Outcome, Retry
from genkit.batch.engines.process import Process
from genkit.batch.store import Store
from genkit.errors import GenkitError
from genkit.lanes import Lane

__all__ = ["Pool"]

TICK = 0.1  # seconds after which a wish to stop is heard, or a call's time found to be over
GRACE = 1.0  # seconds that processes have to leave by themselves
TRIES: dict[Died, int] = {"crash": 3, "killed": 20}  # in a row, before a start or a load is hopeless
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
        self._processes: dict[int, Process] = {}
        self._stillborn: Counter[Died] = Counter()  # how those died that were never ready, in a row
        self._loading: defaultdict[Warm | None, Counter[Died]] = defaultdict(Counter)  # and over which model
        self._hopeless: dict[Warm, Outcome] = {}  # what is said of its jobs
        self._oom_kills = 0

    @property
    def workers(self) -> int:
        return len(self.lanes)

    def run(self, source: Source, watch: Watch) -> Iterator[list[Outcome]]:
        self._oom_kills = oom_kills()
        try:
            while True:
                outcomes = self._hand_out(source)
                pause: float | None = 0.0 if outcomes else TICK
                if not outcomes and not any(process.jobs for process in self._processes.values()):
                    pause = source.wait()
                if pause is None:
                    return
                outcomes += self._listen(watch, min(pause, TICK))
                if outcomes:
                    yield outcomes
        finally:
            self._end()

    def _hand_out(self, source: Source) -> list[Outcome]:
        """Something to do for everybody who has nothing; those who are there come before those yet to be started.
        Returns what cannot be made."""
        if source.stopping:
            for process in self._processes.values():
                process.stop()
            return []
        for number in sorted(range(len(self.lanes)), key=lambda number: number not in self._processes):
            there = self._processes.get(number)
            if there is None or not there.jobs:
                jobs = source.take(there.warm if there else None, number)
                if not jobs:
                    return []  # what is nothing for one is nothing for the others
                if hopeless := self._hopeless.get((jobs[0].pipeline, jobs[0].model)):
                    return [replace(hopeless, job=job) for job in jobs]
                (there or self._started(number)).give(jobs)
        return []

    def _started(self, number: int) -> Process:
        process = self._processes[number] = Process(number, self.lanes[number], self.store, self.batch, self.runtime)
        return process

    def _listen(self, watch: Watch, seconds: float) -> list[Outcome]:
        """What has come of it so far, waiting a moment for something to come."""
        processes = list(self._processes.values())
        wait([end for process in processes for end in process.ends], seconds)
        outcomes: list[Outcome] = []
        for process in processes:
            for what, of in process.messages():
                if what == "made":
                    outcomes += of
                elif what == "step":
                    step, total, note = of
                    watch.step(step, total, note=note, worker=process.number)
                elif what == "ready":
                    self._stillborn.clear()
                elif what == "began":
                    self._loading.pop(process.warm, None)
            outcomes += self._looked_after(process)
        return outcomes

    def _looked_after(self, process: Process) -> list[Outcome]:
        """The outcomes of what a process leaves behind, if it is dead or is not to live."""
        if process.dead:
            error, died = self._why(process.fate())
            left = self._without(process, process.begun, error, died=died)
            if not process.ready:
                self._born_dead(process, error, died)
                return []
            if process.loading:
                self._died_loading(process, error, died)
            return left
        if process.begun and time.monotonic() - process.since > self.job_timeout * len(process.begun):
            error = f"took longer than {self.job_timeout:g} s (--job-timeout)"
            return self._without(process, process.begun, error, retry="now")
        return self._without(process) if process.sick else []

    def _without(
        self, process: Process, suspects: Collection[str] = (), error: str = "", died: Died = "", retry: Retry = "never"
    ) -> list[Outcome]:
        """Takes leave of a process. error, died, retry: of the suspects; its other jobs go back unharmed."""
        self._processes.pop(process.number).end()
        blamed = {
            output: Outcome(process.jobs[output], error=error, died=died, retry=retry, trace=process.trace)
            for output in suspects
        }
        return [blamed.get(output) or Outcome(job, error=UNHARMED, died="node") for output, job in process.jobs.items()]

    def _born_dead(self, process: Process, error: str, died: Died) -> None:
        """Another is given the same to do, unless it is hopeless."""
        self._stillborn[died] += 1
        if self._stillborn[died] == TRIES[died]:
            last = f": {process.last_line}" if process.last_line else ""
            raise GenkitError(f"no worker process can be started: {error}{last}; `genkit doctor` shows what is missing")
        if process.jobs:
            self._started(process.number).give(list(process.jobs.values()))

    def _died_loading(self, process: Process, error: str, died: Died) -> None:
        deaths = self._loading[process.warm]
        deaths[died] += 1
        if process.warm and deaths[died] == TRIES[died]:
            pipeline, model = process.warm
            what = f"model {model!r} of {pipeline}" if model else f"the model of {pipeline}"
            error = f"{error} each time it loaded {what}; try --workers 1, or another model"
            self._hopeless[process.warm] = Outcome(next(iter(process.jobs.values())), error=error, trace=process.trace)

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
        processes, self._processes = list(self._processes.values()), {}
        for process in processes:
            process.leave()
        until = time.monotonic() + GRACE
        for process in processes:
            process.end(after=max(0.0, until - time.monotonic()))


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
