"""List the pipelines that are installed.

Reads entry points and sources only: nothing is imported, so it is quick and a broken pipeline is listed too.
"""

from __future__ import annotations

import click

from genkit import registry
from genkit.cli import _common


@click.command
@_common.json_option
def command(as_json: bool) -> None:
    """List the pipelines that are installed."""
    rows = [
        {"name": name, "summary": registry.summary(name), "package": registry.origin(name)}
        for name in registry.pipelines()
    ]
    if as_json:
        _common.echo_json(rows)
        return
    if not rows:
        _common.note("no pipeline is installed; `genkit doctor` shows why")
    _common.table(["pipeline", "what it does", "from"], [list(row.values()) for row in rows])
