"""Which jobs of a batch are to be tried again: those that failed, or those that somebody names.

What depends on them comes along: what they take from, if it is not there, and what was blocked by them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from genkit.batch.journal import State
from genkit.batch.plan import Plan
from genkit.batch.status import Standing, standings
from genkit.batch.store import Store
from genkit.errors import InputError

__all__ = ["Selection"]

LOST = ("failed", "quarantined", "blocked")
LISTED = 5
SHORTEST = 4  # signs of an id that are enough to name it


class Selection:
    """Of a plan's jobs, by how they stand; light enough for a hundred thousand."""

    def __init__(self, plan: Plan, store: Store, state: State) -> None:
        self.store, self.state = store, state
        self.standing: dict[str, Standing] = {}  # by output
        self.ids: dict[str, str] = {}
        self.takes: dict[str, list[str]] = {}
        self.renders: dict[str, str] = {}  # what a rendering's name belongs to
        for job, standing in standings(plan, store, state, alive=False):
            self.standing[job.output] = standing
            self.ids[job.output] = job.id
            self.renders |= dict.fromkeys(job.renders, job.output)
            if job.takes:
                self.takes[job.output] = [take.output for take in job.takes.values()]

    def lost(self) -> set[str]:
        """The outputs that failed, are in quarantine, or are blocked by these."""
        return {output for output, standing in self.standing.items() if standing in LOST}

    def named(self, names: Iterable[str]) -> set[str]:
        """The outputs of jobs named by an id, the beginning of one, an output, or any file of theirs. Raises
        InputError."""
        return {output for name in names for output in self._named(name)}

    def _named(self, name: str) -> list[str]:
        if output := self._of_file(name):
            return [output]
        found = [output for output, id in self.ids.items() if id.startswith(name)] if len(name) >= SHORTEST else []
        ids = sorted({self.ids[output] for output in found})
        if len(ids) > 1:
            some = ", ".join(id[:12] for id in ids[:LISTED])
            raise InputError(
                f"{name!r} begins {len(ids)} jobs' ids ({some}{', ...' if ids[LISTED:] else ''}); add signs"
            )
        if not found:
            raise InputError(
                f"no job of {self.store.name!r} is {name!r}; give an output's name, or the first signs of a job's id, "
                "as `genkit status --json` lists them"
            )
        return found

    def _of_file(self, name: str) -> str | None:
        """The output that a file belongs to: by its name in the folder, or its path from here."""
        files = {made.path: output for output, done in self.state.done.items() for made in done.files}
        path = Path(name).absolute()
        inside = path.relative_to(self.store.home).as_posix() if path.is_relative_to(self.store.home) else name
        for one in (name, inside):
            output = one if one in self.ids else self.renders.get(one) or files.get(one)
            if output in self.ids:
                return output
        return None

    def along(self, outputs: set[str]) -> set[str]:
        """With what has to be made first, and what waits for them because it was blocked."""
        chosen, rest = set(outputs), list(outputs)
        while rest:
            for output in self.takes.get(rest.pop(), ()):
                if output not in chosen and self.standing.get(output) != "done":
                    chosen.add(output)
                    rest.append(output)
        for output, takes in self.takes.items():  # in the order of the plan, so a chain is followed to its end
            waits = [take for take in takes if self.standing.get(take) != "done"]
            if self.standing[output] == "blocked" and chosen.issuperset(waits):
                chosen.add(output)
        return chosen
