"""pydantic's validation errors in one line: the field, the value, what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pydantic
from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt

from genkit.fields import Hint

__all__ = ["one_line"]

SHOWN = 60  # characters of a value; a prompt may hold a megabyte

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
    if kind == "extra_forbidden":
        return f"unknown parameter {_shown(loc[-1])}: {_suggest(str(loc[-1]), model.model_fields)}"
    info = model.model_fields.get(str(loc[0])) if loc else None
    if info is None:  # a validator of the whole says everything itself
        return message
    name = str(loc[0]) + "".join(f"[{part}]" for part in loc[1:] if isinstance(part, int))
    if kind == "missing":
        return f"{name} is missing: {info.description or 'give it'}"
    value = f"{name} {_shown(first['input'])}"
    if kind in RANGE:
        return f"{value} is out of range: it must be {_range(info) or message}"
    if kind in ("enum", "literal_error"):
        return f"{value} is not known: {_suggest(str(first['input']), _choices(first['ctx']['expected']))}"
    if kind == "multiple_of":
        return f"{value} is not a multiple of {first['ctx']['multiple_of']}"
    if kind == "string_too_long":
        return f"{value} is too long: {len(first['input'])} characters, of {first['ctx']['max_length']} at most"
    if kind in ("too_short", "too_long"):
        bound = "least" if kind == "too_short" else "most"
        limit = first["ctx"]["min_length" if kind == "too_short" else "max_length"]
        return f"{name} holds {first['ctx']['actual_length']} values: it must hold at {bound} {limit}"
    if kind in PLAIN:
        return f"{value} {PLAIN[kind]}"
    return f"{value} {message}" if kind in OURS else f"{value} is not valid: {message[:1].lower() + message[1:]}"


def _bare(message: str) -> str:
    return message.removeprefix("Value error, ").removeprefix("Assertion failed, ")


def _shown(value: Any) -> str:
    """A value in quotes if it is text, cut to a readable length, with nothing unprintable in it."""
    text = str(value) if isinstance(value, Path) else value
    if isinstance(text, str | bytes | list | tuple):
        text = text[: SHOWN + 1]
    shown = repr(text)
    return shown if len(shown) <= SHOWN + 2 else shown[:SHOWN] + "..." + (shown[0] if shown[0] in "'\"" else "")


def _suggest(word: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(word[:80], names, 1, 0.5)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(names)}"


def _choices(expected: str) -> list[str]:
    """pydantic hands the choices over as prose: "'a', 'b' or 'c'"."""
    return [part.strip().strip("'") for part in expected.replace(" or ", ", ").split(",")]


def _range(info: Any) -> str:
    """The field's whole range with its unit, rather than the one bound that was passed."""
    metadata = list(_metadata((info.annotation, *info.metadata)))
    low = next((f"{m.ge}" if isinstance(m, Ge) else f"over {m.gt}" for m in metadata if isinstance(m, Ge | Gt)), None)
    high = next((f"{m.le}" if isinstance(m, Le) else f"below {m.lt}" for m in metadata if isinstance(m, Le | Lt)), None)
    unit = next((m.unit for m in metadata if isinstance(m, Hint) and m.unit), "")
    if low is None or high is None:
        text = f"at least {low}" if high is None and low is not None else f"at most {high}" if high is not None else ""
    else:
        text = f"{low} to {high}"
    return f"{text} {unit}".strip()


def _metadata(annotations: Iterable[Any]) -> Iterator[Any]:
    """Every piece of metadata in an annotation, however deep, groups taken apart."""
    for annotation in annotations:
        yield from annotation if isinstance(annotation, GroupedMetadata) else (annotation,)
        yield from _metadata((*getattr(annotation, "__args__", ()), *getattr(annotation, "__metadata__", ())))
