"""Say what is installed, what fits together and what is missing, with the remedy of each.

Exits 1 when something is found that keeps genkit from working.
"""

from __future__ import annotations

import click

from genkit.cli import _common


@click.command
@_common.json_option
def command(as_json: bool) -> int:
    """Say what is installed, what fits together and what is missing."""
    from genkit.cli import _checks

    found = _checks.examine()
    if as_json:
        _common.echo_json([vars(check) for check in found])
    else:
        for check in found:
            _common.data(f"{_checks.SIGNS[check.state]} {check.name}: {check.says}")
    return 1 if any(check.state == "bad" for check in found) else 0
