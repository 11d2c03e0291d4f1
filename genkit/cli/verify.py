"""Check the files of a batch: each there, as it was written, and sound."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from genkit.cli import _batch
from genkit.cli._common import data, echo_json, json_option, note, one_line, progress_bar, quiet_option
from genkit.errors import Damaged, GenkitError

if TYPE_CHECKING:
    from genkit.batch.plan import Plan
    from genkit.batch.store import Store
    from genkit.batch.verify import Findings

__all__ = ["command"]

TOLD = 5  # files that nobody knows, that are listed
AGAIN = "`genkit run` makes it again"
REMEDIES = {
    "missing": AGAIN,
    "size": AGAIN,
    "content": "`genkit repair`, then `genkit run`, makes it again",
    "unreadable": "`genkit repair`, then `genkit run`, makes it again",
    "record": "`genkit repair`, then `genkit run`, makes it again",
    "leftover": "the next `genkit run` removes it",
    "journal": "`genkit repair` makes it good by the files",
}


@click.command("verify")
@_batch.out_argument
@click.option("--quick", is_flag=True, help="Ask only for the sizes of the files, and open none.")
@quiet_option
@json_option
def command(out: str, quick: bool, quiet: bool, as_json: bool) -> None:
    """Check the files of a batch: each there, as it was written, and sound.

    DIR is the folder, or URL, that `genkit run` wrote to. Every file that the journal has is read once: its digest must
    be the one that was written, it must decode, and carry the record of its job. What a killed run left half-written
    is looked for too. A file that nobody made yet is no fault, nor is one that is not the batch's. Nothing is changed,
    and a run may be going on.

    Exit status: 0 all is well, 2 DIR holds no batch, 3 something is missing or damaged; each is told with its remedy.
    """
    from genkit.batch.verify import verify

    store = _batch.found(out)
    with progress_bar("verify", quiet=quiet) as progress:
        found = verify(store, _plan(store, quiet), quick=quick, progress=progress)
    if as_json:
        echo_json({"out": store.name, **asdict(found)})
    else:
        for fault in found.faults:
            data(one_line(f"{fault.file}: {fault.says}; {REMEDIES[fault.kind]}"))
        if not quiet:
            _tell(found)
    if found.faults:
        worst = "; then run the recipe again" if any("repair" in REMEDIES[f.kind] for f in found.faults) else ""
        remedy = f"`genkit repair {out}`{worst}" if worst else "run the recipe again"
        count = f"{len(found.faults)} faults" if len(found.faults) > 1 else "1 fault"
        raise Damaged(f"{count} in {store.name!r}: {remedy}")


def _plan(store: Store, quiet: bool) -> Plan | None:
    """The plan, if it can be had: the journal alone says what was made."""
    try:
        return _batch.planned(store)
    except GenkitError as error:
        if not quiet:
            note(str(error))
        return None


def _tell(found: Findings) -> None:
    from genkit.batch.sizes import in_words

    if found.runner:
        note(f"{found.runner} works there; what it makes meanwhile is not looked at")
    jobs = "" if found.jobs is None else f", {found.done} of {found.jobs} jobs done"
    note(f"{found.files} files, {in_words(found.bytes)}{jobs}; {len(found.faults) or 'no'} faults")
    if found.doubtful:
        note(f"{len(found.doubtful)} known to be no good, to be made again by `genkit run`: {_some(found.doubtful)}")
    if found.gone:
        note(f"{len(found.gone)} of an earlier plan are gone: {_some(found.gone)}")
    if found.unknown:
        note(f"{len(found.unknown)} that the journal does not know, left alone: {_some(found.unknown)}")


def _some(names: list[str]) -> str:
    return one_line(", ".join(names[:TOLD])) + (", ..." if names[TOLD:] else "")
