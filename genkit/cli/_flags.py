"""Params -> flags: what the JSON Schema says of a field, as a click option that teaches.

Values are handed to pydantic as they were typed, so that a mistake reads the same here, in a recipe and on the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from genkit.pipeline import Closed

__all__ = ["Option", "given", "options"]

METAVARS = {"integer": "N", "number": "X", "string": "TEXT", "object": "JSON"}
KINDS = {"image": "PICTURE", "audio": "SOUND", "midi": "MIDI", "model": "MODEL", "seed": "SEED", "path": "PATH"}
PREFIX = "param_"  # keeps a parameter's name apart from the common flags'


class Option(click.Option):
    """An option that knows its section of the help."""

    def __init__(self, *args: Any, section: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class _Word(click.Choice):
    """A choice that shell and help know of, and pydantic checks."""

    def __init__(self, choices: list[Any]) -> None:
        super().__init__([str(choice) for choice in choices])
        self.values = {str(choice): choice for choice in choices}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return self.values.get(value, value)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "|".join(self.values)


@dataclass(frozen=True)
class _Field:
    """One property of the schema, with references and "or null" taken off."""

    name: str
    schema: Mapping[str, Any]
    required: bool

    @property
    def hint(self) -> Mapping[str, Any]:
        return {**self.schema.get("items", {}).get("x-genkit", {}), **self.schema.get("x-genkit", {})}

    @property
    def repeated(self) -> bool:
        return self.schema.get("type") == "array"

    @property
    def element(self) -> Mapping[str, Any]:
        return self.schema.get("items", {}) if self.repeated else self.schema


def options(params: type[Closed], taken: set[str]) -> list[click.Option]:
    """An option for each field. taken: flags in use already, which a field's short alias gives way to."""
    flags: list[click.Option] = []
    for field in _fields(params):
        short = f"-{field.hint['short']}" if field.hint.get("short") else ""
        names = [short] if short and short not in taken else []
        taken = taken | set(names)
        also = [alias for alias, own in getattr(params, "aliases", {}).items() if own == field.name]
        option = _option(field, names, also)
        flags += [option, *(_alias(alias, option) for alias in also)]
    return flags


def given(params: type[Closed], values: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters among click's values that were typed."""
    typed = {name: values[PREFIX + name] for name in (*params.model_fields, *getattr(params, "aliases", ()))}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in typed.items() if v is not None and v != ()}


def _alias(name: str, of: Option) -> Option:
    """The same option by another name. Help tells of it at its own; `Params.parse` minds if both are given."""
    return Option([PREFIX + name, _flag(name)], type=of.type, multiple=of.multiple, default=None, hidden=True)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _option(field: _Field, names: list[str], also: Sequence[str]) -> Option:
    flag = _flag(field.name)
    settings: dict[str, Any] = {"help": _help(field, also), "section": field.hint.get("section", ""), "default": None}
    if field.element.get("type") == "boolean" and not field.repeated:
        return Option([PREFIX + field.name, f"{flag}/--no-{flag[2:]}", *names], **settings)
    choices = field.element.get("enum") or ([field.element["const"]] if "const" in field.element else None)
    if choices:
        settings["type"] = _Word(choices)
    else:
        settings["type"] = click.STRING
        settings["metavar"] = KINDS.get(
            field.hint.get("kind", ""), METAVARS.get(field.element.get("type", ""), "VALUE")
        )
    return Option([PREFIX + field.name, flag, *names], multiple=field.repeated, **settings)


def _help(field: _Field, also: Sequence[str]) -> str:
    """The description, then bounds with their unit, the default, whether it may be given again, and its other names."""
    facts = [fact for fact in (_bounds(field), _default(field)) if fact]
    if field.repeated:
        facts.append("may be repeated")
    facts += [f"also {', '.join(map(_flag, also))}"] if also else []
    description = field.schema.get("description", "")
    return f"{description} [{'; '.join(facts)}]".strip() if facts else description


def _bounds(field: _Field) -> str:
    element, unit = field.element, field.hint.get("unit", "")
    low = element.get("minimum", element.get("exclusiveMinimum"))
    high = element.get("maximum", element.get("exclusiveMaximum"))
    if field.hint.get("kind") == "seed":
        return ""
    low_sign = "over " if "exclusiveMinimum" in element else ""
    high_sign = "below " if "exclusiveMaximum" in element else ""
    if low is not None and high is not None:
        text = f"{low_sign}{low} to {high_sign}{high}"
    elif low is not None:
        text = f"{low_sign or 'from '}{low}"
    elif high is not None:
        text = f"{high_sign or 'up to '}{high}"
    else:
        text = ""
    text = f"{text} {unit}".strip()
    return f"{text}, a multiple of {element['multipleOf']}" if "multipleOf" in element else text


def _default(field: _Field) -> str:
    if field.required:
        return "required"
    value = field.schema.get("default")
    if value in (None, "", []):
        return ""
    if isinstance(value, bool):
        return f"default: {'on' if value else 'off'}"
    return f"default: {' '.join(map(str, value)) if isinstance(value, list) else value}"


def _fields(params: type[Closed]) -> list[_Field]:
    """Every field, the seed behind those of the pipeline's own."""
    schema = params.model_json_schema()
    required = set(schema.get("required", ()))
    fields = [
        _Field(name, _flat(schema["properties"][name], schema.get("$defs", {})), name in required)
        for name in params.model_fields
    ]
    return sorted(fields, key=lambda field: field.name == "seed")


def _flat(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """A schema with its `$ref` followed and the one alternative beside null taken in."""
    flat = {key: value for key, value in schema.items() if key not in ("$ref", "anyOf", "allOf", "oneOf")}
    parts = [definitions[schema["$ref"].rpartition("/")[2]]] if "$ref" in schema else []
    parts += schema.get("allOf", [])
    alternatives = [part for part in schema.get("anyOf", []) if part.get("type") != "null"]
    parts += alternatives if len(alternatives) == 1 else []
    for part in parts:
        inner = _flat(part, definitions)
        hint = {**inner.get("x-genkit", {}), **flat.get("x-genkit", {})}
        flat = {**inner, **flat, **({"x-genkit": hint} if hint else {})}
    if "items" in flat:
        flat["items"] = _flat(flat["items"], definitions)
    return flat
