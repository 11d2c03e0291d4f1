"""What runs in a worker process of the pool; `genkit.batch.engines.process` is how its runner holds it.

It leaves with its runner, however that ends: a thread reads the pipe and takes the process along, with all that it
started, when the other end is gone; and Linux ends one that hangs in native code and lets no thread run. (That happens
with the thread that started it, which is the one that the run lives in.)

A SIGTERM, which schedulers send to every process of a job, it passes over, as it does SIGINT: the runner says when to
stop, and nothing is begun after that. To interrupt what runs, the runner kills.

Runner to child: the settings, then lists of jobs; STOP: begin nothing more; None: leave. Child to runner, what and of
what: "ready"; "began" a call, with the outputs it is for; "step"; "made", with the call's outcomes; "rest": it was
stopped and makes no more of what it has. Files do not come back: the child itself puts them in their places.
"""

from __future__ import annotations

import contextlib
import faulthandler
import math
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from genkit.batch.engines.worker import Worker
    from genkit.batch.job import Job
    from genkit.batch.store import Store

__all__ = ["STOP", "main"]

STOP = "stop"
OFTEN = 0.1  # seconds between two steps told

Say: TypeAlias = Callable[[str, Any], None]


def main(descriptor: int, runner: int) -> None:
    """Makes jobs for the process `runner`, at the other end of the pipe `descriptor`, until told to leave."""
    _leave_with(runner)
    faulthandler.enable(all_threads=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        # Not SIG_IGN, which what a pipeline starts would inherit.
        signal.signal(number, lambda *_: None)
        signal.siginterrupt(number, False)
    os.set_inheritable(descriptor, False)
    sys.argv[1:] = []
    if not sys.warnoptions:  # as on the command line
        warnings.simplefilter("ignore")
    pipe, orders, stopping = Connection(descriptor), SimpleQueue[Any](), threading.Event()
    threading.Thread(target=_read, args=(pipe, orders, stopping), daemon=True).start()
    lock = threading.Lock()

    def say(what: str, of: Any = None) -> None:
        with lock:
            pipe.send((what, of))

    worker = _worker(*orders.get())
    say("ready")
    while (jobs := orders.get()) is not None:
        _make(worker, jobs, say, stopping)


def _leave_with(runner: int) -> None:
    if sys.platform.startswith("linux"):
        import ctypes

        ctypes.CDLL(None).prctl(1, ctypes.c_ulong(signal.SIGKILL))  # PR_SET_PDEATHSIG
    if os.getppid() != runner:  # it died before it could be named
        os._exit(1)


def _read(pipe: Connection, orders: SimpleQueue[Any], stopping: threading.Event) -> None:
    try:
        while True:
            order = pipe.recv()
            if order == STOP:
                stopping.set()
            else:
                orders.put(order)
    except (EOFError, OSError):
        os.killpg(0, signal.SIGKILL)
    except BaseException:  # what came cannot be read here: a class that is not there
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _worker(store: Store, batch: int, threads: int, runtime: dict[str, Any]) -> Worker:
    import torch

    from genkit.batch.engines.worker import Worker

    torch.set_num_threads(threads)
    return Worker(store, batch=batch, **runtime)


def _make(worker: Worker, jobs: Sequence[Job], say: Say, stopping: threading.Event) -> None:
    for part in worker.parts(jobs):
        # The time that a model takes to load is not a job's. What is wrong with it the job will say.
        with contextlib.suppress(Exception):
            worker.load(part[0])
        if stopping.is_set():
            say("rest", None)
            return
        say("began", tuple(job.output for job in part))
        outcomes = worker.perform(part, _Steps(say))
        say("made", outcomes)
        if any(outcome.sick for outcome in outcomes):
            return  # and another takes its place


class _Steps:
    """A `genkit.pipeline.Progress` that tells the runner now and then. Previews do not leave the process."""

    def __init__(self, say: Say) -> None:
        self.say, self.said = say, -math.inf

    def __call__(self, step: int, total: int, *, preview: Callable[[], Any] | None = None, note: str = "") -> None:
        now = time.monotonic()
        if now - self.said >= OFTEN:
            self.said = now
            self.say("step", (step, total, note))
