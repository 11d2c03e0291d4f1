"""What makes jobs on another machine: `Maker`, the class of an engine's actors. Knows nothing of what carries it there.

It is a worker (`genkit.batch.engines.worker`) with what a machine of its own takes: the runner's plugins where they are
to be had here too, a look whether the output folder is the same one, inputs that come by digest, models by a path that
is there or is not.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import socket
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genkit._version import __version__
from genkit.batch.engines.inputs import Inputs
from genkit.batch.engines.outcome import Outcome
from genkit.batch.engines.worker import Worker
from genkit.batch.job import Job
from genkit.batch.store import Store

__all__ = ["Maker"]

SEEN = 5.0  # seconds that a file may take to be seen through a network file system


class Maker:
    """store, batch, runtime: as of a `Worker`; threads: of torch's arithmetic; path: the runner's sys.path."""

    def __init__(self, store: Store, batch: int, threads: int, path: Sequence[str], runtime: dict[str, Any]) -> None:
        import torch

        if not sys.warnoptions:  # as on the command line
            warnings.simplefilter("ignore")
        sys.path += [entry for entry in path if entry not in sys.path and os.path.isdir(entry)]  # noqa: PTH112
        torch.set_num_threads(threads)
        self.store = store
        self.handed: dict[str, bytes] = {}
        self.inputs = Inputs(store, self.handed.__getitem__)
        self.worker = Worker(store, batch=batch, inputs=self.inputs, **runtime)

    def ready(self, version: str, probe: Path | None) -> tuple[str, str]:
        """What keeps it from making anything, in one line, empty if nothing does; and the file that it complains to,
        where a crash leaves its trace, if that is known. probe: a file that the runner has put into the output
        folder."""
        return self._hindrance(version, probe), _complaints()

    def _hindrance(self, version: str, probe: Path | None) -> str:
        host = socket.gethostname()
        if version != __version__:
            return f"node {host} has genkit {__version__}, and the runner {version}; install the same on both"
        until = time.monotonic() + SEEN
        while probe is not None and not probe.exists():
            if time.monotonic() > until:
                remedy = "give a folder that all nodes share, or a URL (s3://...)"
                return f"node {host} does not see {self.store.name}; {remedy}"
            time.sleep(0.2)
        try:
            with self.store.draft():
                return ""
        except OSError as error:
            return f"node {host} cannot write to {self.store.name} ({error.strerror}); give its user the right to"

    def prepare(self, jobs: Sequence[Job]) -> tuple[list[int], dict[str, str]]:
        """Loads the model. Gives the number of jobs of each call that they are to be made in, and the inputs that this
        machine lacks: digests, and the runner's paths."""
        self.handed.clear()
        sizes = [len(part) for part in self.worker.parts(jobs)]
        with contextlib.suppress(Exception):  # what is wrong with it the job will say
            self.worker.load(jobs[0])
        return sizes, self.inputs.missing(jobs)

    def hand_over(self, digests: Sequence[str], *contents: bytes) -> None:
        self.handed.update(zip(digests, contents, strict=True))

    def perform(self, jobs: Sequence[Job]) -> list[Outcome]:
        absent = [(job, path) for job in jobs if (path := _absent(job))]
        if not absent:
            return self.worker.perform(jobs)
        where = f"is not on node {socket.gethostname()}; put it into a folder that all nodes share, or name a hub id"
        lacking = {job.output: Outcome(job, error=f"{path!r} {where}") for job, path in absent}
        others = [job for job in jobs if job.output not in lacking]
        return [*lacking.values(), *(self.worker.perform(others) if others else ())]


def _complaints() -> str:
    """The file behind stderr, to which a crash is made to tell where it was."""
    if not faulthandler.is_enabled():
        faulthandler.enable(all_threads=False)
    try:
        path = os.readlink("/proc/self/fd/2")  # noqa: PTH115
    except OSError:
        return ""
    return path if Path(path).is_file() else ""


def _absent(job: Job) -> str:
    """A model or a soundfont that the job names by a path which is not here."""
    for path in (job.model, job.soundfont):
        if path and Path(path).is_absolute() and not Path(path).exists():
            return path
    return ""
