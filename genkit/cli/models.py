"""List the models that have an alias, with size, licence and what they need.

Any other model is named by its hub id, folder or file.
"""

from __future__ import annotations

from typing import Any

import click

from genkit import registry
from genkit.cli import _common
from genkit.errors import GenkitError


@click.command
@click.argument("pipeline", required=False)
@_common.json_option
def command(pipeline: str | None, as_json: bool) -> None:
    """List the models that have an alias: of every pipeline, or of PIPELINE."""
    names = [pipeline] if pipeline is not None else registry.pipelines()
    rows = []
    for name in names:
        try:
            rows += _rows(name)
        except GenkitError as error:
            if pipeline is not None:
                raise
            _common.note(str(error))  # one broken pipeline does not hide the others
    if as_json:
        _common.echo_json(rows)
        return
    _common.table(
        ["model", "pipeline", "size", "licence", "here", "what it is"],
        [
            [
                row["model"] + ("*" if row["default"] else ""),
                row["pipeline"],
                row["size"],
                row["licence"],
                "yes" if row["here"] else "no",
                row["summary"] + (f" (needs {row['needs']})" if row["needs"] else ""),
            ]
            for row in rows
        ],
    )
    _common.note("* the default. Any other model is named by a hub id (org/name), a folder or a file.")


def _rows(name: str) -> list[dict[str, Any]]:
    found = registry.get(name)
    return [
        {
            "model": alias,
            "pipeline": name,
            "default": alias == found.default_model,
            "size": model.size,
            "licence": model.licence,
            "needs": model.needs,
            "source": model.ref,
            "here": _here(model.ref),
            "summary": model.summary,
        }
        for alias, model in found.models.items()
    ]


def _here(ref: str) -> bool:
    from genkit import weights

    try:
        return weights.here(ref)
    except GenkitError:
        return False
