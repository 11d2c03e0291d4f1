"""Run a recipe: make what is missing of its files, and a report of them all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from genkit.cli._common import echo_json, json_option, note, quiet_option, runtime_options, table

if TYPE_CHECKING:
    from genkit.batch.job import Job
    from genkit.batch.plan import Plan

__all__ = ["command", "work_options"]


class _OrAuto(click.IntRange):
    """A number, or "auto", which stands for another value."""

    name = "number"

    def __init__(self, least: int, most: int, auto: int | None) -> None:
        super().__init__(least, most)
        self.auto = auto

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return self.auto if value == "auto" or value is self.auto else super().convert(value, param, ctx)


def work_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what says how jobs are made: how many at once, where, how often tried."""
    options = (
        click.option(
            "--workers",
            type=_OrAuto(0, 1024, -1),
            default=0,
            metavar="N|auto",
            show_default=True,
            help="Processes that make jobs side by side, a CPU's threads divided among them; auto: one for each GPU; "
            "0: none but this one.",
        ),
        click.option(
            "--batch",
            type=_OrAuto(1, 1024, 0),
            default="auto",
            metavar="N|auto",
            show_default=True,
            help="Jobs that share a pass; auto: what is fastest.",
        ),
        click.option(
            "--retries", type=click.IntRange(0, 100), default=2, show_default=True, help="New tries of a failed job."
        ),
        click.option(
            "--job-timeout",
            type=click.FloatRange(0, min_open=True),
            metavar="SECONDS",
            help="End a job that takes longer, with its process; needs --workers 1 or more.",
        ),
        click.option("--no-report", is_flag=True, help="Write no report.html."),
        click.option(
            "--engine",
            type=click.Choice(["local", "ray"]),
            default="local",
            show_default=True,
            help="Make the jobs on this machine, or on a Ray cluster.",
        ),
        click.option("--address", metavar="HOST:PORT|auto", help="The Ray cluster. [default: one started here]"),
    )
    for option in reversed(options):
        function = option(function)
    return runtime_options(function)


def work(
    *,
    workers: int,
    batch: int,
    retries: int,
    job_timeout: float | None,
    engine: str,
    address: str | None,
    device: str | None,
    dtype: str | None,
    deterministic: bool,
) -> dict[str, Any]:
    """These options as `genkit.batch.runner.run` takes them. Raises UsageError.

    Where `accelerate launch` started several processes this brings them together, and all but the first stay here, as
    its workers, until it has ended.
    """
    runtime: dict[str, Any] = {"device": device, "dtype": dtype, "deterministic": deterministic}
    count = None if workers < 0 else workers
    options: dict[str, Any] = {"batch": batch, "retries": retries, "job_timeout": job_timeout}
    if engine == "local":
        if address is not None:
            raise click.UsageError("--address is of a Ray cluster: add --engine ray")
        launch = _launch()
        return {**options, **(_on_ranks(launch, options, runtime) if launch else {"workers": count, **runtime})}

    def on_ray(store: Any) -> Any:
        from genkit.batch.engines.ray import Ray

        return Ray(store, address=address, workers=count or None, batch=batch, job_timeout=job_timeout, **runtime)

    return {**options, "engine": on_ray}


def _launch() -> Any:
    """What the first of several processes that were started together has of the others; None if there are no others."""
    if "WORLD_SIZE" not in os.environ:
        return None
    from genkit.batch.engines import ranks

    if not ranks.launched():
        return None
    return ranks.join() or click.get_current_context().exit(0)


def _on_ranks(launch: Any, options: dict[str, Any], runtime: dict[str, Any]) -> dict[str, Any]:
    from genkit.batch.engines.ranks import Ranks

    settings = {"batch": options["batch"], "job_timeout": options["job_timeout"], **runtime}
    return {"engine": lambda store: Ranks(store, launch, **settings)}


@click.command("run")
@click.argument("recipe")
@click.option("--out", metavar="FOLDER|URL", help="Where the files go. [default: outputs/NAME]")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Set a value of the recipe (params.seed=4)."
)
@click.option(
    "--dry-run", is_flag=True, help="List the jobs, and what differs from the folder's plan, and make nothing."
)
@click.option("--extend", is_flag=True, help="Add to a folder that another plan made, keeping what it has.")
@click.option("--replace", is_flag=True, help="Make a folder that another plan made what the recipe says now.")
@work_options
@quiet_option
@json_option
def command(
    recipe: str,
    out: str | None,
    overrides: tuple[str, ...],
    dry_run: bool,
    extend: bool,
    replace: bool,
    no_report: bool,
    quiet: bool,
    as_json: bool,
    dtype: str | None,
    **how: Any,
) -> None:
    """Run a recipe: make what is missing of its files, and a report of them all.

    RECIPE is a file, or the name of one that comes with genkit (`genkit recipes`). What is there already is not made
    again: whatever ended the last run, the same command goes on where it stopped. A recipe that plans other jobs than
    the folder was made by is refused, with what differs, unless --extend or --replace says what is meant.

    Exit status: 0 done, 2 the recipe is wrong, 3 some jobs failed, 4 the disk is full, 75 another run has the folder,
    130 stopped.
    """
    from genkit.batch import library, plan
    from genkit.batch.recipe import load
    from genkit.cli._carry_out import carry_out
    from genkit.errors import PlanChanged

    if extend and replace:
        raise click.UsageError("--extend keeps what --replace makes again: give one of them")
    options = work(dtype=dtype, **how)
    loaded = load(library.find(recipe), overrides=overrides)
    planned = plan.make(loaded, dtype=dtype)
    out = out or str(Path("outputs") / loaded.name)
    if dry_run:
        _show(planned, out, as_json)
        return
    try:
        options |= {"extend": extend, "replace": replace}
        carry_out(planned, out, quiet=quiet, as_json=as_json, report=not no_report, options=options)
    except PlanChanged as error:
        for line in () if quiet else error.lines:
            note(f"  {line}")
        raise


def _show(planned: Plan, out: str, as_json: bool) -> None:
    """What would be done, and what sets the plan apart from the one that the folder was made by."""
    from genkit.batch import store as stores
    from genkit.batch.plan import read
    from genkit.batch.planning.compare import compare
    from genkit.batch.sizes import Sizes, in_words
    from genkit.batch.standing import finished

    done = finished(planned, out)
    before = read(stores.open(out).home)
    differs = compare(before, planned) if before else None
    if as_json:
        jobs = [_job(job, job.output in done) for job in planned.jobs]
        apart = vars(differs) if differs and str(differs) else None
        echo_json({"recipe": planned.outline.name, "out": out, "jobs": jobs, "differs": apart})
        return
    table(
        ["output", "pipeline", "made from", "state"],
        [[job.output, job.pipeline, job.label, "done" if job.output in done else "to do"] for job in planned.jobs],
    )
    size = in_words(Sizes().of(job for job in planned.jobs if job.output not in done))
    note(f"{len(planned.jobs)} jobs, {len(done)} done already; about {size} to be written to {out}")
    if differs and str(differs):
        ways = "--replace" if differs.changed else "--extend or --replace"
        note(f"another plan made {out} (jobs: {differs}), so a run needs {ways}:")
        for line in differs.lines:
            note(f"  {line}")


def _job(job: Job, done: bool) -> dict[str, Any]:
    return {
        "id": job.id,
        "stage": job.stage,
        "pipeline": job.pipeline,
        "model": job.model,
        "params": job.params,
        "output": job.output,
        "renders": list(job.renders),
        "done": done,
    }
