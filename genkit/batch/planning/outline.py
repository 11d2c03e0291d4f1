"""What a plan says of its recipe: all that a report or another run needs of it, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from genkit.batch.planning.stages import Stage
from genkit.batch.recipe import Recipe

__all__ = ["AxisOutline", "Outline", "StageOutline"]


@dataclass(frozen=True)
class AxisOutline:
    """One way that several jobs came about. names: of its variables; files: they are names of files."""

    names: tuple[str, ...]
    files: bool = False


@dataclass(frozen=True)
class StageOutline:
    """grid: the names that the report puts at "x", "y" and "z"."""

    name: str
    pipeline: str
    grid: Mapping[str, str] = field(default_factory=dict)
    axes: tuple[AxisOutline, ...] = ()

    @classmethod
    def of(cls, stage: Stage) -> Self:
        axes = (AxisOutline(axis.names, bool(axis.source) or axis.path[-2:-1] == ("files",)) for axis in stage.axes)
        return cls(stage.name, stage.pipeline, dict(stage.grid), tuple(axes))


@dataclass(frozen=True)
class Outline:
    """digest: of the recipe's content, "sha256:..."; dtype: the one stated when the plan was made, which is a part of
    every job's identity."""

    name: str
    description: str = ""
    digest: str = ""
    stages: tuple[StageOutline, ...] = ()
    dtype: str | None = None

    @classmethod
    def of(cls, recipe: Recipe, dtype: str | None = None) -> Self:
        return cls(recipe.name, recipe.description, recipe.digest, tuple(map(StageOutline.of, recipe.stages)), dtype)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """From what `to_json` gave. Raises TypeError or KeyError for anything else."""
        stages = []
        for stage in values["stages"]:
            axes = (AxisOutline(tuple(axis["names"]), axis["files"]) for axis in stage["axes"])
            stages.append(StageOutline(**{**stage, "axes": tuple(axes)}))
        return cls(values["name"], values["description"], values["digest"], tuple(stages), values["dtype"])
