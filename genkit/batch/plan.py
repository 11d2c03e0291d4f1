"""Recipe -> jobs. Pure: the same recipe over the same inputs gives the same jobs, whatever lies in the output folder.

A job is its content. Its id is the SHA-256 of canonical JSON of

    pipeline, pipeline.version, the parameters (seed included, files by digest), the models' digests by role,
    the formats of its renderings, with the soundfont's digest, if there are any, and the dtype if one was stated.

So it changes with whatever changes the result and with nothing else: not with paths, order, device or batch size.

**Seeds.** A seed that is not given is derived from the recipe's name, the stage and the job's variables (files by
digest). It is as arbitrary as a drawn one, but a second run makes the same plan and so finds nothing to do, even if the
journal is lost; it needs no state; and a value added to a matrix leaves the other jobs' seeds alone. `--set
params.seed=N` gives other ones.

**Stages.** What an earlier stage will make is not known yet, but the job that makes it is, and a job's content follows
from its identity: such an input stands in the identity as {"job": id, "take": n}. The runner also notes the digest of
the file it did use, and makes a job again whose input has changed since.

**On disk.** The jobs are spooled (`genkit.batch.planning.spool`), and an output folder keeps the plan it was made by in
`.genkit/plan.jsonl`: a line about the recipe, then a line for each job. From it `status`, `retry`, `verify` and the
report know what belongs there, and a run that was planned otherwise is refused (`genkit.batch.planning.compare`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from genkit._version import __version__
from genkit.batch.job import Job, Made
from genkit.batch.planning import names
from genkit.batch.planning.outline import Outline
from genkit.batch.planning.planner import Digests, StagePlanner
from genkit.batch.planning.spool import Jobs
from genkit.batch.recipe import Recipe
from genkit.errors import GenkitError
from genkit.media.files import atomic_write

__all__ = ["PATH", "Plan", "gather", "make", "read", "stream", "write"]

PATH = Path(".genkit/plan.jsonl")


@dataclass(frozen=True)
class Plan:
    """digest: of every job and its names, in order: "sha256:..."."""

    outline: Outline
    jobs: Jobs
    digest: str


def make(recipe: Recipe, *, dtype: str | None = None) -> Plan:
    """Every job of a recipe. dtype: part of the identity if stated. Raises RecipeError; nothing has been made then."""
    return gather(Outline.of(recipe, dtype), stream(recipe, dtype=dtype))


def gather(outline: Outline, jobs: Iterable[Job]) -> Plan:
    """A plan of jobs as they come."""
    lines = hashlib.sha256()

    def digested() -> Iterator[Job]:
        for job in jobs:
            lines.update(f"{job.id} {' '.join(job.names)}\n".encode())
            yield job

    spooled = Jobs.of(digested())
    return Plan(outline, spooled, f"sha256:{lines.hexdigest()}")


def write(plan: Plan, folder: Path) -> None:
    """Puts the plan into an output folder. Raises DiskFull, MediaError."""
    head = {"genkit": __version__, "schema": 1, "plan": plan.digest, **plan.outline.to_json()}

    def content(path: Path) -> None:
        with path.open("wb") as file:
            file.write(json.dumps(head, separators=(",", ":")).encode() + b"\n")
            file.writelines(plan.jobs.lines())

    atomic_write(folder / PATH, content)


def read(folder: str | Path) -> Plan | None:
    """The plan that an output folder was made by; None if it has none. Raises GenkitError if it cannot be read."""
    path = Path(folder) / PATH
    try:
        head, jobs = Jobs.open(path)
        values = json.loads(head)
        return Plan(Outline.read(values), jobs, values["plan"])
    except FileNotFoundError:
        return None
    except OSError as error:
        raise GenkitError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise GenkitError(f"{str(path)!r} is damaged; delete it and run the recipe again") from None


def stream(recipe: Recipe, *, dtype: str | None = None, digests: Digests | None = None) -> Iterator[Job]:
    """The jobs one by one. What is kept is a name for each, and more only of stages that a later one builds on.

    digests: how files and models become digests (default: from their content). Raises RecipeError.
    """
    digests = digests or Digests()
    outputs = names.Names()
    labels: list[str] = []
    wanted = {axis.source.stage for stage in recipe.stages for axis in stage.axes if axis.source}
    earlier: dict[str, list[Made]] = {}
    for stage in recipe.stages:
        made = earlier.setdefault(stage.name, [])
        for job, variables in StagePlanner(recipe, stage, digests, dtype, earlier).jobs():
            labels.append(f"{job.stage}/{job.index}" if len(recipe.stages) > 1 else str(job.index))
            for name, key in zip(job.names, ("output", *["render"] * len(job.renders)), strict=True):
                clash = outputs.add(name, len(labels))
                if clash is not None:
                    other = f"job {labels[clash - 1]}" if clash else "the report"
                    message = f"job {labels[-1]} and {other} would write over each other at {name!r}"
                    if clash == len(labels):
                        message = f"job {labels[-1]} would write two files at {name!r}"
                    raise recipe.error(f"{message}; {_remedy(stage, key)}", (*stage.path, key))
            if stage.name in wanted:
                made.append(Made(job.id, job.output, variables))
            yield job


def _remedy(stage: object, key: str) -> str:
    axes = getattr(stage, "axes", ())
    varying = [f"{{{name}}}" for axis in axes for name in sorted(axis.names)]
    return f"tell them apart in {key}, by {', '.join([*varying[:8], '{index}'])}"
