"""The combinations of a stage: the product of its axes, less `exclude`, plus `include`.

`exclude` and `include` mean what they mean in a GitHub workflow's matrix. An entry of `exclude` removes every
combination that has all its values. An entry of `include` is added to every combination whose own values it does not
contradict, and makes a combination of its own if it fits none. Combinations are streamed: none is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from genkit.batch.job import Made
from genkit.batch.planning.stages import Axis, Stage
from genkit.batch.planning.template import shown
from genkit.batch.recipe import Recipe

__all__ = ["combinations"]

MAX_EXCLUDED = 1_000_000
"""Combinations looked at, kept or not: a recipe cannot make the planner spin by excluding nearly everything."""


def combinations(recipe: Recipe, stage: Stage, earlier: Mapping[str, Sequence[Made]]) -> Iterator[dict[str, Any]]:
    """Each combination as {name: value}; an earlier stage's job stands as a `Made`. Raises RecipeError for too many."""
    factors = [_values(axis, earlier) for axis in stage.axes]
    total = math.prod(map(len, factors))
    limit = max(recipe.max_jobs, MAX_EXCLUDED) if stage.exclude else recipe.max_jobs
    if total > limit:
        raise _too_many(recipe, stage, f"{total:,} combinations")
    kept = 0
    for kept, combination in enumerate(_all(stage, factors), 1):
        if kept > recipe.max_jobs:
            raise _too_many(recipe, stage, f"more than {recipe.max_jobs:,} jobs")
        yield combination
    if total and not kept:
        raise recipe.error("every combination is excluded, so there is nothing to make", (*stage.path, "exclude"))


def _too_many(recipe: Recipe, stage: Stage, many: str) -> Exception:
    place = stage.axes[0].path if stage.axes else stage.path
    return recipe.error(f"makes {many}, and max_jobs is {recipe.max_jobs:,}; raise max_jobs, or ask for less", place)


def _values(axis: Axis, earlier: Mapping[str, Sequence[Made]]) -> Sequence[Mapping[str, Any]]:
    if axis.source is None:
        return axis.values
    return [{axis.key: made} for made in earlier[axis.source.stage]]


def _all(stage: Stage, factors: Sequence[Sequence[Mapping[str, Any]]]) -> Iterator[dict[str, Any]]:
    # With no axis at all there is one job, unless `include` lists them.
    combined = product(*factors) if factors or not stage.include else iter(())
    keys = frozenset().union(*(axis.names for axis in stage.axes))
    excluded = _Entries(stage.exclude)
    included = _Entries([{key: value for key, value in entry.items() if key in keys} for entry in stage.include])
    unused = set(range(len(stage.include)))
    for parts in combined:
        combination = {key: value for part in parts for key, value in part.items()}
        if excluded.fitting(combination):
            continue
        added: dict[str, Any] = {}
        for number in included.fitting(combination):
            unused.discard(number)
            added.update(stage.include[number])
        yield {**combination, **{key: value for key, value in added.items() if key not in combination}}
    for number in sorted(unused):
        yield dict(stage.include[number])


class _Entries:
    """Entries to be looked up by a combination's values: as quick for thousands of them as for one."""

    def __init__(self, entries: Sequence[Mapping[str, Any]]) -> None:
        self.numbers: dict[tuple[str, ...], dict[tuple[str, ...], list[int]]] = {}
        for number, entry in enumerate(entries):
            names = tuple(sorted(entry))
            values = tuple(_text(entry[name]) for name in names)
            self.numbers.setdefault(names, {}).setdefault(values, []).append(number)

    def fitting(self, combination: Mapping[str, Any]) -> list[int]:
        """The numbers of those whose every value the combination has, in order."""
        found: list[int] = []
        for names, by_values in self.numbers.items():
            if all(name in combination for name in names):
                # Compared as text, so that a CSV's "1" is the recipe's 1.
                found += by_values.get(tuple(_text(combination[name]) for name in names), ())
        return sorted(found)


def _text(value: Any) -> str:
    return value.output if isinstance(value, Made) else shown(value)
