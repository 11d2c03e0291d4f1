"""The engine of a Ray cluster: plain actors on its nodes, and a loop of ours that gives them something to do.

- An actor is bound to a node, holds one GPU (some cores on a cluster without), keeps the model that it has loaded and
  is asked for first what needs that one. It makes one call of a pipeline at a time and tells what came of it; the
  runner enters that before it gives out more, so a wish to stop is heard between any two calls.
- Ray starts nothing again by itself (`max_restarts=0, max_task_retries=0`): the runner knows what is lost and why.
  Where an actor's process died and its node still answers, the jobs of the running call are suspects (`died="crash"`;
  Ray does not tell a SIGKILL from a fault). Where the node answers no more, or cannot be reached, they go elsewhere and
  it is held against nobody.
- Nodes that join are given actors; a node that has another genkit, or does not see the output folder, is left out, with
  a line that says so. Where there is nothing to run on, the run waits and says that.
- The actors are the runner's: Ray ends them when it dies. What one of them may still put into its place is what the
  next run makes too, byte for byte.
- Inputs travel by digest, and only to a node that has no such file; outputs go from the actor to the store.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import signal
import socket
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genkit._version import __version__
from genkit.batch.actor import Maker
from genkit.batch.engine import Source, Warm, Watch
from genkit.batch.job import Job
from genkit.batch.journal import FOLDER
from genkit.batch.outcome import Died, Outcome, Retry
from genkit.batch.places import Place, on_gpus, places
from genkit.batch.store import STAGING, Folder, Store
from genkit.errors import InputError

try:
    import ray
    from ray.exceptions import ActorDiedError, RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise InputError(f"a Ray cluster needs a package ({error}): pip install 'genkit-media[ray]'") from None

__all__ = ["Ray"]

TICK = 0.2  # seconds after which a wish to stop is heard, or a call's time found to be over
PATIENCE = 30.0  # seconds without an actor before the run says that it waits
LOOK = 2.0  # seconds between looks at the cluster's nodes
TRIES = 3  # actors that may die on a node before they are ready, or over a model
GUESS = 8  # actors, before it is known
HELD = 32  # inputs that are kept in Ray's memory for the next ones that need them
OBJECTS = 256 << 20  # bytes of Ray's memory for objects, in a cluster started here
REACHED = 10.0  # seconds in which a cluster has to answer
NO_CLUSTER = "no Ray cluster at {!r} ({}); start one (`ray start --head`), with the same RAY_AUTH_MODE and token"
UNHARMED = "its actor ended before its turn"


@dataclass(eq=False)
class _Hand:
    """An actor as the runner sees it. waits: for the answer to which call, "" if it is free; result: that answer, when
    it comes; parts: its jobs, by the calls they are to be made in, the running one first; since: when that began; warm:
    what it has loaded, or will have when it is free again; error: how it died; loading: and that it was before it began
    any of its jobs."""

    number: int
    node: str
    host: str
    actor: Any
    waits: str = "ready"
    result: Any = None
    parts: list[Sequence[Job]] = field(default_factory=list)
    since: float = math.inf
    warm: Warm | None = None
    error: str = ""
    loading: bool = False

    def ask(self, waits: str, result: Any) -> None:
        self.waits, self.result = waits, result
        self.since = time.monotonic() if waits == "perform" else math.inf


class Ray:
    """store: where the files go; address: of a cluster ("auto": the one of this machine), None for the one that
    RAY_ADDRESS names, else one that is started here for the run; workers: actors at most, None for as many as fit;
    batch: jobs that share a call, 0 for as many as the pipeline is best at; job_timeout: seconds that a call may take
    for each of its jobs; runtime: what `genkit.load` takes.

    `run` raises InputError if there is no such cluster, or none of its nodes can be used.
    """

    def __init__(
        self,
        store: Store,
        *,
        address: str | None = None,
        workers: int | None = None,
        batch: int = 1,
        job_timeout: float | None = None,
        device: str | None = None,
        **runtime: Any,
    ) -> None:
        self.store, self.address, self.wanted, self.batch = store, address, workers, batch
        self.job_timeout = job_timeout or math.inf
        kind = (device or os.environ.get("GENKIT_DEVICE") or "").partition(":")[0] or None  # which one, Ray says
        self.runtime = {**runtime, "device": kind}
        self._hands: list[_Hand] = []
        self._refused: dict[str, str] = {}  # nodes, and why
        self._stillborn: Counter[str] = Counter()
        self._loading: Counter[Warm] = Counter()  # actors that died over a model, in a row
        self._hopeless: dict[Warm, str] = {}  # what is said of its jobs
        self._held: dict[str, Any] = {}  # inputs by digest
        self._looked = -math.inf
        self._idle = time.monotonic()  # since when nobody could be given anything; inf: it was said
        self._gone: set[str] = set()  # nodes that were lost
        self._probe: Path | None = None

    @property
    def workers(self) -> int:
        return len(self._hands) or self.wanted or GUESS

    def run(self, source: Source, watch: Watch) -> Iterator[list[Outcome]]:
        with _connected(self.address), self._probing():
            try:
                yield from self._rounds(source, watch)
            finally:
                for hand in self._hands:
                    _kill(hand.actor)
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

    # ------------------------------------------------------------------------------------------------------- actors

    def _staff(self, watch: Watch) -> None:
        """An actor for every place that has none, up to the number that is wanted."""
        if time.monotonic() - self._looked < LOOK:
            return
        self._looked = time.monotonic()
        nodes = [node for node in ray.nodes() if node["Alive"]]
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
        kind = ray.remote(Maker).options(
            num_cpus=place.cpus,
            num_gpus=place.gpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=_on(place.node),
            runtime_env={"env_vars": _environment()},
        )
        path = [entry for entry in sys.path if entry]
        actor: Any = kind.remote(self.store, self.batch, max(1, place.cpus), path, self.runtime)
        taken = {hand.number for hand in self._hands}
        number = next(number for number in range(len(taken) + 1) if number not in taken)
        hand = _Hand(number, place.node, place.host, actor)
        hand.ask("ready", actor.ready.remote(__version__, self._probe))
        self._hands.append(hand)

    def _refuse(self, hand: _Hand, reason: str, watch: Watch) -> None:
        """No more actors on a node."""
        for other in [other for other in self._hands if other.node == hand.node and other.waits == "ready"]:
            self._part_with(other)
        if hand.node not in self._refused:
            self._refused[hand.node] = reason
            watch.note(reason)
        self._looked = -math.inf

    def _part_with(self, hand: _Hand) -> None:
        _kill(hand.actor)
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

    # --------------------------------------------------------------------------------------------------------- jobs

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
            hand.ask("prepare", hand.actor.prepare.remote(jobs))
        return [], False

    def _listen(self, source: Source, watch: Watch, seconds: float) -> list[Outcome]:
        """What has come of it so far, waiting a moment for something to come."""
        asked = {hand.result: hand for hand in self._hands if hand.waits}
        if not asked:
            time.sleep(seconds)
            return []
        ray.wait(list(asked), timeout=seconds)
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=0)
        outcomes: list[Outcome] = []
        for hand in (asked[result] for result in answered):
            if hand in self._hands:  # and was not let go because of what another one said
                outcomes += self._heard(hand, source, watch)
        for hand in [hand for hand in self._hands if hand.waits == "perform"]:
            if time.monotonic() - hand.since > self.job_timeout * len(hand.parts[0]):
                error = f"took longer than {self.job_timeout:g} s (--job-timeout)"
                outcomes += self._without(hand, error, retry="now")
        return outcomes

    def _heard(self, hand: _Hand, source: Source, watch: Watch) -> list[Outcome]:
        try:
            answer = ray.get(hand.result)
        except (RayError, OSError) as error:
            return self._lost(hand, error, watch)
        if hand.waits == "ready" and answer:
            self._refuse(hand, answer, watch)
        elif hand.waits == "ready":
            self._stillborn.pop(hand.node, None)
            hand.waits = ""
        elif hand.waits == "prepare":
            self._prepared(hand, *answer)
        elif hand.waits == "hand_over":
            hand.ask("perform", hand.actor.perform.remote(hand.parts[0]))
        elif hand.waits == "verdict":  # the node lives: it was the process alone
            return self._crashed(hand)
        else:
            return self._made(hand, answer, source)
        return []

    def _prepared(self, hand: _Hand, sizes: Sequence[int], missing: dict[str, str]) -> None:
        (jobs,), hand.parts, hand.loading = hand.parts, [], False
        if hand.warm:
            del self._loading[hand.warm]
        for size in sizes:
            hand.parts.append(jobs[:size])
            jobs = jobs[size:]
        found = {digest: content for digest, place in missing.items() if (content := self._content(digest, place))}
        if found:
            hand.ask("hand_over", hand.actor.hand_over.remote(list(found), *found.values()))
        else:
            hand.ask("perform", hand.actor.perform.remote(hand.parts[0]))

    def _content(self, digest: str, place: str) -> Any:
        """A file's bytes in Ray's memory; None if it is gone. Whether it is still the same, is compared over there."""
        if digest not in self._held:
            try:
                self._held[digest] = ray.put(Path(place).read_bytes())
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
            hand.ask("perform", hand.actor.perform.remote(hand.parts[0]))
        else:
            hand.parts, hand.waits = [], ""
        return outcomes

    # ------------------------------------------------------------------------------------------------------- losses

    def _lost(self, hand: _Hand, error: Exception, watch: Watch) -> list[Outcome]:
        """An actor that does not answer: a fault of its own, or of its node."""
        died = isinstance(error, ActorDiedError)
        if hand.waits == "verdict" or not (died or isinstance(error, RayTaskError)) or not _lives(hand.node):
            if hand.node not in self._gone:
                self._gone.add(hand.node)
                watch.note(f"node {hand.host} was lost; what it had to do goes elsewhere")
            return self._without(hand)
        if hand.waits == "ready":
            self._stillbirth(hand, error, watch)
            return []
        _kill(hand.actor)
        hand.error, hand.loading = f"its actor on node {hand.host} {_reason(error)}", hand.waits == "prepare"
        hand.ask("verdict", _answer.options(scheduling_strategy=_on(hand.node)).remote())
        return []

    def _crashed(self, hand: _Hand) -> list[Outcome]:
        """No job is to blame for what dies while it loads a model; if that happens time and again, none of the model's
        is made."""
        if not hand.loading:
            return self._without(hand, hand.error, died="crash")
        assert hand.warm
        self._loading[hand.warm] += 1
        if self._loading[hand.warm] == TRIES:
            pipeline, model = hand.warm
            what = f"model {model!r} of {pipeline}" if model else f"the model of {pipeline}"
            self._hopeless[hand.warm] = f"{hand.error} each time it loaded {what}; try --workers 1, or another model"
        return self._without(hand)

    def _stillbirth(self, hand: _Hand, error: Exception, watch: Watch) -> None:
        self._stillborn[hand.node] += 1
        if getattr(error, "actor_init_failed", False) or self._stillborn[hand.node] == TRIES:
            self._refuse(hand, f"node {hand.host} cannot be used: an actor there {_reason(error)}", watch)
        else:
            self._part_with(hand)

    def _without(self, hand: _Hand, error: str = "", died: Died = "", retry: Retry = "never") -> list[Outcome]:
        """Takes leave of an actor. error: what is said of the jobs of the running call; its others go back unharmed."""
        self._part_with(hand)
        suspects = {job.output for job in hand.parts[0]} if error else set()
        return [
            Outcome(job, error=error, died=died, retry=retry)
            if job.output in suspects
            else Outcome(job, error=UNHARMED, died="node")
            for part in hand.parts
            for job in part
        ]


@ray.remote(num_cpus=0, max_retries=0)
def _answer() -> bool:
    return True


def _on(node: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node, soft=False)


def _lives(node: str) -> bool:
    return any(one["NodeID"] == node and one["Alive"] for one in ray.nodes())


def _kill(actor: Any) -> None:
    with contextlib.suppress(RayError, ValueError):
        ray.kill(actor)


def _reason(error: Exception) -> str:
    """What Ray tells of the end of an actor, in a few words."""
    text = str(error)
    if "exit code" in text:
        return f"ended by itself (exit status {text.rpartition('exit code')[2].strip(' .')[:4]})"
    if "OutOfMemory" in text or "low on memory" in text:
        return "ran out of memory and was killed"
    if getattr(error, "actor_init_failed", False) or isinstance(error, RayTaskError):
        return f"failed: {text.strip().splitlines()[-1][:300]}"
    return "died (a crash, or killed for want of memory)"


def _environment() -> dict[str, str]:
    """What actors take over of the runner's environment."""
    ours = {name: value for name, value in os.environ.items() if name.startswith("GENKIT_")}
    ours |= {name: os.environ[name] for name in ("HF_HUB_OFFLINE",) if name in os.environ}
    return {name: value for name, value in ours.items() if name not in ("GENKIT_HOME", "GENKIT_DEVICE")}


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """In a cluster; a caller's own connection is used as it is."""
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith("ray://"):
        raise InputError(f"{address}: give HOST:PORT of the cluster, and run genkit on one of its machines")
    _reach(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    here: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECTS} if address == "local" else {}
    with _handlers_kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **here)
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(NO_CLUSTER.format(address, reason)) from error
    # Else Ray writes what it thinks of a lost node to stdout, where our data goes.
    ray._private.worker._worker_logs_enabled = False
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Waits a moment for a cluster that is being started; Ray would try for minutes. Raises InputError."""
    host, _, port = address.rpartition(":")
    until = time.monotonic() + REACHED
    while host and port.isdigit():
        try:
            return socket.create_connection((host.strip("[]"), int(port)), REACHED).close()
        except OSError as error:
            if time.monotonic() > until:
                raise InputError(NO_CLUSTER.format(address, error.strerror or error)) from None
            time.sleep(0.5)


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself; here it is a wish to stop."""
    ours = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items() if ours else ():
            signal.signal(number, handler)
