"""How the jobs of a stage lie in a labelled grid: what stands for its columns, its rows and its sheets.

Every part of the recipe that makes several jobs is a scale: a key of `matrix` or `files`, and `zip` and `rows` as a
whole, since their names change together (rows that hold every combination of their names are taken apart). Scales with
one value are told once. Of the others the first are the columns, the second the rows, and every combination of the
rest is a sheet of its own: x, y and z. The recipe's `grid` says otherwise by name. Many columns beside few rows change
places, unless the recipe asked. Nothing is drawn here, and of a job nothing is kept but its place in the plan.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from genkit import registry
from genkit.batch.planning.outline import StageOutline
from genkit.batch.planning.template import shown

__all__ = ["MAX_COLUMNS", "Grid", "Scale", "Sheet", "layout"]

MAX_COLUMNS = 12
"""More columns than this become rows, if there are fewer rows."""
MAX_SPARSE = 20_000
"""Places of a grid that is mostly empty, though the recipe asks for it; a larger one is none."""

Key = tuple[str, ...]
Variables = Mapping[int, Mapping[str, Any]]
"""What the recipe made jobs from, by their places in the plan, in order."""


@dataclass(frozen=True)
class Scale:
    """What changes along one direction. labels: as read, by the values of its names; in the order of the jobs."""

    names: tuple[str, ...]
    labels: Mapping[Key, str]

    @property
    def name(self) -> str:
        """ "steps"; empty where a label names what it holds."""
        return self.names[0] if len(self.names) == 1 else ""

    def key(self, values: Mapping[str, Any]) -> Key:
        return _key(self.names, values)


@dataclass(frozen=True)
class Sheet:
    """One table. title: (name, label) of the further scales; rows, columns: keys in order; cells: places of jobs by
    row and column."""

    title: tuple[tuple[str, str], ...]
    rows: Sequence[Key]
    columns: Sequence[Key]
    cells: Mapping[tuple[Key, Key], list[int]]


@dataclass(frozen=True)
class Grid:
    """x: the columns; y: the rows, None for a single one; fixed: (name, label) of scales with one value; rest: places
    of jobs that lie outside it, as `include` may add some."""

    x: Scale
    y: Scale | None
    sheets: Sequence[Sheet]
    fixed: Sequence[tuple[str, str]] = ()
    rest: Sequence[int] = field(default=())


def layout(stage: StageOutline, jobs: Variables) -> Grid | None:
    """The grid that a stage's jobs make; None if fewer than two things vary, or most of it would be empty."""
    axes = [frozenset(axis.names) for axis in stage.axes]
    fitting = {i: values for i, values in jobs.items() if not any(map(values.keys().isdisjoint, axes))}
    scales = _scales(stage, fitting)
    varying = [scale for scale in scales if len(scale.labels) > 1]
    asked = {way: scale for way, name in stage.grid.items() for scale in scales if name in scale.names}
    if not fitting or not (asked or len(varying) > 1):
        return None
    x, y, outer = _ways(varying, asked)
    sheets = _sheets(x, y, outer, fitting)
    slots = sum(len(sheet.rows) for sheet in sheets) * len(x.labels)
    if 2 * sum(len(sheet.cells) for sheet in sheets) < slots and (not asked or slots > MAX_SPARSE):
        return None
    fixed = [
        (scale.name, label)
        for scale in scales
        if len(scale.labels) == 1 and scale not in (x, y)
        for label in scale.labels.values()
    ]
    return Grid(x, y, sheets, fixed, [place for place in jobs if place not in fitting])


def _ways(varying: Sequence[Scale], asked: Mapping[str, Scale]) -> tuple[Scale, Scale | None, list[Scale]]:
    """Columns, rows, and what makes the sheets."""
    free = [scale for scale in varying if scale not in asked.values()]
    x = asked.get("x") or (free.pop(0) if free else None)
    y = asked.get("y") or (free.pop(0) if free else None)
    outer = [*([asked["z"]] if "z" in asked else []), *free]
    if x is None:  # rows were asked for, or sheets, and there is nothing else
        x, y = y or outer.pop(0), None
    outer = [scale for scale in outer if scale not in (x, y)]
    y = None if y is x else y
    if y is not None and not {"x", "y"} & set(asked) and len(x.labels) > MAX_COLUMNS >= len(y.labels):
        x, y = y, x
    return x, y, outer


def _sheets(x: Scale, y: Scale | None, outer: Sequence[Scale], jobs: Variables) -> list[Sheet]:
    found: dict[tuple[Key, ...], dict[tuple[Key, Key], list[int]]] = {}
    for place, values in jobs.items():
        cells = found.setdefault(tuple(scale.key(values) for scale in outer), {})
        cells.setdefault((y.key(values) if y else (), x.key(values)), []).append(place)
    sheets = []
    for keys, cells in found.items():
        title = tuple((scale.name, scale.labels[key]) for scale, key in zip(outer, keys, strict=True))
        filled = {row for row, _ in cells}
        rows = [row for row in (y.labels if y else [()]) if row in filled]
        sheets.append(Sheet(title, rows, list(x.labels), cells))
    return sheets


def _scales(stage: StageOutline, jobs: Variables) -> list[Scale]:
    files = {name for axis in stage.axes if axis.files for name in axis.names}
    files |= set(registry.get(stage.pipeline).Params.file_fields())
    scales = []
    for axis in stage.axes:
        groups = [axis.names]
        if len(axis.names) > 1:
            several = [name for name in axis.names if len(_keys((name,), jobs)) > 1]
            groups = [(name,) for name in several] if _product(several, jobs) else [tuple(several) or axis.names]
        scales += [Scale(names, _labels(names, _keys(names, jobs), files)) for names in groups]
    return scales


def _key(names: Sequence[str], values: Mapping[str, Any]) -> Key:
    return tuple([shown(values.get(name)) for name in names])


def _keys(names: Sequence[str], jobs: Variables) -> list[Key]:
    return list(dict.fromkeys(_key(names, values) for values in jobs.values()))


def _product(names: Sequence[str], jobs: Variables) -> bool:
    """Whether names that change together do so in every combination, or nearly so."""
    together = len(_keys(names, jobs))
    each = [len(_keys((name,), jobs)) for name in names]
    return bool(names) and max(each) < together and 2 * together >= math.prod(each)


def _labels(names: Sequence[str], keys: Sequence[Key], files: set[str]) -> dict[Key, str]:
    """As read: a file by its bare name, unless another has the same one."""

    def words(key: Key, brief: bool) -> str:
        parts = [PurePosixPath(v).stem if brief and n in files else v for n, v in zip(names, key, strict=True)]
        if len(names) == 1:
            return parts[0]
        return ", ".join(f"{name} {part}" for name, part in zip(names, parts, strict=True) if part)

    brief = [words(key, True) for key in keys]
    often = Counter(brief)
    return {key: label if often[label] == 1 else words(key, False) for key, label in zip(keys, brief, strict=True)}
