"""The engine of a run that `accelerate launch` (or torchrun) started: one process a GPU, on one machine or several.

    accelerate launch --num_processes 4 -m genkit run RECIPE

The first of these processes, rank 0, is the runner: it plans, has the lock, writes the journal. Every rank, the first
one too, has a worker process of its own on its own device, and a batch of jobs is divided among them; a single job is
made by one. So the engine is `pool.Pool` with processes that are elsewhere: a rank passes on what its own and the
runner have to say to each other, and starts another when it is told to.

- Of the launch only the environment is used (RANK, WORLD_SIZE, LOCAL_RANK and their kin), and its store to find each
  other (`genkit.batch.engines.meeting`). No process group is made: inference has nothing to reduce, and a collective
  call that one rank misses would hold up all of them.
- Files go where the runner's store is, straight from where they were made: a folder has to be one that every machine
  sees, which each rank checks, or a URL.
- A rank ends when rank 0 does, in silence and with exit status 0: it is rank 0 that says how it went. A rank that is
  gone, or whose machine is, ends the run with one line. What was done is kept.
"""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from genkit.batch.engines.child import STOP
from genkit.batch.engines.engine import Source, Watch
from genkit.batch.engines.meeting import Peer, board, connected, met
from genkit.batch.engines.outcome import Outcome
from genkit.batch.engines.pool import Pool
from genkit.batch.engines.process import LOOK, Process
from genkit.batch.journal import FOLDER
from genkit.batch.store import Folder, Store
from genkit.errors import GenkitError, InputError
from genkit.lanes import Lane, lanes

__all__ = ["Launch", "Ranks", "join", "launched"]

SEEN = 10.0  # seconds that a file takes at most to be seen by another machine
ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
END = "end"


def launched() -> bool:
    """Whether this process is one of several that were launched together."""
    return all(name in os.environ for name in ENVIRONMENT[:2]) and int(os.environ["WORLD_SIZE"] or 1) > 1


@dataclass
class Launch:
    """What rank 0 has: the others, and a place of its own among the processes of its machine."""

    peers: list[Peer]
    local: tuple[int, int]


def join() -> Launch | None:
    """Brings the processes of a launch together; to be called by each, before anything else. Rank 0 gets the others.
    Any other rank makes jobs until rank 0 has ended, and gets None: there is nothing more for it to do.

    Raises GenkitError if somebody does not turn up.
    """
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local = int(os.environ.get("LOCAL_RANK", rank)), int(os.environ.get("LOCAL_WORLD_SIZE", world))
    host = os.environ.get("MASTER_ADDR", "localhost")
    store = board()
    for name in ENVIRONMENT:  # or whoever asks Accelerate for a device waits for a process group
        os.environ.pop(name, None)
    if rank == 0:
        return Launch(met(store, host, world), local)
    for number in (signal.SIGINT, signal.SIGTERM):  # they are for rank 0 to answer
        signal.signal(number, lambda *_: None)
    _serve(connected(store, rank), local)
    return None


# Rank 0's end.


class Ranks(Pool):
    """launch: as `join` gave it; the rest: as for `Pool`. Its worker number is a process's rank.

    `run` raises GenkitError if a rank is gone, InputError if one does not see the output folder.
    """

    def __init__(
        self, store: Store, launch: Launch, *, batch: int = 1, job_timeout: float | None = None, **runtime: Any
    ) -> None:
        lane, *others = _lane(launch.local, runtime), *[Lane(None, 0)] * len(launch.peers)
        super().__init__(store, [lane, *others], batch=batch, job_timeout=job_timeout, **runtime)
        self.launch = launch
        self._sign: Path | None = None

    def run(self, source: Source, watch: Watch) -> Iterator[list[Outcome]]:
        if isinstance(self.store, Folder):
            self._sign = self.store.home / FOLDER / f"ranks-{secrets.token_hex(8)}"
            self._sign.touch()
        try:
            yield from super().run(source, watch)
        finally:
            if self._sign:
                self._sign.unlink(missing_ok=True)

    def _hand_out(self, source: Source) -> list[Outcome]:
        for peer in self.launch.peers:
            if peer.gone:
                raise GenkitError(
                    f"process {peer.rank} of this launch ({peer.host}) is gone; "
                    "the same command goes on where this one stopped"
                )
        return super()._hand_out(source)

    def _looked_after(self, process: Process) -> list[Outcome]:
        if isinstance(process, Far) and process.peer.gone:
            return self._without(process)  # no job is to blame: what runs one there is another process
        return super()._looked_after(process)

    def _started(self, number: int) -> Process:
        if number == 0:
            return super()._started(0)
        settings = self.store, self.batch, self.runtime, self._sign
        process = self._processes[number] = Far(self.launch.peers[number - 1], settings)
        return process


class Far(Process):
    """A worker process of another rank: what it says comes by way of that."""

    def __init__(self, peer: Peer, settings: Any) -> None:
        self._reset(peer.rank)
        self.peer = peer
        self._status: int | None = None
        peer.turns += 1
        self._send((peer.turns, settings))

    @property
    def ends(self) -> list[Any]:
        return [] if self.peer.gone else [self.peer.pipe]

    def messages(self) -> Iterator[tuple[str, Any]]:
        try:
            while not self.peer.gone and self.peer.pipe.poll():
                turn, what, of = self.peer.pipe.recv()
                if turn != self.peer.turns:  # the last words of the one before
                    continue
                if what == "dead":
                    self.dead, (self._status, lines) = True, of
                    self._lines.extend(lines)
                elif what == "apart":
                    raise InputError(
                        f"process {self.peer.rank} of this launch ({self.peer.host}) does not see {of}; "
                        "give --out a folder that all its machines share, or a URL"
                    )
                else:
                    self._take_in(what, of)
                    yield what, of
        except (EOFError, OSError):
            self.peer.gone = True
        self.dead |= self.peer.gone

    def fate(self) -> int | None:
        return self._status

    def end(self, after: float = 0.0) -> None:
        self._kill()

    def _kill(self) -> None:
        self._send(END)

    def _send(self, message: Any) -> None:
        self.peer.send(message)


# The other ranks' end.


def _serve(pipe: Connection, local: tuple[int, int]) -> None:
    """Has a worker process make what comes through the pipe, and tells what it says, until nobody listens any more."""
    turn, process, told = 0, None, False
    try:
        while True:
            wait([pipe, *(process.ends if process and not told else ())], LOOK)
            while pipe.poll():
                order = pipe.recv()
                if isinstance(order, tuple):
                    turn, told = order[0], False
                    process = _begun(pipe, local, *order)
                elif process is not None:
                    _obey(process, order)
                    process = None if order == END else process
            if process is not None and not told:
                for what, of in process.messages():
                    pipe.send((turn, what, of))
                if process.dead:
                    told = True
                    pipe.send((turn, "dead", (process.fate(), process.trace.splitlines())))
    except (EOFError, OSError):
        if process is not None:
            process.end()


def _begun(pipe: Connection, local: tuple[int, int], turn: int, settings: Any) -> Process | None:
    """A worker process; None, and a word to rank 0, where there can be none."""
    store, batch, runtime, sign = settings
    if sign and not _seen(sign):
        pipe.send((turn, "apart", store.name))
        return None
    try:
        return Process(local[0], _lane(local, runtime), store, batch, runtime)
    except GenkitError as error:
        pipe.send((turn, "dead", (None, [str(error)])))
        return None


def _seen(sign: Path) -> bool:
    until = time.monotonic() + SEEN
    while not sign.exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.2)
    return True


def _obey(process: Process, order: Any) -> None:
    if order is None:
        process.leave()
    elif order == STOP:
        process.stop()
    elif order == END:
        process.end(after=1.0)
    else:
        process.give(order)


def _lane(local: tuple[int, int], runtime: dict[str, Any]) -> Lane:
    """This process's share of its machine. local: which of how many it is there."""
    number, count = local
    cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    lane: Lane = lanes(count, runtime.get("device") or ("cpu" if cpu else None))[number]
    return lane
