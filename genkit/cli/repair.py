"""Bring the journal of a batch in line with its files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from genkit.cli import _batch
from genkit.cli._common import data, echo_json, json_option, note, one_line, progress_bar, quiet_option
from genkit.errors import InputError

if TYPE_CHECKING:
    from genkit.batch.repair import Repaired
    from genkit.batch.store import Folder

__all__ = ["command"]


@click.command("repair")
@_batch.out_argument
@quiet_option
@json_option
def command(out: str, quiet: bool, as_json: bool) -> None:
    """Bring the journal of a batch in line with its files.

    DIR is the folder that `genkit run` wrote to. For when `genkit verify` finds something, or the journal is lost:
    every file is read, and each carries the record of its job. Lines that cannot be read are dropped (the journal as it
    was stays beside, as journal.jsonl.old), files without a line get one, and what is damaged is left for the next
    `genkit run` to make again; a broken file of which nobody can tell whose it is goes to NAME.broken. No sound file is
    touched. Failures and quarantine stay as the journal has them. Without the plan (.genkit/plan.jsonl) the records
    alone are gone by.

    Exit status: 0 repaired, or nothing to repair, 2 DIR holds no batch, 4 the disk is full, 75 a run has the folder.
    """
    from genkit.batch.repair import repair

    store = _folder(out)
    with progress_bar("repair", quiet=quiet) as progress:
        result = repair(store, progress)
    if as_json:
        echo_json({"out": store.name, **asdict(result)})
        return
    for output, why in result.again.items():
        data(one_line(f"to be made again: {output}: {why}"))
    for name, where in result.aside.items():
        data(one_line(f"moved aside: {name}: is damaged and nobody's; now {where}"))
    for name in result.strangers:
        data(one_line(f"left alone: {name}: stands in the way and is not this batch's; move it away"))
    for name in result.former:
        data(one_line(f"left alone: {name}: is damaged, and no longer in the plan"))
    if not quiet:
        _tell(result, out)


def _folder(out: str) -> Folder:
    """A folder of this machine with a batch, or with files of one. Raises InputError."""
    from genkit.batch import store as stores
    from genkit.batch.journal import FOLDER
    from genkit.batch.verify import walk

    if "://" in out.removeprefix("file://"):
        raise InputError(f"{out!r}: there `genkit run` knows its files by their records; only a folder is repaired")
    path = Path(out.removeprefix("file://"))
    if path.is_dir() and not (path / FOLDER).is_dir():
        folder = stores.Folder(path.absolute())
        if any(folder.maker(file.relative_to(path).as_posix()) for file in walk(path)):
            return folder
    _batch.found(out) if not (path / FOLDER).is_dir() else None
    return stores.Folder(path.absolute())


def _tell(result: Repaired, out: str) -> None:
    if result.kept:
        count = "1 line" if result.lines == 1 else f"{result.lines} lines"
        note(f"{count} of the journal could not be read and went out of it; as it was it is kept: {result.kept}")
    if not result.planned:
        note("the plan is lost: what was still to do is not known; the next run of the recipe plans it anew")
    counts = {
        "right": result.sound,
        "entered": len(result.entered),
        "to be made again": len(result.again),
        "moved aside": len(result.aside),
    }
    note(f"jobs: {', '.join(f'{count} {what}' for what, count in counts.items() if count) or 'none'}")
    if result.again or result.aside:
        note(f"now run the recipe again, with --out {out}")
