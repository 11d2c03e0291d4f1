"""List the recipes that come with genkit, and copy one out to be edited."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from genkit.cli._common import data, echo_json, json_option, note, table

__all__ = ["command"]


@click.group("recipes", invoke_without_command=True)
@json_option
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List the recipes that come with genkit, and copy one out to be edited.

    `genkit run NAME` runs a batch recipe, `genkit train NAME` a training recipe (without its leading train/).
    """
    if ctx.invoked_subcommand is not None:
        return
    from genkit.batch import library

    entries = library.entries()
    if as_json:
        echo_json([{**dataclasses.asdict(entry), "path": str(entry.path)} for entry in entries])
    else:
        table(["name", "kind", "what it does"], [[entry.name, entry.kind, entry.description] for entry in entries])
        if not entries:
            note("no recipes came with this installation")


@command.command("copy")
@click.argument("name")
@click.argument("destination", required=False, type=click.Path(path_type=Path))
def copy(name: str, destination: Path | None) -> None:
    """Copy the recipe NAME here, or to DESTINATION, with the files it refers to."""
    from genkit.batch import library

    for path in library.copy(name, destination):
        data(str(path))
