"""What a recipe's stage is once it is read: its values and the factors that its jobs are the product of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genkit import registry
from genkit.batch.planning.choices import Choices
from genkit.batch.planning.forms import From
from genkit.pipeline import Pipeline

__all__ = ["Axis", "Stage", "format_of"]


def format_of(render: str) -> str:
    """The format of an entry of `render`, a format itself or the template of a name: "wav" of "sound/{stem}.wav"."""
    return render.rpartition(".")[2].lower()


@dataclass(frozen=True)
class Axis:
    """One factor of the product: a list of assignments, or the jobs of an earlier stage.

    path: where it stands in the file; literal: templates in its values are filled (what comes from tables and folders
    is data and left alone).
    """

    key: str
    path: tuple[str | int, ...]
    values: Sequence[Mapping[str, Any]] = ()
    source: From | None = None
    literal: bool = True
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    """One stage, its tables and folders read. render: what a piece is rendered to, each a format or a template of a
    name; soundfont: by absolute path; grid: the names that the report puts at "x", "y" and "z"; choices:
    what draws those of its texts, None if they are written out."""

    name: str
    pipeline: str
    model: str | None
    params: Mapping[str, Any]
    axes: tuple[Axis, ...]
    include: Sequence[Mapping[str, Any]]
    exclude: Sequence[Mapping[str, Any]]
    output: str | None
    render: tuple[str, ...] = ()
    soundfont: Path | None = None
    grid: Mapping[str, str] = field(default_factory=dict)
    choices: Choices | None = None
    path: tuple[str | int, ...] = ()

    @property
    def kind(self) -> type[Pipeline]:
        return registry.get(self.pipeline)

    @property
    def variables(self) -> frozenset[str]:
        """Every name that an axis or `include` sets."""
        return frozenset().union(*(axis.names for axis in self.axes), *self.include)
