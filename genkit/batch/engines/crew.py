"""Actors on the nodes of a cluster, and a loop that gives them something to do: an engine, but for the cluster itself.

- An actor is bound to a node, holds one GPU (some cores on a cluster without), keeps the model that it has loaded and
  is asked for first what needs that one. It makes one call of a pipeline at a time and tells what came of it; the
  runner enters that before it gives out more, so a wish to stop is heard between any two calls.
- Nothing is started again but by this loop, which knows what is lost and why. Where an actor's process died and its
  node still answers, the jobs of the running call are suspects, and its last words tell a crash from a SIGKILL; no job
  is to blame for what dies while it loads a model, and if that happens time and again, none of the model's is made.
  Where the node answers no more, or cannot be reached, its jobs go elsewhere and it is held against nobody.
- Nodes that join are given actors; a node that has another genkit, or does not see the output folder, is left out, with
  a line that says so. Where there is nothing to run on, the run waits and says that.
- Inputs travel by digest, and only to a node that has no such file; outputs go from the actor to the store.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genkit._version import __version__
from genkit.batch.engines.cluster import Cluster, Lost
from genkit.batch.engines.engine import Source, Warm, Watch
from genkit.batch.engines.outcome import Died, Outcome, Retry
from genkit.batch.engines.places import Place, on_gpus, places
from genkit.batch.job import Job
from genkit.batch.journal import FOLDER
from genkit.batch.store import STAGING, Folder, Store
from genkit.errors import InputError

__all__ = ["Crew"]

TICK = 0.2  # seconds after which a wish to stop is heard, or a call's time found to be over
PATIENCE = 30.0  # seconds without an actor before the run says that it waits
LOOK = 2.0  # seconds between looks at the cluster's nodes
TRIES: dict[Died, int] = {"crash": 3, "killed": 20}  # actors that may die over a model, in a row
STILLBORN = 3  # actors that may die on a node before they are ready
GUESS = 8  # actors, before it is known
HELD = 32  # inputs that are kept in the cluster's memory for the next ones that need them
UNHARMED = "its actor ended before its turn"


@dataclass(eq=False)
class _Hand:
    """An actor as the runner sees it. waits: for the answer to which call, "" if it is free; result: that answer, when
    it comes; parts: its jobs, by the calls they are to be made in, the running one first; since: when that began; warm:
    what it has loaded, or will have when it is free again; file: that it complains to; error: how it died, if that is
    known; loading: and that it was before it began any of its jobs."""

    number: int
    node: str
    host: str
    actor: Any
    waits: str = "ready"
    result: Any = None
    parts: list[Sequence[Job]] = field(default_factory=list)
    since: float = math.inf
    warm: Warm | None = None
    file: str = ""
    error: str = ""
    loading: bool = False


class Crew:
    """store: where the files go; workers: actors at most, None for as many as fit; batch: jobs that share a call, 0 for
    as many as the pipeline is best at; job_timeout: seconds that a call may take for each of its jobs; path: where
    actors look for plugins; runtime: what `genkit.load` takes.

    `run` raises InputError if there is no such cluster, or none of its nodes can be used.
    """

    def __init__(
        self,
        cluster: Cluster,
        store: Store,
        *,
        workers: int | None = None,
        batch: int = 1,
        job_timeout: float | None = None,
        path: Sequence[str] = (),
        device: str | None = None,
        **runtime: Any,
    ) -> None:
        self.cluster, self.store, self.wanted, self.batch, self.path = cluster, store, workers, batch, path
        self.job_timeout = job_timeout or math.inf
        kind = (device or os.environ.get("GENKIT_DEVICE") or "").partition(":")[0] or None  # which, the cluster says
        self.runtime = {**runtime, "device": kind}
        self._hands: list[_Hand] = []
        self._refused: dict[str, str] = {}  # nodes, and why
        self._gone: set[str] = set()  # nodes that were lost
        self._stillborn: Counter[str] = Counter()  # actors that died before they were ready, by node
        self._loading: dict[Warm, Counter[Died]] = {}  # how actors died over a model, in a row
        self._hopeless: dict[Warm, str] = {}  # what is said of its jobs
        self._held: dict[str, Any] = {}  # inputs by digest
        self._looked = -math.inf
        self._idle = time.monotonic()  # since when nobody could be given anything; inf: it was said
        self._probe: Path | None = None

    @property
    def workers(self) -> int:
        return len(self._hands) or self.wanted or GUESS

    def run(self, source: Source, watch: Watch) -> Iterator[list[Outcome]]:
        with self.cluster.joined(), self._probing():
            try:
                yield from self._rounds(source, watch)
            finally:
                for hand in self._hands:
                    self.cluster.kill(hand.actor)
                self._hands.clear()

    def _rounds(self, source: Source, watch: Watch) -> Iterator[list[Outcome]]:
        while True:
            self._staff(watch)
            outcomes, dry = self._hand_out(source)
            pause: float | None = 0.0 if outcomes else TICK
            if dry and not any(hand.parts for hand in self._hands):
                pause = source.wait()
            if pause is None:
                return
            outcomes += self._listen(source, watch, min(pause, TICK))
            if outcomes:
                yield outcomes

    # Actors

    def _staff(self, watch: Watch) -> None:
        """An actor for every place that has none, up to the number that is wanted."""
        if time.monotonic() - self._looked < LOOK:
            return
        self._looked = time.monotonic()
        nodes = self.cluster.nodes()
        taken = Counter(hand.node for hand in self._hands)
        for place in places(nodes, self.runtime["device"], self.wanted):
            if taken[place.node]:
                taken[place.node] -= 1
            elif place.node not in self._refused and len(self._hands) < (self.wanted or math.inf):
                self._hire(place)
        self._tell(nodes, watch)

    def _tell(self, nodes: Sequence[dict[str, Any]], watch: Watch) -> None:
        """Says what a run waits for that has nothing to run on. Raises InputError if there is nothing to wait for."""
        alive = {node["NodeID"] for node in nodes}
        refused = [line for node, line in self._refused.items() if node in alive]
        if refused and not self._hands:
            raise InputError(refused[0])
        if any(hand.waits != "ready" for hand in self._hands):
            self._idle = time.monotonic()
        elif time.monotonic() - self._idle > PATIENCE:
            self._idle = math.inf
            what = "GPU" if on_gpus(nodes, self.runtime["device"]) else "core"
            watch.note(f"waiting for an actor to start: perhaps no {what} is free (`ray status` shows the cluster)")

    def _hire(self, place: Place) -> None:
        actor = self.cluster.hire(place, self.store, self.batch, max(1, place.cpus), self.path, self.runtime)
        taken = {hand.number for hand in self._hands}
        number = next(number for number in range(len(taken) + 1) if number not in taken)
        hand = _Hand(number, place.node, place.host, actor)
        self._ask(hand, "ready", __version__, self._probe)
        self._hands.append(hand)

    def _ask(self, hand: _Hand, method: str, *arguments: Any) -> None:
        hand.waits, hand.result = method, self.cluster.call(hand.actor, method, *arguments)
        hand.since = time.monotonic() if method == "perform" else math.inf

    def _ready(self, hand: _Hand, watch: Watch, hindrance: str, file: str) -> None:
        if hindrance:
            self._refuse(hand, hindrance, watch)
        else:
            self._stillborn.pop(hand.node, None)
            hand.waits, hand.file = "", file

    def _refuse(self, hand: _Hand, reason: str, watch: Watch) -> None:
        """No more actors on a node."""
        for other in [other for other in self._hands if other.node == hand.node and other.waits == "ready"]:
            self._part_with(other)
        if hand.node not in self._refused:
            self._refused[hand.node] = reason
            watch.note(reason)
        self._looked = -math.inf

    def _part_with(self, hand: _Hand) -> None:
        self.cluster.kill(hand.actor)
        self._hands.remove(hand)
        self._looked = -math.inf

    @contextlib.contextmanager
    def _probing(self) -> Iterator[None]:
        """While it lasts a file lies in the output folder that every node has to see."""
        if not isinstance(self.store, Folder):
            yield
            return
        self._probe = self.store.home / FOLDER / STAGING / f"probe-{secrets.token_hex(8)}"
        self._probe.parent.mkdir(parents=True, exist_ok=True)
        self._probe.touch()
        try:
            yield
        finally:
            self._probe.unlink(missing_ok=True)

    # Jobs

    def _hand_out(self, source: Source) -> tuple[list[Outcome], bool]:
        """Something to do for everybody who has nothing. Gives what cannot be made, and whether there was nothing."""
        if source.stopping:
            return [], True
        for hand in [hand for hand in self._hands if hand.waits == ""]:
            jobs = source.take(hand.warm, hand.number)
            if not jobs:
                return [], True  # what is nothing for one is nothing for the others
            if error := self._hopeless.get((jobs[0].pipeline, jobs[0].model)):
                return [Outcome(job, error=error) for job in jobs], False
            hand.parts, hand.warm = [jobs], (jobs[0].pipeline, jobs[0].model)
            self._ask(hand, "prepare", jobs)
        return [], False

    def _listen(self, source: Source, watch: Watch, seconds: float) -> list[Outcome]:
        """What has come of it so far, waiting a moment for something to come."""
        asked = {hand.result: hand for hand in self._hands if hand.waits}
        if not asked:
            time.sleep(seconds)
            return []
        outcomes: list[Outcome] = []
        for hand in [asked[result] for result in self.cluster.come(list(asked), seconds)]:
            if hand in self._hands:  # and was not let go because of what another one said
                outcomes += self._heard(hand, source, watch)
        for hand in [hand for hand in self._hands if hand.waits == "perform"]:
            if time.monotonic() - hand.since > self.job_timeout * len(hand.parts[0]):
                error = f"took longer than {self.job_timeout:g} s (--job-timeout)"
                outcomes += self._without(hand, error, retry="now")
        return outcomes

    def _heard(self, hand: _Hand, source: Source, watch: Watch) -> list[Outcome]:
        try:
            answer = self.cluster.get(hand.result)
        except Lost as error:
            return self._lost(hand, error, watch)
        if hand.waits == "ready":
            self._ready(hand, watch, *answer)
        elif hand.waits == "prepare":
            self._prepared(hand, *answer)
        elif hand.waits == "hand_over":
            self._ask(hand, "perform", hand.parts[0])
        elif hand.waits == "knock":  # the node lives: it was the process alone
            return self._crashed(hand, answer)
        else:
            return self._made(hand, answer, source)
        return []

    def _prepared(self, hand: _Hand, sizes: Sequence[int], missing: dict[str, str]) -> None:
        (jobs,), hand.parts, hand.loading = hand.parts, [], False
        if hand.warm:
            self._loading.pop(hand.warm, None)
        for size in sizes:
            hand.parts.append(jobs[:size])
            jobs = jobs[size:]
        found = {digest: content for digest, place in missing.items() if (content := self._content(digest, place))}
        if found:
            self._ask(hand, "hand_over", list(found), *found.values())
        else:
            self._ask(hand, "perform", hand.parts[0])

    def _content(self, digest: str, place: str) -> Any:
        """A file's bytes in the cluster's memory; None if it is gone. The actor compares them with the digest."""
        if digest not in self._held:
            try:
                self._held[digest] = self.cluster.put(Path(place).read_bytes())
            except OSError:
                return None
        self._held[digest] = self._held.pop(digest)  # the last one used
        for old in list(self._held)[:-HELD]:
            del self._held[old]
        return self._held[digest]

    def _made(self, hand: _Hand, outcomes: list[Outcome], source: Source) -> list[Outcome]:
        del hand.parts[0]
        if any(outcome.sick for outcome in outcomes):
            return outcomes + self._without(hand)
        if hand.parts and not source.stopping:
            self._ask(hand, "perform", hand.parts[0])
        else:
            hand.parts, hand.waits = [], ""
        return outcomes

    # Losses

    def _lost(self, hand: _Hand, lost: Lost, watch: Watch) -> list[Outcome]:
        """What is to be done about an actor that does not answer: a fault of its own, or of its node."""
        if lost.node or hand.waits == "knock" or not any(hand.node == node["NodeID"] for node in self.cluster.nodes()):
            if hand.node not in self._gone:
                self._gone.add(hand.node)
                watch.note(f"node {hand.host} was lost; what it had to do goes elsewhere")
            return self._without(hand)
        if hand.waits == "ready":
            self._stillbirth(hand, lost, watch)
            return []
        self.cluster.kill(hand.actor)
        hand.error, hand.loading = lost.reason, hand.waits == "prepare"
        hand.waits, hand.result, hand.since = "knock", self.cluster.knock(hand.node, hand.file), math.inf
        return []

    def _crashed(self, hand: _Hand, words: str) -> list[Outcome]:
        """No job is to blame for what dies while it loads a model; if that happens time and again, none of the model's
        is made. words: its last ones."""
        died, how = _fate(hand, words)
        error = f"its actor on node {hand.host} {how}"
        if not hand.loading:
            return self._without(hand, error, died=died, trace=words)
        assert hand.warm
        deaths = self._loading.setdefault(hand.warm, Counter())
        deaths[died] += 1
        if deaths[died] == TRIES[died]:
            pipeline, model = hand.warm
            what = f"model {model!r} of {pipeline}" if model else f"the model of {pipeline}"
            self._hopeless[hand.warm] = f"{error} each time it loaded {what}; try --workers 1, or another model"
        return self._without(hand)

    def _stillbirth(self, hand: _Hand, lost: Lost, watch: Watch) -> None:
        self._stillborn[hand.node] += 1
        if lost.hopeless or self._stillborn[hand.node] == STILLBORN:
            self._refuse(hand, f"node {hand.host} cannot be used: an actor there {lost.reason or 'died'}", watch)
        else:
            self._part_with(hand)

    def _without(
        self, hand: _Hand, error: str = "", died: Died = "", retry: Retry = "never", trace: str = ""
    ) -> list[Outcome]:
        """Takes leave of an actor. error: what is said of the jobs of the running call; its others go back unharmed."""
        self._part_with(hand)
        suspects = {job.output for job in hand.parts[0]} if error else set()
        return [
            Outcome(job, error=error, died=died, retry=retry, trace=trace)
            if job.output in suspects
            else Outcome(job, error=UNHARMED, died="node")
            for part in hand.parts
            for job in part
        ]


def _fate(hand: _Hand, words: str) -> tuple[Died, str]:
    """How a process died whose node lives. A SIGKILL is the one end that leaves no words."""
    if hand.error:
        return "crash", hand.error
    if found := re.search(r"Fatal Python error: ([^\n]{1,100})", words):
        return "crash", f"died ({found[1]})"
    return ("killed", "was killed (out of memory?)") if hand.file else ("crash", "died")
