"""Templates: "{animal}, {look} style", filled from a job's variables.

Only names are looked up: no attributes, no calls, no indexing (Python's own `str.format` would give all three to
whoever wrote the recipe). `{{` and `}}` stand for braces; a number may be given a width and decimals: `{seed:04d}`,
`{index:03}`, `{strength:.2f}`. A template that is nothing but one name keeps the value's type.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any

__all__ = ["TemplateError", "fill", "names", "shown", "suggest"]

NAME = re.compile(r"[A-Za-z_][\w-]*(?:\.[A-Za-z_][\w-]*)?")
_SPEC = re.compile(r"(0?[1-9][0-9]?)?(\.[0-9])?[dfg]?")
_PART = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")

MAX_KNOWN = 1000
"""Names that a mistyped one is compared with: each takes a while."""

Part = str | tuple[str, str]
"""Literal text, or (name, format specification)."""


class TemplateError(ValueError):
    """One line; the caller knows where the template stands."""


@lru_cache(maxsize=4096)
def _parts(template: str) -> tuple[Part, ...]:
    parts: list[Part] = []
    start = 0
    for match in _PART.finditer(template):
        parts.append(template[start : match.start()])
        start = match.end()
        if match[0] in ("{{", "}}"):
            parts.append(match[0][0])
        elif match[1] is None:
            raise TemplateError(f"a lone {match[0]!r}; a brace that is meant as such is doubled ({match[0] * 2})")
        else:
            parts.append(_reference(match[1]))
    parts.append(template[start:])
    return tuple(part for part in parts if part)


def _reference(inside: str) -> tuple[str, str]:
    if "|" in inside:
        raise TemplateError(f"{{{inside[:60]}}} is a choice; say which are made: choices: all, or choices: random")
    name, _, spec = inside.strip().partition(":")
    if not NAME.fullmatch(name):
        raise TemplateError(
            f"{{{inside[:60]}}} is no variable (letters, digits, _ and -); a brace meant as such is doubled"
        )
    if not _SPEC.fullmatch(spec):
        raise TemplateError(f"{{{inside[:60]}}}: {spec!r} is no number format; 03, 04d and .2f are")
    return name, spec


def names(value: Any) -> Iterator[str]:
    """The variables that a template names; lists and mappings are searched through. Raises TemplateError."""
    if isinstance(value, str):
        yield from (part[0] for part in _parts(value) if isinstance(part, tuple))
    elif isinstance(value, list):
        for item in value:
            yield from names(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from names(item)


def fill(value: Any, variables: Mapping[str, Any]) -> Any:
    """The value with every template in it filled. Raises TemplateError for a name that is not there."""
    if isinstance(value, list):
        return [fill(item, variables) for item in value]
    if isinstance(value, dict):
        return {key: fill(item, variables) for key, item in value.items()}
    if not isinstance(value, str) or ("{" not in value and "}" not in value):
        return value
    parts = _parts(value)
    if len(parts) == 1 and isinstance(parts[0], tuple) and not parts[0][1]:
        return _look_up(parts[0][0], variables)
    return "".join(part if isinstance(part, str) else _formatted(part, variables) for part in parts)


def _look_up(name: str, variables: Mapping[str, Any]) -> Any:
    try:
        return variables[name]
    except KeyError:
        raise TemplateError(f"no variable is called {name!r}: {suggest(name, variables)}") from None


def _formatted(part: tuple[str, str], variables: Mapping[str, Any]) -> str:
    name, spec = part
    value = _look_up(name, variables)
    if not spec:
        return shown(value)
    try:
        number = value if isinstance(value, int | float) else float(value) if "." in str(value) else int(value)
        return format(int(number) if spec[-1] == "d" else number, spec)
    except (TypeError, ValueError, OverflowError):
        raise TemplateError(f"{{{name}:{spec}}} formats a number, and {name} is {shown(value)[:40]!r}") from None


def shown(value: Any) -> str:
    """A value as it stands inside a text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    return str(value)


def suggest(name: str, known: Iterable[str]) -> str:
    """ "did you mean 'x'?", or what there is."""
    known = list(islice(known, MAX_KNOWN))
    close = difflib.get_close_matches(name[:200], known, 1, 0.6)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known[:20]) or 'none'}"
