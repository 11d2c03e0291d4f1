"""Makes jobs into files: the part of a run that holds a model. Knows neither recipe nor journal.

A worker keeps one pipeline loaded and swaps it when a job asks for another, so jobs are handed over grouped by model.
It turns every failure of a job into an `Outcome`; only an interruption passes through.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from genkit import registry
from genkit.batch import names
from genkit.batch.job import Job
from genkit.batch.journal import Made
from genkit.errors import Cancelled, DiskFull, GenkitError, InputError
from genkit.media import rendering
from genkit.media.files import check_target
from genkit.pipeline import Output, Pipeline, Progress, silent

if TYPE_CHECKING:
    from genkit.media.provenance import Provenance

__all__ = ["InProcess", "Outcome", "Worker", "put"]

Retry = Literal["never", "now", "later"]


@dataclass(frozen=True)
class Outcome:
    """What became of a job. error: one line, empty if all went well; retry: whether and how trying again may help;
    full: the disk is, so nothing else should be started; notes: as `Output.notes`."""

    job: Job
    files: tuple[Made, ...] = ()
    seconds: float = 0.0
    error: str = ""
    retry: Retry = "never"
    full: bool = False
    trace: str = ""
    notes: tuple[str, ...] = ()


class Worker:
    """out: the output folder; planned: every name in the plan, `names.folded`; batch: jobs that share a call, 0 for as
    many as the pipeline is best at; runtime: what `genkit.load` takes."""

    def __init__(self, out: Path, *, planned: Collection[str] = (), batch: int = 1, **runtime: Any) -> None:
        self.out, self.planned, self.batch, self.runtime = out.resolve(), planned, batch, runtime
        self._loaded: tuple[tuple[str, str | None], Pipeline | GenkitError] | None = None

    def parts(self, jobs: Sequence[Job]) -> list[Sequence[Job]]:
        """Jobs that share a pipeline, a model and a `batch_key`, by the calls that they are to be made in."""
        size = 1
        if len(jobs) > 1:
            # Whatever is wrong with a model or a request is said by the job that it is wrong with.
            with contextlib.suppress(Exception):
                params = registry.get(jobs[0].pipeline).Params.parse(jobs[0].params)
                size = self.batch or self._pipeline(jobs[0]).at_once(params)
        return [jobs[i : i + size] for i in range(0, len(jobs), size)]

    def perform(self, jobs: Sequence[Job], progress: Progress = silent) -> list[Outcome]:
        """Makes jobs that share a pipeline, a model and a `batch_key`, in one call."""
        start = time.perf_counter()
        try:
            outputs = self._generate(jobs, progress)
        except (Cancelled, KeyboardInterrupt):
            raise
        except Exception as error:
            if len(jobs) == 1:
                return [_failure(jobs[0], error, time.perf_counter() - start)]
            # One bad item must not take its neighbours along: each is made alone.
            return [outcome for job in jobs for outcome in self.perform([job], progress)]
        seconds = (time.perf_counter() - start) / len(jobs)
        return [self._save(job, output, seconds) for job, output in zip(jobs, outputs, strict=True)]

    def _generate(self, jobs: Sequence[Job], progress: Progress) -> list[Output]:
        kind = registry.get(jobs[0].pipeline)
        for job in jobs:  # before anything is computed for it
            for name in job.names:
                self._inside(self.out / name)
            check_target(self.out / job.output, kind.produces)
            if job.renders:
                rendering.check([self.out / name for name in job.renders], job.soundfont, kind.produces)
        pipeline = self._pipeline(jobs[0])
        outputs = pipeline.generate([kind.Params.parse(job.params) for job in jobs], progress)
        if len(outputs) != len(jobs) or not all(output.media for output in outputs):
            raise GenkitError(f"{kind.name} was asked for {len(jobs)} results and made fewer; that is a fault in it")
        return outputs

    def _pipeline(self, job: Job) -> Pipeline:
        key = (job.pipeline, job.model)
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None  # the last one's memory is given back before the next one's is taken
            try:
                self._loaded = key, registry.load(job.pipeline, model=job.model, **self.runtime)
            except InputError as error:  # kept, so that ten thousand jobs do not try it ten thousand times
                self._loaded = key, error
        loaded = self._loaded[1]
        if isinstance(loaded, GenkitError):
            raise loaded
        return loaded

    def _save(self, job: Job, output: Output, seconds: float) -> Outcome:
        start = time.perf_counter()
        try:
            self._check_inputs(job, output)
            # All are rendered before the first is written, and the piece is written last: where it is, they are.
            renderings = self._renderings(job, output)
            output.provenance = output.provenance and self._record(job, output.provenance, job.output)
            paths = output.paths(self.out / job.output)
            for path in paths if len(paths) > 1 else ():
                name = path.relative_to(self.out).as_posix()
                if names.folded(name) in self.planned:
                    raise InputError(f"its files would write over another job's {name!r}; rename one in output")
            for path, value, record in renderings:
                value.save(path, provenance=record)
            made = tuple(map(self._made, [*output.save(self.out / job.output), *(self.out / n for n in job.renders)]))
        except (Cancelled, KeyboardInterrupt):
            raise
        except Exception as error:
            return _failure(job, error, seconds)
        return Outcome(job, made, seconds + time.perf_counter() - start, notes=tuple(output.notes))

    def _renderings(self, job: Job, output: Output) -> list[tuple[Path, Any, Provenance | None]]:
        """What a piece or sound is rendered to: path, value and record."""
        if not job.renders:
            return []
        paths = [self.out / name for name in job.renders]
        records = [self._rendered(job, output, name) for name in job.renders]
        return list(zip(paths, rendering.values(output, paths, job.soundfont), records, strict=True))

    def _rendered(self, job: Job, output: Output, name: str) -> Provenance | None:
        """The record of a rendering: that of the piece or sound, the last of its output. Checks the soundfont."""
        if output.provenance is None:
            return None
        of_piece = self._record(job, output.provenance, name).at(len(output.media) - 1)
        record = rendering.record(of_piece, rendering.kind_of(name, registry.get(job.pipeline).produces), job.soundfont)
        played = record.rendered and record.rendered.soundfont
        if played and played.sha256 != job.soundfont_digest:
            raise InputError("the soundfont changed while the batch was running; run it again")
        return record

    def _check_inputs(self, job: Job, output: Output) -> None:
        """An input that changed since the plan was made is not what the job's id says."""
        used = output.provenance.inputs if output.provenance else {}
        for name, digest in job.inputs.items():
            if name in used and used[name].sha256 != digest:
                raise InputError(f"{name} changed while the batch was running; run it again")

    def _record(self, job: Job, record: Provenance, name: str) -> Provenance:
        """With the job's id, and with files of this folder named from the file's own place, so that the folder may move
        and a second run elsewhere makes the same bytes."""
        params, inputs = dict(record.params), dict(record.inputs)
        home = (self.out / name).parent
        for name in job.takes:
            key, _, number = name.partition("[")
            if inputs[name].path is not None:
                path = Path(os.path.relpath(str(inputs[name].path), home)).as_posix()
                inputs[name] = dataclasses.replace(inputs[name], path=path)
                params[key] = put(params[key], number, path)
        return dataclasses.replace(record, job=job.id, params=params, inputs=inputs)

    def _inside(self, path: Path) -> None:
        folder = path.parent
        while not folder.exists():
            folder = folder.parent
        if not folder.resolve().is_relative_to(self.out):
            raise InputError(f"{str(folder)!r} is a link that leads out of the output folder; remove it")

    def _made(self, path: Path) -> Made:
        from genkit.media.provenance import digest_file

        return Made(path.relative_to(self.out).as_posix(), digest_file(path), path.stat().st_size)


class InProcess:
    """The engine of one process: jobs are made one batch after the other, here.

    An engine has one method: it takes batches as long as there are any and yields outcomes as they come. It asks for
    the next batch only when it can start it, so that what was learnt from the last outcome counts. stopping: whether no
    other call of a pipeline should be begun.
    """

    def __init__(
        self, worker: Worker, progress: Progress = silent, stopping: Callable[[], bool] = lambda: False
    ) -> None:
        self.worker, self.progress, self.stopping = worker, progress, stopping

    def map(self, batches: Iterable[Sequence[Job]]) -> Iterator[Outcome]:
        for batch in batches:
            for part in self.worker.parts(batch):
                if self.stopping():
                    return
                yield from self.worker.perform(part, self.progress)


def put(value: Any, number: str, item: str) -> Any:
    """A file parameter with one file exchanged; number: "3]" in a list, "" for a single one."""
    return [item if i == int(number[:-1]) else old for i, old in enumerate(value)] if number else item


def _failure(job: Job, error: Exception, seconds: float) -> Outcome:
    if isinstance(error, DiskFull) or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
        return Outcome(job, seconds=seconds, error=str(error), full=True)
    if isinstance(error, InputError):
        return Outcome(job, seconds=seconds, error=str(error))
    retry: Retry = "later" if isinstance(error, ConnectionError | TimeoutError) else "now"
    text = str(error) if isinstance(error, GenkitError) else f"{type(error).__name__}: {error}"
    trace = "".join(traceback.format_exception(error))[-4000:]
    line = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))[:2000]
    return Outcome(job, seconds=seconds, error=line, retry=retry, trace=trace)
