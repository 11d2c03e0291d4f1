"""Say how a batch stands: done, running, failed, still to do, and how long it will take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from genkit.cli import _batch
from genkit.cli._common import data, echo_json, json_option, note, one_line, span

if TYPE_CHECKING:
    from genkit.batch.status import Status, Tally

__all__ = ["command"]

TOLD = 10  # failures, and running jobs, that are listed
PAUSE = 2.0  # seconds between two looks


@click.command("status")
@_batch.out_argument
@click.option("--watch", is_flag=True, help="Look again every few seconds, until nobody works there.")
@json_option
def command(out: str, watch: bool, as_json: bool) -> None:
    """Say how a batch stands: done, running, failed, still to do, and how long it will take.

    DIR is the folder, or URL, that `genkit run` wrote to. It may be asked while a run goes on, and disturbs none:
    nothing is locked or written. Jobs in quarantine killed the processes that made them; neither they nor what is
    blocked by them is tried again before `genkit retry DIR`. What failed otherwise the next `genkit run` tries again.

    Exit status: 0 however it stands, 2 DIR holds no batch.
    """
    from genkit.batch import status

    store = _batch.found(out)
    while True:
        begun = time.monotonic()
        plan = _batch.planned(store)
        found = status.examine(plan, store)
        if as_json:
            echo_json({"out": store.name, "recipe": plan.outline.name, **found.to_json()})
        else:
            if watch:
                click.clear()
            _show(plan.outline.name, store.name, found)
        if not watch or not found.runner:
            return
        time.sleep(max(PAUSE, time.monotonic() - begun))  # a huge folder is not read all the time


def _show(recipe: str, out: str, found: Status) -> None:
    rows = [("recipe", f"{recipe}, in {out}"), ("runner", _runner(found)), *_counts(found)]
    if len(found.stages) > 1:
        rows += [(f"  {name}", _line(tally)) for name, tally in found.stages.items()]
    width = max(len(name) for name, _ in rows) + 1
    for name, text in rows:
        data(f"{name + ':' if name else '':<{width}} {text}")
    _list("now", [f"{output}, for {_ago(since)}" for output, since in found.running.items()])
    _list("failed", [_failure(one) for one in found.failures])
    if found.damaged:
        note(f"{found.damaged} lines of the journal are damaged: genkit repair {out}")
    if found.failures:
        note(f"to try them again: genkit retry {out}")


def _runner(found: Status) -> str:
    if not found.runner:
        return "none" if found.total.done == found.total.jobs else "none; `genkit run` with the recipe goes on"
    return f"{found.runner}, for {_ago(found.began)}, {found.made} made"


def _counts(found: Status) -> Iterator[tuple[str, str]]:
    from genkit.batch.sizes import in_words

    total = found.total
    yield "done", f"{total.done} of {total.jobs}{_degraded(total)}"
    for name in ("running", "failed", "quarantined", "blocked", "to_do"):
        if count := getattr(total, name):
            yield name.replace("_", " "), str(count)
    yield "size", in_words(total.bytes)
    yield "spent", f"{span(total.seconds)} of work"
    if found.left is not None:
        yield "left", f"about {span(found.left)}"


def _line(tally: Tally) -> str:
    counts: dict[str, Any] = {name: getattr(tally, name) for name in ("running", "failed", "quarantined", "blocked")}
    more = "".join(f", {count} {name}" for name, count in counts.items() if count)
    return f"{tally.done} of {tally.jobs}{_degraded(tally)}{more}"


def _degraded(tally: Tally) -> str:
    return f" ({tally.degraded} with less memory than usual)" if tally.degraded else ""


def _failure(one: Any) -> str:
    tries = f" (tried {one.attempt} times)" if one.attempt > 1 else ""
    return f"{one.output}{' (quarantined)' if one.quarantined else ''}: {one.error}{tries}"


def _list(title: str, lines: list[str]) -> None:
    if lines:
        data(f"{title}:")
        for line in lines[:TOLD]:
            data(f"  {one_line(line)}")
        if len(lines) > TOLD:
            data(f"  and {len(lines) - TOLD} more, which --json lists")


def _ago(since: float) -> str:
    return span(max(0.0, time.time() - since))
