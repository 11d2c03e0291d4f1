"""What the commands about a batch that was run share: its folder, looked up by how a person names it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from genkit.errors import InputError

if TYPE_CHECKING:
    from genkit.batch.plan import Plan
    from genkit.batch.store import Store

__all__ = ["found", "out_argument", "planned"]

out_argument = click.argument("out", metavar="DIR")


def found(out: str) -> Store:
    """The folder, or URL, that a batch was made in. Raises InputError."""
    from genkit.batch import journal, plan
    from genkit.batch import store as stores

    remedy = "give the folder that `genkit run` wrote to (its --out, else outputs/NAME)"
    if "://" not in out and not Path(out).is_dir():
        raise InputError(f"{out!r} is {'no folder' if Path(out).exists() else 'not there'}; {remedy}")
    store = stores.open(out)
    if not any((store.home / path).exists() for path in (plan.PATH, Path(journal.FOLDER, journal.NAME))):
        raise InputError(f"{out!r} holds no batch; {remedy}")
    return store


def planned(store: Store) -> Plan:
    """The plan of a folder. Raises InputError."""
    from genkit.batch import plan

    plan_ = plan.read(store.home)
    if plan_ is None:
        raise InputError(
            f"{store.name!r} has lost its plan (.genkit/plan.jsonl); run the recipe again, it is made anew"
        )
    return plan_
