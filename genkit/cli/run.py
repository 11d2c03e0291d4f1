"""Run a recipe: make what is missing of its files, and a report of them all."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from genkit.cli._common import data, echo_json, json_option, note, quiet_option, runtime_options, table

if TYPE_CHECKING:
    from genkit.batch.plan import Plan
    from genkit.batch.runner import Summary, Watch

__all__ = ["command"]


class _Batch(click.IntRange):
    """A number of jobs; 0 for "auto"."""

    name = "number of jobs"

    def __init__(self) -> None:
        super().__init__(1, 1024)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return 0 if value in ("auto", 0) else super().convert(value, param, ctx)


@click.command("run")
@click.argument("recipe")
@click.option("--out", type=click.Path(path_type=Path), help="The output folder. [default: outputs/NAME]")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Set a value of the recipe (params.seed=4)."
)
@click.option("--dry-run", is_flag=True, help="List the jobs and make nothing.")
@click.option(
    "--batch",
    type=_Batch(),
    default="auto",
    metavar="N|auto",
    show_default=True,
    help="Jobs that share a pass; auto: what is fastest.",
)
@click.option("--retries", type=click.IntRange(0, 100), default=2, show_default=True, help="New tries of a failed job.")
@click.option("--no-report", is_flag=True, help="Write no report.html.")
@runtime_options
@quiet_option
@json_option
def command(
    recipe: str,
    out: Path | None,
    overrides: tuple[str, ...],
    dry_run: bool,
    batch: int,
    retries: int,
    no_report: bool,
    device: str | None,
    dtype: str | None,
    deterministic: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run a recipe: make what is missing of its files, and a report of them all.

    RECIPE is a file, or the name of one that comes with genkit (`genkit recipes`). What is there already is not made
    again: the same command goes on where the last one stopped, and remakes only what a changed recipe changes.

    Exit status: 0 done, 2 the recipe is wrong, 3 some jobs failed, 4 the disk is full, 75 another run has the folder,
    130 stopped.
    """
    from genkit.batch import library, plan
    from genkit.batch.recipe import load

    loaded = load(library.find(recipe), overrides=overrides)
    planned = plan.make(loaded, dtype=dtype)
    out = out or Path("outputs") / loaded.name
    if dry_run:
        _show(planned, out, as_json)
        return
    summary, report = _run(
        planned,
        out,
        quiet=quiet,
        report=not no_report,
        options={"batch": batch, "retries": retries},
        runtime={"device": device, "dtype": dtype, "deterministic": deterministic},
    )
    if as_json:
        echo_json(_facts(summary, report))
    elif not quiet:
        _tell(summary, report)
    if summary.failed:
        from genkit.errors import SomeJobsFailed

        first = summary.failed[0]
        raise SomeJobsFailed(f"{len(summary.failed)} of {summary.total} jobs failed; {first.output!r}: {first.error}")


def _run(
    planned: Plan, out: Path, *, quiet: bool, report: bool, options: dict[str, Any], runtime: dict[str, Any]
) -> tuple[Summary, Path | None]:
    from genkit.batch import report as reports
    from genkit.batch import runner
    from genkit.errors import Cancelled

    path = None
    try:
        with _watch(quiet, planned) as watch:
            summary = runner.run(planned, out, watch=watch, **options, **runtime)
    except Cancelled:
        if report:
            reports.write(planned, out)
        raise
    if report and (summary.done or summary.failed or summary.changed or not (out / reports.NAME).exists()):
        path = reports.write(planned, out)
    return summary, path


def _show(planned: Plan, out: Path, as_json: bool) -> None:
    from genkit.batch import runner

    done = runner.finished(planned, out)
    if as_json:
        echo_json(
            {
                "recipe": planned.recipe.name,
                "out": str(out),
                "jobs": [
                    {
                        "id": job.id,
                        "stage": job.stage,
                        "pipeline": job.pipeline,
                        "model": job.model,
                        "params": job.params,
                        "output": job.output,
                        "renders": list(job.renders),
                        "done": job.output in done,
                    }
                    for job in planned.jobs
                ],
            }
        )
        return
    table(
        ["output", "pipeline", "made from", "state"],
        [[job.output, job.pipeline, job.label, "done" if job.output in done else "to do"] for job in planned.jobs],
    )
    size = runner.estimate([job for job in planned.jobs if job.output not in done])
    note(f"{len(planned.jobs)} jobs, {len(done)} done already; about {size} to be written to {out}")


def _tell(summary: Summary, report: Path | None) -> None:
    if summary.skipped == summary.total:
        note(f"{summary.total} done already, nothing to do")
    else:
        skipped = f", {summary.skipped} done already" if summary.skipped else ""
        failed = f", {len(summary.failed)} failed" if summary.failed else ""
        note(f"{summary.done} made{skipped}{failed} in {summary.out}")
    for one in summary.failed[:10]:
        note(f"  failed: {one.output}: {one.error}")
    if len(summary.failed) > 10:
        note(f"  and {len(summary.failed) - 10} more; the report lists them")
    data(str(report or summary.out))


def _facts(summary: Summary, report: Path | None) -> dict[str, Any]:
    return {
        "out": str(summary.out),
        "total": summary.total,
        "done": summary.done,
        "skipped": summary.skipped,
        "failed": [{"output": f.output, "job": f.job, "error": f.error, "attempt": f.attempt} for f in summary.failed],
        "seconds": round(summary.seconds, 3),
        "report": str(report) if report else None,
    }


@contextlib.contextmanager
def _watch(quiet: bool, planned: Plan) -> Iterator[Watch]:
    """Two bars on a terminal (all jobs, this job), a line now and then elsewhere, nothing if quiet."""
    from genkit.batch.runner import Watch

    if quiet:
        yield Watch()
    elif sys.stderr.isatty():
        with _bars(planned) as watch:
            yield watch
    else:
        yield _lines()


@contextlib.contextmanager
def _bars(planned: Plan) -> Iterator[Watch]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from genkit.batch.job import Job
    from genkit.batch.runner import Watch
    from genkit.batch.worker import Outcome

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        whole = bar.add_task(escape(planned.recipe.name), total=len(planned.jobs))
        current = bar.add_task("", total=None, visible=False)

        class Bars(Watch):
            def start(self, todo: int, skipped: int) -> None:
                bar.update(whole, completed=skipped)

            def note(self, text: str) -> None:
                bar.console.print(escape(text))

            def job(self, jobs: Sequence[Job]) -> None:
                bar.reset(current, description=escape(jobs[0].output[-48:]), total=None, visible=True)

            def step(self, step: int, total: int, *, preview: Any = None, note: str = "") -> None:
                bar.update(current, completed=step, total=total)

            def done(self, outcome: Outcome, final: bool) -> None:
                bar.advance(whole, int(final))

        yield Bars()


def _lines() -> Watch:
    import time

    from genkit.batch.runner import Watch
    from genkit.batch.worker import Outcome

    class Lines(Watch):
        count, total, said = 0, 0, time.monotonic()

        def start(self, todo: int, skipped: int) -> None:
            self.count, self.total = skipped, todo + skipped

        def note(self, text: str) -> None:
            note(text)

        def done(self, outcome: Outcome, final: bool) -> None:
            self.count += final
            if time.monotonic() - self.said >= 5:
                self.said = time.monotonic()
                note(f"{self.count} of {self.total} jobs")

    return Lines()
