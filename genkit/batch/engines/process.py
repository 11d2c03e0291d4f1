"""A worker process of the pool, as its runner holds it; `genkit.batch.engines.child` is what runs in it.

- It is a fresh interpreter. A forked one would stand still on torch's threads and on locks held at that moment;
  `multiprocessing` would run the caller's script again in each, which goes wrong unless all of it is under
  `if __name__ == "__main__"`, and cannot be done from a notebook's cell or from stdin. This one imports genkit, over
  the caller's sys.path, and gets everything else through its pipe. No other descriptor is handed on: the journal's lock
  and the pipes of its neighbours stay with the runner.
- A terminal's Ctrl-C does not reach it, nor what it starts: it has a session of its own, and is killed with all that
  is in it.
- Threads are bounded before torch is imported, since most libraries read their number once.
- What it prints, the runner passes on to its own stderr in whole lines, so that a progress bar is not torn. The last
  lines are kept: if the process dies, they tell where. The dump of a crash, and what was printed by one that could not
  even begin, are only kept.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Pipe
from typing import TYPE_CHECKING, Any

from genkit.batch.engines.child import STOP
from genkit.errors import GenkitError

if TYPE_CHECKING:
    from genkit.batch.engines.engine import Warm
    from genkit.batch.job import Job
    from genkit.batch.store import Store
    from genkit.lanes import Lane

__all__ = ["Process"]

START = (
    "import sys; sys.path[:] = sys.argv[3:]; "
    "from genkit.batch.engines.child import main; main(*map(int, sys.argv[1:3]))"
)
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
CRASH = "Fatal Python error: "  # how faulthandler begins
MODULES = "Extension modules: "  # a long line at its end that tells nothing
KEPT = 40  # lines
READS = 8  # of 64 KB at a time; more than a pipe holds, so that all is heard of one that is gone
LOOK = 0.5  # seconds between two looks at whether it lives


class Process:
    """A worker process, starting as soon as it is made. Raises GenkitError if none can be.

    jobs: handed over and not answered yet, by output; begun: the outputs of the call that runs; since: when that began,
    on the monotonic clock; warm: what it has loaded, or will have when it is free again; ready: whether it can take
    jobs; loading: whether it has begun nothing of what it was handed last; dead: and all that it had to say was heard;
    sick: as an `Outcome`.
    """

    def __init__(self, number: int, lane: Lane, store: Store, batch: int, runtime: dict[str, Any]) -> None:
        self._reset(number)
        try:
            self._pipe, theirs = Pipe()
            with theirs:
                self._process = _start(theirs.fileno(), lane.threads)
        except OSError as error:
            raise GenkitError(f"no process can be started for a worker ({error.strerror}); use fewer workers") from None
        assert self._process.stdout
        self._output = self._process.stdout
        os.set_blocking(self._output.fileno(), False)
        self._send((store, batch, lane.threads, {**runtime, "device": lane.device or runtime.get("device")}))

    def _reset(self, number: int) -> None:
        """What it knows before anything was said."""
        self.number = number
        self.jobs: dict[str, Job] = {}
        self.begun: tuple[str, ...] = ()
        self.since = self._looked = 0.0
        self.warm: Warm | None = None
        self.ready = self.dead = self.sick = self.loading = False
        self._stopped = self._crashing = self._killed = False
        self._line = b""
        self._lines: deque[str] = deque(maxlen=KEPT)

    @property
    def ends(self) -> list[Any]:
        """What has something to read when it has something to say."""
        return [end for end in (self._pipe, self._output) if not end.closed]

    @property
    def trace(self) -> str:
        """The last that it printed."""
        return "\n".join(self._lines)[-4000:]

    @property
    def last_line(self) -> str:
        return next((line for line in reversed(self._lines) if line.strip()), "")

    def give(self, jobs: Sequence[Job]) -> None:
        """Hands jobs over, at the latest when it is ready."""
        self.jobs, self.loading = {job.output: job for job in jobs}, True
        self.warm = (jobs[0].pipeline, jobs[0].model)
        if self.ready:
            self._send(list(jobs))

    def stop(self) -> None:
        """Nothing more is to be begun. Jobs that it was not given yet are not given any more."""
        if not self.ready:
            self.jobs = {}
        elif self.jobs and not self._stopped:
            self._send(STOP)
        self._stopped = True

    def messages(self) -> Iterator[tuple[str, Any]]:
        """All it has said since it was last asked, first thing first; what it printed is passed on."""
        dead = self._has_ended()  # asked before its last words are heard
        try:
            while self._pipe.poll():
                what, of = self._pipe.recv()
                self._take_in(what, of)
                yield what, of
        except (EOFError, OSError):
            dead = True
        self._pass_on()
        self.dead = dead

    def _has_ended(self) -> bool:
        """Where something that it started holds its end of the pipe open; the pipe's end is otherwise heard at once."""
        now = time.monotonic()
        if now - self._looked < LOOK:
            return False
        self._looked = now
        return self._process.poll() is not None

    def _take_in(self, what: str, of: Any) -> None:
        if what == "ready":
            self.ready = True
            if self.jobs:
                self._send(list(self.jobs.values()))
        elif what == "began":
            self.begun, self.since, self.loading = of, time.monotonic(), False
        elif what == "made":
            self.begun = ()
            self.sick = any(outcome.sick for outcome in of)
            for outcome in of:
                del self.jobs[outcome.job.output]
        elif what == "rest":
            self.jobs, self.loading = {}, False

    def fate(self) -> int | None:
        """The exit status of one that is dead, negative for a signal; None if it lives and cannot be heard."""
        try:
            return self._process.wait(2)
        except subprocess.TimeoutExpired:
            return None

    def leave(self) -> None:
        """Asks one that has nothing to do to leave, and kills any other."""
        if self.ready and not self.jobs:
            self._send(None)
        else:
            self._kill()

    def end(self, after: float = 0.0) -> None:
        """Kills it, if it has not left `after` so many seconds, and what it started with it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(after)
        self._kill()
        self._process.wait()
        self._pass_on()
        self._pipe.close()
        self._output.close()

    def _kill(self) -> None:
        if not self._killed:  # once, and soon: its number may be another's later on
            self._killed = True
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _send(self, message: Any) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it is dead, and will be found so
            self._pipe.send(message)

    def _pass_on(self) -> None:
        for _ in range(READS):
            if self._output.closed or (text := self._output.read(1 << 16)) is None:
                return
            end = b"\n" if self._line and not text else b""
            *lines, self._line = (self._line + text + end).split(b"\n")
            self._line = self._line[-4000:]  # a bar that draws itself anew needs no line breaks
            for line in lines:
                self._heard(line.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", "replace"))
            if not text:
                self._output.close()

    def _heard(self, line: str) -> None:
        self._crashing |= line.startswith(CRASH)
        if not line.startswith(MODULES):
            self._lines.append(line)
        if self.ready and not self._crashing:
            with contextlib.suppress(OSError, ValueError):  # nobody listens any more
                sys.stderr.write(f"{line}\n")


def _start(descriptor: int, threads: int) -> subprocess.Popen[bytes]:
    path = [entry for entry in sys.path if isinstance(entry, str)]
    return subprocess.Popen(
        [sys.executable, "-c", START, str(descriptor), str(os.getpid()), *path],
        bufsize=0,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=[descriptor],
        start_new_session=True,
        env={**os.environ, **dict.fromkeys(THREADS, str(threads))},
    )
