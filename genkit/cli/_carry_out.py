"""What `genkit run` and `genkit retry` share: a plan carried out, its report written, and what came of it told."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from genkit.cli._common import data, echo_json, note
from genkit.cli._watch import watching
from genkit.errors import Cancelled, GenkitError, SomeJobsFailed

if TYPE_CHECKING:
    from genkit.batch.plan import Plan
    from genkit.batch.runner import Summary

__all__ = ["carry_out"]

TOLD = 10  # failed jobs that are listed


def carry_out(
    plan: Plan, out: str | Path, *, quiet: bool, as_json: bool, report: bool, options: dict[str, Any]
) -> None:
    """Runs a plan. options: of `genkit.batch.runner.run`. Raises SomeJobsFailed, and what that raises."""
    summary, path = _run(plan, out, quiet=quiet, report=report, options=options)
    if as_json:
        echo_json(_facts(summary, path))
    elif not quiet:
        _tell(summary, path)
    if summary.failed:
        first = summary.failed[0]
        raise SomeJobsFailed(f"{len(summary.failed)} of {summary.total} jobs failed; {first.output!r}: {first.error}")


def _run(
    plan: Plan, out: str | Path, *, quiet: bool, report: bool, options: dict[str, Any]
) -> tuple[Summary, str | None]:
    from genkit.batch import report as reports
    from genkit.batch import runner
    from genkit.batch import store as stores

    store = stores.open(out)
    home = store.home
    path = home / reports.NAME
    try:
        with watching(plan.outline.name, len(plan.jobs), quiet=quiet) as watch:
            summary = runner.run(plan, out, watch=watch, **options)
    except Cancelled:
        if report:
            _report(home)
            store.keep()
        raise
    if report and (summary.done or summary.failed or summary.changed or not path.exists()):
        _report(home)
        store.keep()
    return summary, store.path(reports.NAME) if path.exists() and report else None


def _report(home: Path) -> None:
    """Writes the report of the folder's plan, which may hold more than the one that was run."""
    from genkit.batch import plan as plans
    from genkit.batch import report as reports

    plan = plans.read(home)
    try:
        if plan:
            reports.write(plan, home)
    except (GenkitError, OSError) as error:  # the work itself is safe
        note(f"no report: {error}")


def _tell(summary: Summary, report: str | None) -> None:
    if summary.skipped == summary.total:
        note(f"{summary.total} done already, nothing to do")
    else:
        counts = {"done already": summary.skipped, "failed": len(summary.failed), "left as they are": summary.left}
        more = "".join(f", {count} {what}" for what, count in counts.items() if count)
        note(f"{summary.done} made{more} in {summary.out}")
    if summary.degraded:
        note(f"  {summary.degraded} of them with less memory than usual; the report says which")
    for one in summary.failed[:TOLD]:
        note(f"  {'in quarantine' if one.quarantined else 'failed'}: {one.output}: {one.error}")
    if len(summary.failed) > TOLD:
        note(f"  and {len(summary.failed) - TOLD} more; the report lists them")
    if summary.failed:
        note(f"  to try them again: genkit retry {summary.out}")
    data(report or summary.out)


def _facts(summary: Summary, report: str | None) -> dict[str, Any]:
    failed = [
        {"output": f.output, "job": f.job, "error": f.error, "attempt": f.attempt, "quarantined": f.quarantined}
        for f in summary.failed
    ]
    return {
        "out": summary.out,
        "total": summary.total,
        "done": summary.done,
        "skipped": summary.skipped,
        "left": summary.left,
        "degraded": summary.degraded,
        "failed": failed,
        "seconds": round(summary.seconds, 3),
        "report": report,
    }
