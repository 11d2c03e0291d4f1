"""pydantic's validation errors in one line: the field, the value, what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic
from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt

from genkit.fields import Hint

__all__ = ["one_line"]

SHOWN = 60  # characters of a value; a prompt may hold a megabyte
PATH = 200  # characters of a path, which is of no use without its end

PLAIN = {
    "int_parsing": "is not a whole number",
    "int_from_float": "is not a whole number",
    "int_type": "is not a whole number",
    "int_parsing_size": "is not a whole number of a size that anything is made in",
    "float_parsing": "is not a number",
    "float_type": "is not a number",
    "finite_number": "is not a finite number",
    "bool_parsing": "is neither true nor false",
    "bool_type": "is neither true nor false",
    "string_type": "is not a text",
    "list_type": "is not a list",
    "tuple_type": "is not a list",
    "string_unicode": "is not valid Unicode",
}
RANGE = ("greater_than_equal", "greater_than", "less_than_equal", "less_than")
OURS = ("file", "control")  # the messages of genkit.fields, which are sentences already


def one_line(error: pydantic.ValidationError, model: type[pydantic.BaseModel]) -> str:
    """The first complaint of a validation, and how many more there are."""
    first = error.errors(include_url=False)[0]
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return _complaint(first, model) + more


def _complaint(first: Any, model: type[pydantic.BaseModel]) -> str:
    kind, loc, message = first["type"], first["loc"], _bare(first["msg"])
    model, info, name = _place(model, loc)
    if kind == "extra_forbidden":
        known = [*model.model_fields, *getattr(model, "aliases", ())]
        return f"unknown parameter {_shown(loc[-1])}: {_suggest(str(loc[-1]), known)}"
    if info is None:  # a validator of the whole says everything itself
        return message
    if kind == "missing":
        return f"{name} is missing: {info.description or 'give it'}"
    value = f"{name} {_shown(first['input'], PATH if kind == 'file' else SHOWN)}"
    bounds = _Bounds.of(info)
    if kind in RANGE or (kind == "multiple_of" and not bounds.hold(float(first["input"]))):
        return f"{value} is out of range: it must be {bounds}"
    if kind in ("enum", "literal_error"):
        return f"{value} is not known: {_suggest(str(first['input']), _choices(first['ctx']['expected']))}"
    if kind == "multiple_of":
        step = first["ctx"]["multiple_of"]
        below = int(float(first["input"]) // step) * step
        return f"{value} is not a multiple of {step}: {below} and {below + step} are"
    if kind == "string_too_long":
        return f"{value} is too long: {len(first['input'])} characters, of {first['ctx']['max_length']} at most"
    if kind in ("too_short", "too_long"):
        bound = "least" if kind == "too_short" else "most"
        limit = first["ctx"]["min_length" if kind == "too_short" else "max_length"]
        return f"{name} holds {first['ctx']['actual_length']} values: it must hold at {bound} {limit}"
    if kind in PLAIN:
        return f"{value} {PLAIN[kind]}"
    return f"{value} {message}" if kind in OURS else f"{value} is not valid: {message[:1].lower() + message[1:]}"


def _place(model: type[pydantic.BaseModel], loc: Sequence[str | int]) -> tuple[type[pydantic.BaseModel], Any, str]:
    """The object that a place among values lies in, its field there, and its name: `control[0].weight`."""
    info, name, inner = None, "", model
    for part in loc:
        if isinstance(part, int):
            name += f"[{part}]"
        elif part in inner.model_fields:
            model, info = inner, inner.model_fields[part]
            name += f".{part}" if name else part
            inner = next(_objects((info.annotation,)), pydantic.BaseModel)
        elif part == loc[-1] and inner.model_fields:  # unknown to the innermost object
            model = inner
    return model, info, name


def _objects(annotations: Iterable[Any]) -> Iterator[type[pydantic.BaseModel]]:
    """The objects that an annotation speaks of, however deep."""
    for annotation in annotations:
        if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
            yield annotation
        yield from _objects(getattr(annotation, "__args__", ()))


def _bare(message: str) -> str:
    return message.removeprefix("Value error, ").removeprefix("Assertion failed, ")


def _shown(value: Any, limit: int = SHOWN) -> str:
    """A value as Python writes it, nothing unprintable in it, cut in the middle to a readable length."""
    value = str(value) if isinstance(value, Path) else value
    if isinstance(value, str | bytes | list | tuple) and len(value) > limit:
        half = limit // 2
        return f"{value[:half]!r}...{value[-half:]!r}"[: 4 * limit]
    shown = repr(value)
    return shown if len(shown) <= 4 * limit else shown[:limit] + "..."


def _suggest(word: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(word[:80], names, 1, 0.5)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(names)}"


def _choices(expected: str) -> list[str]:
    """pydantic hands the choices over as prose: "'a', 'b' or 'c'"."""
    return [part.strip().strip("'") for part in expected.replace(" or ", ", ").split(",")]


@dataclass(frozen=True)
class _Bounds:
    """A field's whole range, rather than the one bound that was passed."""

    low: float | None
    high: float | None
    above: bool  # the low end itself is out
    below: bool  # the high end itself is out
    unit: str

    @classmethod
    def of(cls, info: Any) -> _Bounds:
        low: Any = None
        high: Any = None
        above = below = False
        unit = ""
        for m in _metadata((info.annotation, *info.metadata)):
            low, above = (m.ge, False) if isinstance(m, Ge) else (m.gt, True) if isinstance(m, Gt) else (low, above)
            high, below = (m.le, False) if isinstance(m, Le) else (m.lt, True) if isinstance(m, Lt) else (high, below)
            unit = m.unit or unit if isinstance(m, Hint) else unit
        return cls(low, high, above, below, unit)

    def hold(self, number: float) -> bool:
        low = self.low is None or number > self.low or (number == self.low and not self.above)
        return low and (self.high is None or number < self.high or (number == self.high and not self.below))

    def __str__(self) -> str:
        low = f"over {self.low}" if self.above else f"{self.low}"
        high = f"below {self.high}" if self.below else f"{self.high}"
        if self.low is not None and self.high is not None:
            text = f"{low} to {high}"
        elif self.low is not None:
            text = low if self.above else f"{low} or more"
        else:
            text = high if self.below else f"{high} or less"
        return f"{text} {self.unit}".strip()


def _metadata(annotations: Iterable[Any]) -> Iterator[Any]:
    """Every piece of metadata in an annotation, however deep, groups taken apart."""
    for annotation in annotations:
        yield from annotation if isinstance(annotation, GroupedMetadata) else (annotation,)
        yield from _metadata((*getattr(annotation, "__args__", ()), *getattr(annotation, "__metadata__", ())))
