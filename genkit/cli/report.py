"""Write the report of a batch again, from its folder alone."""

from __future__ import annotations

import click

from genkit.cli import _batch
from genkit.cli._common import data, echo_json, json_option

__all__ = ["command"]


@click.command("report")
@_batch.out_argument
@json_option
def command(out: str, as_json: bool) -> None:
    """Write the report of a batch again, from its folder alone.

    DIR is the folder, or URL, that `genkit run` wrote to. The recipe is not needed, and a run may be going on: the
    report tells what is there at the moment. Prints the path of report.html.

    Exit status: 0 written, 2 DIR holds no batch, 4 the disk is full.
    """
    from genkit.batch import report

    store = _batch.found(out)
    report.write(_batch.planned(store), store.home)
    store.keep()
    path = store.path(report.NAME)
    if as_json:
        echo_json({"out": store.name, "report": path})
    else:
        data(path)
