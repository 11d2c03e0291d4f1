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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genkit import registry
from genkit.batch.engines.engine import Warm
from genkit.batch.engines.outcome import Outcome, Retry
from genkit.batch.job import Job
from genkit.batch.journal import Made
from genkit.batch.planning import names
from genkit.batch.store import BESIDE, Folder, Store, entry
from genkit.errors import Cancelled, DiskError, DiskFull, GenkitError, InputError, OutOfMemory
from genkit.fields import way
from genkit.media import files, rendering
from genkit.pipeline import Output, Pipeline, Progress, silent

if TYPE_CHECKING:
    from genkit.media.provenance import Provenance

__all__ = ["Inputs", "Worker", "put"]

Inputs = Callable[[str, str], Path]
"""An input file's path or URL, and its digest -> a file of this machine."""


class Worker:
    """store: where the files go; batch: jobs that share a call, 0 for as many as the pipeline is best at; inputs: finds
    an input file on this machine, where its path may be another's; runtime: what `genkit.load` takes."""

    def __init__(self, store: Store, *, batch: int = 1, inputs: Inputs | None = None, **runtime: Any) -> None:
        if inputs is None and not isinstance(store, Folder):  # what earlier stages made lies behind a URL
            from genkit.batch.engines.inputs import Inputs as Found

            inputs = Found(store)
        self.store, self.batch, self.inputs, self.runtime = store, batch, inputs, runtime
        self._loaded: tuple[Warm, Pipeline | GenkitError] | None = None

    @property
    def warm(self) -> Warm | None:
        """The pipeline and model that are loaded."""
        return self._loaded and self._loaded[0]

    def parts(self, jobs: Sequence[Job]) -> list[Sequence[Job]]:
        """Jobs that share a pipeline, a model and a `batch_key`, by the calls that they are to be made in."""
        size = 1
        if len(jobs) > 1:
            # Whatever is wrong with a model or a request is said by the job that it is wrong with.
            with contextlib.suppress(Exception):
                params = registry.get(jobs[0].pipeline).Params.parse(jobs[0].params)
                size = self.batch or self.load(jobs[0]).at_once(params)
        return [jobs[i : i + size] for i in range(0, len(jobs), size)]

    def perform(self, jobs: Sequence[Job], progress: Progress = silent) -> list[Outcome]:
        """Makes jobs that share a pipeline, a model and a `batch_key`, in one call."""
        start = time.perf_counter()
        try:
            outputs = self._generate(jobs, progress)
        except (Cancelled, KeyboardInterrupt):
            raise
        except Exception as error:
            failure = _failure(jobs[0], error, time.perf_counter() - start)
            if isinstance(error, OutOfMemory):  # the pipeline gave up what it could, in vain: the next job has it whole
                self._loaded = None
        else:
            seconds = (time.perf_counter() - start) / len(jobs)
            return [self._save(job, output, seconds) for job, output in zip(jobs, outputs, strict=True)]
        # By now the error is gone, and with it the memory that its frames held.
        if len(jobs) == 1 or failure.sick:
            return [dataclasses.replace(failure, job=job) for job in jobs]
        # One bad item must not take its neighbours along: each is made alone.
        return [outcome for job in jobs for outcome in self.perform([job], progress)]

    def load(self, job: Job) -> Pipeline:
        """The job's pipeline, loaded if it is not the last one's. Raises GenkitError."""
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

    def _generate(self, jobs: Sequence[Job], progress: Progress) -> list[Output]:
        kind = registry.get(jobs[0].pipeline)
        for job in jobs:  # before anything is computed for it
            for name in job.names:
                self.store.check(name)
            files.file_format(job.output, kind.produces)
            if job.renders:
                rendering.check([self.store.home / name for name in job.renders], job.soundfont, kind.produces)
        pipeline = self.load(jobs[0])
        outputs = pipeline.generate([kind.Params.parse(self._local(job)) for job in jobs], progress)
        if len(outputs) != len(jobs) or not all(output.media for output in outputs):
            raise GenkitError(f"{kind.name} was asked for {len(jobs)} results and made fewer; that is a fault in it")
        return outputs

    def _local(self, job: Job) -> dict[str, Any]:
        """The parameters, input files by where they lie on this machine."""
        params = job.params
        for name, digest in job.inputs.items() if self.inputs else ():
            params = put(params, name, lambda path, digest=digest: str(self.inputs(path, digest)))  # type: ignore[misc]
        return params

    def _save(self, job: Job, output: Output, seconds: float) -> Outcome:
        start = time.perf_counter()
        try:
            self._check_inputs(job, output)
            with self.store.draft() as folder, files.draft():
                made, drafts = self._drafts(job, output, folder)
                self.store.commit(drafts, job)
        except (Cancelled, KeyboardInterrupt):
            raise
        except Exception as error:
            return _failure(job, error, seconds)
        seconds += time.perf_counter() - start
        return Outcome(job, made, seconds, notes=tuple(output.notes), degraded=output.degraded)

    def _drafts(self, job: Job, output: Output, folder: Path) -> tuple[tuple[Made, ...], dict[str, Path]]:
        """A job's files, written into a folder: what is entered, and every file by its name in the order in which they
        are to be put in their places. The piece is the last: where it is, what it is rendered to is too."""
        for path in output.paths(job.output) if job.reserved else ():
            if names.folded(path.as_posix()) in job.reserved:
                raise InputError(f"its files would write over another job's {path.as_posix()!r}; rename one in output")
        output.provenance = output.provenance and self._record(job, output.provenance, job.output)
        for path, value, record in self._renderings(job, output, folder):
            value.save(path, provenance=record)
        saved = [path.relative_to(folder).as_posix() for path in output.save(folder / job.output)]
        made = tuple(entry(folder, name) for name in (*saved, *job.renders))
        written = [*job.renders, *saved]
        beside = [f"{name}{BESIDE}" for name in written if (folder / f"{name}{BESIDE}").exists()]
        return made, {name: folder / name for name in (*beside, *written)}

    def _renderings(self, job: Job, output: Output, folder: Path) -> list[tuple[Path, Any, Provenance | None]]:
        """What a piece or sound is rendered to: path, value and record."""
        if not job.renders:
            return []
        paths = [folder / name for name in job.renders]
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
            raise InputError("the soundfont changed since the batch was planned; run the recipe again with --replace")
        return record

    def _check_inputs(self, job: Job, output: Output) -> None:
        """An input that changed since the plan was made is not what the job's id says."""
        used = output.provenance.inputs if output.provenance else {}
        for name, digest in job.inputs.items():
            if name not in used or used[name].sha256 == digest:
                continue
            if name in job.takes:
                made = job.takes[name].output
                raise InputError(f"what {made!r} made is not as it was written; `genkit repair`, then run it again")
            raise InputError(f"{name} changed since the batch was planned; run the recipe again with --replace")

    def _record(self, job: Job, record: Provenance, name: str) -> Provenance:
        """With the job's id, and with inputs as the plan names them: files of this folder from the file's own place, so
        that the folder may move and a second run elsewhere makes the same bytes."""
        params, inputs = dict(record.params), dict(record.inputs)
        for field in job.inputs if self.inputs else job.takes:
            if field in inputs and inputs[field].path is not None:
                path = get(job.params, field)
                path = self._relative(path, name) if field in job.takes else path
                inputs[field] = dataclasses.replace(inputs[field], path=path)
                params = put(params, field, lambda _, path=path: path)  # type: ignore[misc]
        return dataclasses.replace(record, job=job.id, params=params, inputs=inputs)

    def _relative(self, path: str, name: str) -> str:
        root, home = self.store.path(""), Path(name).parent
        return Path(os.path.relpath(path.removeprefix(root).lstrip("/"), home)).as_posix()


def get(params: dict[str, Any], name: str) -> Any:
    """A file parameter by its name: "content", "style[0]", "control[0].image"."""
    value: Any = params
    for step in way(name):
        value = value[step]
    return value


def put(params: dict[str, Any], name: str, change: Callable[[Any], Any]) -> dict[str, Any]:
    """Parameters with one file exchanged; what was given stays as it was."""
    return _changed(params, list(way(name)), change)


def _changed(value: Any, steps: list[Any], change: Callable[[Any], Any]) -> Any:
    if not steps:
        return change(value)
    copy = value.copy()
    copy[steps[0]] = _changed(value[steps[0]], steps[1:], change)
    return copy


def _failure(job: Job, error: Exception, seconds: float) -> Outcome:
    if isinstance(error, DiskFull) or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
        return Outcome(job, seconds=seconds, error=_line(str(error)), full=True)
    if isinstance(error, InputError):
        return Outcome(job, seconds=seconds, error=_line(str(error)))
    passing = isinstance(error, ConnectionError | TimeoutError | DiskError | OutOfMemory)
    retry: Retry = "later" if passing else "now"
    text = str(error) if isinstance(error, GenkitError) else f"{type(error).__name__}: {error}"
    trace = "".join(traceback.format_exception(error))[-4000:]
    return Outcome(job, seconds=seconds, error=_line(text), retry=retry, trace=trace, sick=_sticky(error))


def _sticky(error: Exception) -> bool:
    from genkit.runtime import is_sticky

    return is_sticky(error)


def _line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))[:2000]
