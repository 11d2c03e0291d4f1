"""Print the JSON Schema of recipes, for editors to complete and check them by."""

from __future__ import annotations

import json
from pathlib import Path

import click

from genkit.cli._common import data, note

__all__ = ["command"]


@click.command("schema")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write it to this file.")
@click.option("--check", type=click.Path(path_type=Path), help="Only say whether this file holds the current schema.")
def command(output: Path | None, check: Path | None) -> None:
    """Print the JSON Schema of recipes, for editors to complete and check them by.

    A recipe names it in its first line:  # yaml-language-server: $schema=genkit-recipe.schema.json
    It knows the parameters of every pipeline installed here.
    """
    from genkit.batch.schema import recipe_schema

    text = json.dumps(recipe_schema(), indent=1, ensure_ascii=False) + "\n"
    if check is not None:
        _check(check, text)
    elif output is not None:
        from genkit.media.files import atomic_write

        atomic_write(output, text.encode())
        note(f"wrote {output}")
    else:
        data(text.rstrip("\n"))


def _check(path: Path, text: str) -> None:
    from genkit.errors import InputError

    try:
        current = path.read_text("utf-8") == text
    except (OSError, UnicodeDecodeError):
        current = False
    if not current:
        raise InputError(f"{str(path)!r} is missing or not the current schema; write it with `genkit schema -o {path}`")
    note(f"{path} is current")
