"""What a plan consists of: plain data that can be pickled to a worker, or written as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from genkit.batch.planning.template import shown

__all__ = ["Job", "Made", "Take"]


@dataclass(frozen=True, slots=True)
class Take:
    """An input that an earlier job makes: the `number`-th file of the job with that id and output; what it is rendered
    to counts on after its outputs."""

    output: str
    job: str
    number: int = 1


@dataclass(frozen=True, slots=True)
class Job:
    """One item to make.

    id: SHA-256 of its content, see `genkit.batch.plan`; index: from 1, within its stage; params: as the pipeline's
    `Params.parse` takes them, seed set, files by absolute path; output: relative to the output folder, with "/";
    inputs: digests by file field; takes: file fields that an earlier stage fills (`params` holds a placeholder);
    variables: what the recipe made it from, for labels; renders: what its piece is rendered to, named as `output` is;
    soundfont: of the sound, by absolute path, None for the default; soundfont_digest: of either.

    replaces: names in the output folder that hold an older version of it and may be written over; reserved: other jobs'
    names that its own several files (`-1`, `-2`, ...) could come to. Both are known when the job is handed out, and no
    part of the plan.
    """

    id: str
    stage: str
    index: int
    pipeline: str
    model: str | None
    params: dict[str, Any]
    output: str
    inputs: dict[str, str] = field(default_factory=dict)
    takes: dict[str, Take] = field(default_factory=dict)
    variables: dict[str, Any] = field(default_factory=dict)
    renders: tuple[str, ...] = ()
    soundfont: str | None = None
    soundfont_digest: str | None = None
    replaces: tuple[str, ...] = ()
    reserved: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that it takes in the output folder."""
        return (self.output, *self.renders)

    @property
    def label(self) -> str:
        """ "fox, blob, 3": what tells it from its neighbours."""
        return ", ".join(shown(value) for value in self.variables.values())

    def to_json(self) -> dict[str, Any]:
        """As JSON values, without what is empty."""
        values = {name: value for name in _PLANNED if (value := getattr(self, name))}
        if self.takes:
            values["takes"] = {name: asdict(take) for name, take in self.takes.items()}
        return values

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """From what `to_json` gave. Raises TypeError, KeyError or ValueError for anything else."""
        given = {"model": None, "params": {}, **values}
        if "takes" in given:
            given["takes"] = {name: Take(**take) for name, take in given["takes"].items()}
        given["renders"] = tuple(given.get("renders", ()))
        return cls(**given)


_PLANNED = tuple(one.name for one in fields(Job) if one.name not in ("replaces", "reserved"))


@dataclass(frozen=True, slots=True)
class Made:
    """A planned job as later stages see it. variables: what its output template could name."""

    id: str
    output: str
    variables: Mapping[str, Any]
