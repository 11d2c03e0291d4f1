"""Try again what failed in a batch, from its folder alone."""

from __future__ import annotations

from typing import Any

import click

from genkit.cli import _batch
from genkit.cli._common import json_option, note, quiet_option
from genkit.cli.run import work, work_options

__all__ = ["command"]


@click.command("retry")
@_batch.out_argument
@click.option("--failed", is_flag=True, help="All that failed or is in quarantine; so it is without --job too.")
@click.option("--job", "names", multiple=True, metavar="ID", help="This job; may be given several times.")
@work_options
@quiet_option
@json_option
def command(
    out: str,
    failed: bool,
    names: tuple[str, ...],
    no_report: bool,
    quiet: bool,
    as_json: bool,
    dtype: str | None,
    **how: Any,
) -> None:
    """Try again what failed in a batch, from its folder alone.

    DIR is the folder, or URL, that `genkit run` wrote to; the recipe is not needed. Jobs in quarantine, over which
    processes died, are tried only by this. With --job only the jobs that are named are made: by an id or its first
    signs, or by an output's name. What was blocked by a failed job is tried with it, and what a job takes from an
    earlier stage is made first.

    Exit status: 0 all of them are done, 2 DIR holds no batch or no such job, 3 some failed again, 4 the disk is full,
    75 a run has the folder, 130 stopped.
    """
    from genkit.batch.journal import read
    from genkit.batch.selection import Selection
    from genkit.cli._carry_out import carry_out

    store = _batch.found(out)
    plan = _batch.planned(store)
    options = work(dtype=_dtype(dtype, plan.outline.dtype), **how)
    jobs = Selection(plan, store, read(store.home))
    chosen = jobs.named(names) | (jobs.lost() if failed or not names else set())
    done = sorted(output for output in chosen if jobs.standing[output] == "done")
    if done and not quiet:
        more = f" and {len(done) - 1} more are" if len(done) > 1 else " is"
        note(f"{done[0]!r}{more} done, and stays as it is; delete a file to have it made again")
    if not chosen and not quiet:
        note("nothing has failed here")
    options["only"] = jobs.along(chosen)
    carry_out(plan, out, quiet=quiet, as_json=as_json, report=not no_report, options=options)


def _dtype(given: str | None, planned: str | None) -> str | None:
    """The one that the folder was planned for: it is a part of what its jobs are."""
    if given not in (None, planned):
        stated = f"for --dtype {planned}" if planned else "without a --dtype"
        raise click.UsageError(f"this batch was planned {stated}; another one takes a run of the recipe")
    return planned
