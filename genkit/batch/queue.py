"""What is to be made next: a pull queue over a plan, grouped so that a loaded model stays warm.

Jobs are kept by their number in the plan, so that a hundred thousand that wait take a few bytes each. A group is a
stage's jobs of one model; groups come in the order of the plan. A worker gets from the group whose model it has loaded,
else from the one that fewest workers are at. Within a group jobs that share a `batch_key` are handed out together, as
many as the pipeline takes, and no more than leaves something for every worker.

A job whose input is still being made waits until it is there, and the next stage's others go ahead. A job that failed
is tried again before anything else of its group, alone, since it may be the one that breaks a batch.
"""

from __future__ import annotations

import math
import time
from array import array
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence

from genkit import registry
from genkit.batch.engines.engine import Warm
from genkit.batch.job import Job

__all__ = ["Queue"]


AHEAD = 512
"""Jobs of different keys that are looked at for others of theirs; bounds the time before the first is handed out."""
WAITING = 256
"""Jobs that wait for their inputs, beyond which no more of a group are looked at for the moment."""


class Waits(Exception):
    """An input of a job is still being made."""


class _Group:
    """A stage's jobs of one model, by their numbers. keyed: jobs that wait for others of their `batch_key`; again:
    those to be tried again; parked: those whose input is being made."""

    def __init__(self, warm: Warm) -> None:
        self.warm = warm
        self.numbers = array("Q")
        self.next = 0
        self.keyed: dict[Hashable, list[int]] = {}
        self.held = 0  # jobs in `keyed`
        self.again: deque[int] = deque()
        self.parked: deque[list[int]] = deque()
        self.workers: set[int] = set()

    @property
    def left(self) -> int:
        return len(self.numbers) - self.next + self.held + len(self.again) + sum(map(len, self.parked))


class Queue:
    """jobs: the plan's; batch: jobs that share a call, 0 for as many as the pipeline takes; workers: how many pull."""

    def __init__(self, jobs: Sequence[Job], batch: int = 0, workers: int = 1) -> None:
        self.jobs, self.batch, self.workers = jobs, batch, max(1, workers)
        self.groups: dict[tuple[str, Warm], _Group] = {}
        self.later: list[tuple[float, int]] = []  # when a job may be tried again, on the monotonic clock

    def add(self, number: int, job: Job, *, alone: bool = False) -> None:
        """Takes in a job of the plan that is to be made; to be called in the order of the plan. alone: not with others,
        since a process died over it."""
        warm = (job.pipeline, job.model)
        group = self.groups.get((job.stage, warm))
        if group is None:
            group = self.groups[job.stage, warm] = _Group(warm)
        if alone:
            group.again.append(number)
        else:
            group.numbers.append(number)

    def again(self, number: int, job: Job, after: float = 0.0) -> None:
        """Takes a job back. after: seconds that it waits."""
        if after:
            self.later.append((time.monotonic() + after, number))
        else:
            self.groups[job.stage, (job.pipeline, job.model)].again.append(number)

    def take(self, warm: Warm | None, worker: int, ready: Callable[[int, Job], Job | None]) -> list[Job] | None:
        """Jobs that are to be made together; None if there are none now.

        ready: makes a job ready to be handed out; None if it needs no making; raises `Waits` if an input is not there.
        """
        self._wake()
        for group in self._ranked(warm):
            group.workers.add(worker)
            found = self._from(group, ready)
            if found:
                for other in self.groups.values():
                    if other is not group:
                        other.workers.discard(worker)
                return found
            group.workers.discard(worker)
        return None

    def wait(self) -> float | None:
        """Seconds until a job may be tried again; None if none waits for that."""
        return max(0.0, min(self.later)[0] - time.monotonic()) if self.later else None

    def _wake(self) -> None:
        now = time.monotonic()
        due = [number for when, number in self.later if when <= now]
        self.later = [(when, number) for when, number in self.later if when > now]
        for number in due:
            self.again(number, self.jobs[number])

    def _ranked(self, warm: Warm | None) -> list[_Group]:
        """Groups in the order in which a worker should ask them: of the earliest stage that has something, the one it
        is warm for, then those that fewest are at."""
        stages = list(dict.fromkeys(stage for stage, _ in self.groups))
        open_ = [(stages.index(stage), group) for (stage, _), group in self.groups.items() if group.left]
        return [group for _, group in sorted(open_, key=lambda one: (one[0], one[1].warm != warm, len(one[1].workers)))]

    def _from(self, group: _Group, ready: Callable[[int, Job], Job | None]) -> list[Job] | None:
        parked, group.parked = group.parked, deque()
        for numbers in self._drawn(group, parked):
            if len(group.parked) > WAITING:
                group.parked.append(numbers)
                break
            waiting: list[int] = []
            found: list[Job] = []
            for number in numbers:
                try:
                    job = ready(number, self.jobs[number])
                except Waits:
                    waiting.append(number)
                else:
                    found += [job] if job else []
            if waiting:
                group.parked.append(waiting)
            if found:
                group.parked.extend(parked)
                return found
        group.parked.extend(parked)
        return None

    def _drawn(self, group: _Group, parked: deque[list[int]]) -> Iterator[list[int]]:
        """What a group may hand out, each time it is asked something else."""
        while parked:
            yield parked.popleft()
        while group.again:
            yield [group.again.popleft()]
        while numbers := self._chunk(group):
            yield numbers

    def _chunk(self, group: _Group) -> list[int]:
        """The next jobs of one `batch_key`; empty if there are none."""
        kind = registry.get(group.warm[0])
        most = self.batch or kind.together
        size = max(1, min(most, math.ceil(group.left / self.workers)))
        if most == 1:
            numbers = list(group.numbers[group.next : group.next + 1])
            group.next += len(numbers)
            return numbers
        while group.next < len(group.numbers) and group.held < AHEAD:
            number = group.numbers[group.next]
            group.next += 1
            # Inputs of earlier stages have no path yet; their placeholders differ, so they share no batch by it.
            key = kind.batch_key(kind.Params.parse(self.jobs[number].params, unchecked=True))
            group.keyed.setdefault(key, []).append(number)
            group.held += 1
            if len(group.keyed[key]) >= size:
                return self._pop(group, key)
        return self._pop(group, next(iter(group.keyed))) if group.keyed else []

    def _pop(self, group: _Group, key: Hashable) -> list[int]:
        numbers = group.keyed.pop(key)
        group.held -= len(numbers)
        return numbers
