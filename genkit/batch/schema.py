"""The JSON Schema of recipes, made from the forms and from the `Params` of every pipeline installed.

Draft 7, which is what the YAML language server behind most editors is sure to know. The parameters depend on the
pipeline through `if`/`then` rather than `oneOf`: an editor then completes only what fits, and complains about the wrong
parameter instead of about no branch fitting. Wherever a value may be a template, a text with a {name} in it fits too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from genkit import registry
from genkit.batch.planning.forms import RecipeForm, StageForm
from genkit.errors import GenkitError
from genkit.media import rendering
from genkit.pipeline import Pipeline

__all__ = ["recipe_schema"]

TEMPLATE = {"type": "string", "pattern": r"\{[A-Za-z_][^{}]*\}"}
_TEXTS = {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
_STAGE = {
    "type": "object",
    "properties": {"stage": {"type": "string"}, "take": {"type": ["integer", "string"], "minimum": 1}},
    "required": ["stage"],
    "additionalProperties": False,
}


def _renders(of: str) -> dict[str, Any]:
    one = {"type": "string", "pattern": rf"^(.*\.)?({'|'.join(suffix[1:] for suffix in rendering.SUFFIXES[of])})$"}
    return {"oneOf": [one, {"type": "array", "items": one, "minItems": 1, "uniqueItems": True}]}


_VARIABLE = {"pattern": "^[A-Za-z_][A-Za-z0-9_-]*$"}


def recipe_schema() -> dict[str, Any]:
    """The schema, closed: what it does not know is not a recipe."""
    kinds = dict(_pipelines())
    head, stage = _form(RecipeForm), _form(StageForm)
    stage["pipeline"] = {"enum": list(kinds), "description": stage["pipeline"]["description"]}
    stage |= _loose(stage)
    choices = [_choice(name, kind) for name, kind in kinds.items()]
    one = {
        "properties": {**stage, **{key: value for key, value in head.items() if key != "stages"}},
        "required": ["pipeline"],
        "additionalProperties": False,
        "allOf": choices,
    }
    item = {
        "type": "object",
        "properties": stage,
        "required": ["pipeline"],
        "additionalProperties": False,
        "allOf": choices,
    }
    many = {
        "properties": {
            **head,
            "stages": {"type": "array", "minItems": 1, "items": item, "description": head["stages"]["description"]},
        },
        "required": ["stages"],
        "additionalProperties": False,
    }
    training = _training()
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "genkit recipe",
        "type": "object",
        "if": {"required": ["train"]},
        "then": training,
        "else": {"if": {"required": ["stages"]}, "then": many, "else": one},
        "definitions": {**training.pop("definitions", {}), **_definitions(kinds)},
    }


def _pipelines() -> Iterable[tuple[str, type[Pipeline]]]:
    for name in registry.pipelines():
        try:
            yield name, registry.get(name)
        except GenkitError:  # `genkit doctor` tells about it; the schema serves the others
            continue


def _form(form: Any) -> dict[str, Any]:
    return _draft7(form.model_json_schema())["properties"]


def _loose(stage: dict[str, Any]) -> dict[str, Any]:
    """The fields that a validator of ours reads, which pydantic cannot describe."""
    row = {"type": "object", "minProperties": 1}
    rows = {"oneOf": [{"type": "string"}, {"type": "array", "items": row, "minItems": 1}]}
    files = {
        "type": "object",
        "propertyNames": _VARIABLE,
        "additionalProperties": {"oneOf": [*_TEXTS["oneOf"], _STAGE]},
    }
    return {
        "rows": {**rows, "description": stage["rows"]["description"]},
        "files": {**files, "description": stage["files"]["description"]},
        "render": {**_renders("midi"), "description": stage["render"]["description"]},
        **{key: {**stage[key], "propertyNames": _VARIABLE} for key in ("matrix", "zip")},
    }


def _choice(name: str, kind: type[Pipeline]) -> dict[str, Any]:
    """If the pipeline is this one, then its parameters, and lists of their values."""
    reference = f"#/definitions/{name}"
    fields = [*kind.Params.model_fields, *kind.Params.aliases]
    lists = {
        "properties": {
            field: {"type": "array", "items": {"$ref": f"{reference}/properties/{field}"}} for field in fields
        }
    }
    rows = {"properties": {field: {"$ref": f"{reference}/properties/{field}"} for field in fields}}
    then: dict[str, Any] = {"params": {"$ref": reference}, "matrix": lists, "zip": lists}
    then |= {"include": {"items": rows}, "rows": {"items": rows}}
    if kind.produces != "midi":  # only pieces of music are played with a soundfont
        then |= {
            "render": _renders(kind.produces) if kind.produces in rendering.SUFFIXES else False,
            "soundfont": False,
        }
    if kind.models:
        then["model"] = {"anyOf": [{"enum": list(kind.models)}, {"type": "string"}]}
    return {"if": {"properties": {"pipeline": {"const": name}}}, "then": {"properties": then}}


def _definitions(kinds: dict[str, type[Pipeline]]) -> dict[str, Any]:
    definitions: dict[str, Any] = {}
    for name, kind in kinds.items():
        schema = _draft7(kind.Params.model_json_schema(), prefix=f"{name}.")
        definitions |= schema.pop("definitions", {})
        # A parameter may come from `matrix` or a table instead, so none is required here.
        definitions[name] = {
            "type": "object",
            "description": (kind.__doc__ or "").strip().split("\n")[0],
            "properties": {
                **{key: _templated(value) for key, value in schema["properties"].items()},
                **{alias: _same_as(name, own) for alias, own in kind.Params.aliases.items()},
            },
            "additionalProperties": False,
        }
    return definitions


def _same_as(name: str, own: str) -> dict[str, Any]:
    """A parameter by another name."""
    return {"description": f"Another name for {own}.", "allOf": [{"$ref": f"#/definitions/{name}/properties/{own}"}]}


def _templated(value: dict[str, Any]) -> dict[str, Any]:
    """Also takes a template, unless any text will do."""
    outside: dict[str, Any] = {
        key: value[key] for key in ("description", "default", "title", "x-genkit") if key in value
    }
    inside = {key: item for key, item in value.items() if key not in outside}
    if inside.get("type") == "string" and not {"enum", "pattern"} & set(inside):
        return value
    options = [_items(option) for option in (inside["anyOf"] if set(inside) == {"anyOf"} else [inside])]
    # The planner puts one file into a list for a parameter that takes several.
    files = any(_holds_files(option) for option in options)
    return {**outside, "anyOf": [*options, {"type": "string"} if files else TEMPLATE]}


def _items(option: dict[str, Any]) -> dict[str, Any]:
    return {**option, "items": _templated(option["items"])} if isinstance(option.get("items"), dict) else option


def _holds_files(option: dict[str, Any]) -> bool:
    return option.get("type") == "array" and option.get("items", {}).get("format") == "path"


def _training() -> dict[str, Any]:
    from genkit.training.recipe import TrainRecipe

    schema = _draft7(TrainRecipe.model_json_schema(), prefix="train.")
    schema.pop("title", None)
    return schema


def _draft7(value: Any, prefix: str = "") -> Any:
    """pydantic's 2020-12 in the words of draft 7, where a `$ref` also hides whatever stands beside it."""
    if isinstance(value, list):
        return [_draft7(item, prefix) for item in value]
    if not isinstance(value, dict):
        return value
    found: dict[str, Any] = {}
    for key, item in value.items():
        if key == "$defs":
            found["definitions"] = {prefix + name: _draft7(inner, prefix) for name, inner in item.items()}
        elif key == "$ref":
            found["$ref"] = item.replace("#/$defs/", "#/definitions/" + prefix)
        elif key == "prefixItems":
            found["items"] = _draft7(item, prefix)
        elif key == "properties":  # names, which may be any word, `$ref` included
            found[key] = {name: _draft7(inner, prefix) for name, inner in item.items()}
        elif key in ("default", "examples", "const", "enum", "x-genkit"):
            found[key] = item
        else:
            found[key] = _draft7(item, prefix)
    if "$ref" in found and len(found) > 1:
        found["allOf"] = [{"$ref": found.pop("$ref")}]
    return found
