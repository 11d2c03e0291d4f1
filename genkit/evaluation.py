"""What `genkit evaluate NAME` is made from. The engine knows no evaluation; a pipeline names its own.

    class Pipeline(genkit.pipeline.Pipeline):
        evaluations = {"audio": "pipelines.audio_super_resolution.evaluate:AudioEvaluation"}

    class AudioEvaluation(Evaluation):
        class Params(Closed):
            reference: Place = Field(description="The true sounds.")
            estimate: Place = Field(description="The sounds to measure.")

        arguments = ("reference", "estimate")       # without a flag, in this order; a list may stand last

        def run(self, params, progress):
            return Report({"files": 12}, {"distances": [{"measure": "LSD", "value": 1.23}]})

Every other field is a flag. The first line of the module's docstring is the summary that `genkit evaluate --help`
prints; it is read from the source, and the module imports torch only inside functions, so that help comes at once.
"""

from __future__ import annotations

import difflib
import importlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from genkit import registry
from genkit.errors import GenkitError, InputError
from genkit.fields import expanded
from genkit.pipeline import Closed, Progress

__all__ = ["Evaluation", "Place", "Report", "evaluations", "find"]


class _Place:
    """A file or a folder that exists."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(
            self._validate, serialization=core_schema.plain_serializer_function_ser_schema(str, when_used="json")
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "string", "format": "path", "x-genkit": {"kind": "path"}}

    def _validate(self, value: Any, info: ValidationInfo) -> Path:
        if not isinstance(value, str | os.PathLike) or not os.fspath(value) or "\x00" in os.fspath(value):
            raise PydanticCustomError("file", "is not the name of a file or folder")
        path = expanded(value)
        if not os.path.exists(path):  # noqa: PTH110 - Path's raises for a name that is too long
            raise PydanticCustomError("file", "does not exist; check the path")
        return path


Place = Annotated[Path, _Place()]
"""A file, or a folder of them."""


@dataclass
class Report:
    """What an evaluation found."""

    facts: dict[str, Any] = field(default_factory=dict)
    """Numbers about the whole: how many pieces were read."""
    tables: dict[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """By title; a row is a mapping, its columns the same in every row. None where there is no number."""
    details: dict[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """Tables too long to print, such as one row a file: in JSON only."""
    notes: list[str] = field(default_factory=list)
    """What the reader of the numbers must know: files left out, rows left out and why."""

    def record(self) -> dict[str, Any]:
        """Itself as JSON values; what is not a number becomes null."""
        return _finite({"facts": self.facts, **self.tables, **self.details, "notes": self.notes})


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Evaluation:
    """One thing to measure. See the module's docstring."""

    Params: ClassVar[type[Closed]] = Closed
    arguments: ClassVar[Sequence[str]] = ()
    """The fields that are given without a flag, in order."""
    examples: ClassVar[Sequence[str]] = ()
    """Command lines for the end of the help."""

    def run(self, params: Any, progress: Progress) -> Report:
        """Measures. Raises GenkitError, one line, for anything a person can mend."""
        raise NotImplementedError(f"{type(self).__name__} has no run()")


def evaluations() -> dict[str, str]:
    """Every evaluation installed: name -> "module:Class". Pipelines that do not import are left out."""
    found: dict[str, str] = {}
    for pipeline in registry.pipelines():
        try:
            found.update(registry.get(pipeline).evaluations)
        except GenkitError:  # `genkit doctor` tells about it; the others can still be used
            continue
    return dict(sorted(found.items()))


def find(name: str) -> type[Evaluation]:
    """The class behind a name. Raises InputError."""
    known = evaluations()
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known) or 'none'}"
        raise InputError(f"no evaluation is called {name[:80]!r}: {hint}")
    module, _, attribute = known[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
