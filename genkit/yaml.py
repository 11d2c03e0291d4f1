"""YAML as recipes need it: YAML 1.2's plain scalars, every value with its place, and none of YAML's traps.

PyYAML scans and parses; composing and resolving is done here, because `safe_load` accepts duplicate keys, reads `no` as
False and `12:30:45` as 45045, leaves `1e3` a string, expands alias bombs and overflows the stack on deep nesting.

    document = genkit.yaml.read("recipe.yaml")
    document.value                       # dicts, lists, str, int, float, bool, None; keys are text as written
    document.where(("params", "size"))   # "recipe.yaml:7:9"
    document.assign("params.size=512")   # what `--set` does

Refused, with file, line and column: aliases and anchors, tags, duplicate keys, several documents, more than `MAX_BYTES`
bytes, `MAX_NODES` values or `MAX_DEPTH` levels. Errors are `genkit.errors.RecipeError`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from genkit.errors import RecipeError

__all__ = ["MAX_BYTES", "MAX_DEPTH", "MAX_NODES", "Document", "parse", "read", "scalar", "whole"]

MAX_BYTES = 4 << 20
MAX_NODES = 100_000
MAX_DEPTH = 32
MAX_DIGITS = 3000
"""Of a number: Python itself writes none of more than 4,300."""

# The core schema of YAML 1.2.2, section 10.3.2.
_CONSTANTS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_HALF = re.compile("[\ud800-\udfff]")

Key = str | int
Place = tuple[int, int] | str
"""Line and column, both from 1, or words ("--set seed=4")."""


@dataclass
class Document:
    """A parsed file and where each of its values stands."""

    value: Any
    name: str = ""
    """The file as shown in errors."""
    places: dict[tuple[Key, ...], Place] = field(default_factory=dict)

    def where(self, path: Sequence[Any] = ()) -> str:
        """ "file:line:column" of a value, or of the nearest thing around it that the file holds.

        Steps that the file does not know (the branch names of a pydantic union) are passed over.
        """
        known: tuple[Key, ...] = ()
        for step in path:
            if (*known, step) in self.places:
                known = (*known, step)
        place = self.places.get(known, (1, 1))
        return place if isinstance(place, str) else f"{self.name}:{place[0]}:{place[1]}"

    def error(self, message: str, path: Sequence[Any] = ()) -> RecipeError:
        """The error to raise about a value."""
        return RecipeError(message, where=self.where(path))

    def assign(self, text: str) -> tuple[Key, ...]:
        """Sets one value from "a.b.0=VALUE", VALUE read as YAML. Returns the path. Raises RecipeError."""
        where = f"--set {text[:80]}"
        dotted, equals, value = text.partition("=")
        if not equals or not all(dotted.split(".")):
            raise RecipeError("give it as key=value, with dots between levels (task.data=photos)", where=where)
        path: list[Key] = []
        target = self.value
        *steps, last = dotted.split(".")
        for step in steps:
            key = _step(target, step, where)
            path.append(key)
            if isinstance(target, dict) and target.get(step) is None:
                target[step] = {}
                self.places[tuple(path)] = where
            target = target[key]
        key = _step(target, last, where)
        target[key] = parse(value, where=where).value
        path.append(key)
        self.places = {k: v for k, v in self.places.items() if k[: len(path)] != tuple(path)}
        self.places[tuple(path)] = where
        return tuple(path)


def _step(target: Any, step: str, where: str) -> Key:
    if isinstance(target, dict):
        return step
    if isinstance(target, list):
        if step.isdecimal() and len(step) < 9 and int(step) < len(target):
            return int(step)
        raise RecipeError(f"{step!r} is not one of the list's {len(target)} places, counted from 0", where=where)
    raise RecipeError(f"{step!r} has no place to go: what stands above it is a single value", where=where)


def read(path: str | Path, *, name: str | None = None) -> Document:
    """Reads a file. `name` is how errors call it (default: the path as given). Raises RecipeError."""
    shown = name or str(path)
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = (
            "does not exist; check the path"
            if isinstance(error, FileNotFoundError)
            else f"cannot be read: {error.strerror}"
        )
        raise RecipeError(reason, where=shown) from None
    return parse(data, name=shown)


def parse(text: str | bytes, *, name: str = "recipe", where: str = "") -> Document:
    """Parses one document. `where`, if given, replaces file, line and column in errors. Raises RecipeError."""
    composer = _Composer(name, where)
    return composer.document(_decoded(text, where or name))


def scalar(text: str) -> Any:
    """A plain scalar's value: null, a boolean, an integer, a float, else the text itself.

    Raises ValueError for a number of more than MAX_DIGITS, and for one that is beyond the largest float.
    """
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if text[:1] not in "-+.0123456789":
        return text
    for pattern, base in ((_INTEGER, 10), (_OCTAL, 8), (_HEXADECIMAL, 16)):
        if pattern.fullmatch(text):
            if len(text) > MAX_DIGITS:
                raise ValueError(f"a number of more than {MAX_DIGITS:,} digits")
            return int(text, base)
    if _FLOAT.fullmatch(text):
        if math.isinf(value := float(text)):
            raise ValueError("a number beyond 1.8e308, the largest there is")
        return value
    if special := _SPECIAL.fullmatch(text):
        return float("nan") if special[3] else float(f"{special[1]}inf")
    return text


def whole(text: str) -> str:
    """The text with characters joined that escapes gave in two halves, as JSON writes them ("\\ud83e\\udd8a", a fox).

    Raises ValueError for a half that is alone: no file and no record can hold it.
    """
    half = _HALF.search(text)
    if half is None:
        return text
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise ValueError(f"holds half a character (U+{ord(half[0]):04X}); write the character itself") from None


def _decoded(text: str | bytes, where: str) -> str:
    if len(text) > MAX_BYTES:
        raise RecipeError(
            f"is larger than {MAX_BYTES >> 20} MiB; move long lists into a CSV or JSONL file", where=where
        )
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            before = error.object[: error.start]
            line, column = before.count(b"\n") + 1, len(before) - before.rfind(b"\n")
            raise RecipeError("is not UTF-8 text; save it as UTF-8", where=f"{where}:{line}:{column}") from None
    return text.removeprefix("\ufeff")


class _Composer:
    """Builds values from PyYAML's stream of events, one level of Python recursion per level of nesting."""

    def __init__(self, name: str, where: str) -> None:
        self.name, self.fixed = name, where
        self.places: dict[tuple[Key, ...], Place] = {}
        self.nodes = 0

    def document(self, text: str) -> Document:
        loader = None
        try:
            loader = yaml.SafeLoader(text)
            value = self._stream(iter(loader.get_event, None))
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise self._error(
                " ".join(filter(None, (error.context, error.problem))) + "; check the YAML", mark
            ) from None
        except yaml.YAMLError as error:  # a character that YAML forbids
            position = getattr(error, "position", 0)
            line, column = text.count("\n", 0, position) + 1, position - text.rfind("\n", 0, position)
            code = getattr(error, "character", 0)
            message = f"holds the character U+{code if isinstance(code, int) else 0:04X}, which YAML forbids; remove it"
            raise RecipeError(message, where=self.fixed or f"{self.name}:{line}:{column}") from None
        except ValueError:  # the parser counts on numbers and characters to exist
            mark = loader.get_mark() if loader else None
            raise self._error("an escape that stands for no character, or a version that is none", mark) from None
        return Document(value, self.name, self.places)

    def _stream(self, events: Iterator[Any]) -> Any:
        value: Any = None
        documents = 0
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self._error("a second document begins; keep one to a file", event.start_mark)
                value = self._node(next(events), events, (), 0)
        return value

    def _node(self, event: Any, events: Iterator[Any], path: tuple[Key, ...], depth: int) -> Any:
        self.nodes += 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise self._error("anchors and aliases (& and *) are not allowed; write the value out", event.start_mark)
        if event.tag:
            raise self._error(f"the tag {event.tag[:60]} is not allowed; remove it", event.start_mark)
        if depth > MAX_DEPTH:
            raise self._error(f"is nested deeper than {MAX_DEPTH} levels", event.start_mark)
        if self.nodes > MAX_NODES:
            raise self._error(f"holds more than {MAX_NODES} values; move long lists to a CSV file", event.start_mark)
        self.places.setdefault(path, self._place(event.start_mark))
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(events, path, depth)
        return self._mapping(events, path, depth)

    def _scalar(self, event: Any) -> Any:
        if event.style is not None:  # quoted or a block: text, whatever it looks like
            return self._text(event)
        try:
            return scalar(event.value)
        except ValueError as error:
            raise self._error(str(error), event.start_mark) from None

    def _text(self, event: Any) -> str:
        try:
            return whole(event.value)
        except ValueError as error:
            raise self._error(str(error), event.start_mark) from None

    def _sequence(self, events: Iterator[Any], path: tuple[Key, ...], depth: int) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            items.append(self._node(event, events, (*path, len(items)), depth + 1))
        return items

    def _mapping(self, events: Iterator[Any], path: tuple[Key, ...], depth: int) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent) or event.anchor or event.tag:
                raise self._error("a key must be plain text", event.start_mark)
            key = self._text(event)
            if key in mapping:
                raise self._error(f"the key {key[:60]!r} stands here a second time", event.start_mark)
            # A key's place is its own, not its value's: that is where an unknown or wrong field is looked for.
            self.places[*path, key] = self._place(event.start_mark)
            mapping[key] = self._node(next(events), events, (*path, key), depth + 1)
        return mapping

    def _place(self, mark: Any) -> Place:
        return self.fixed or (mark.line + 1, mark.column + 1)

    def _error(self, message: str, mark: Any) -> RecipeError:
        where = self.fixed or (f"{self.name}:{mark.line + 1}:{mark.column + 1}" if mark else self.name)
        return RecipeError(message, where=where)
