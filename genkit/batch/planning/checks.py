"""Whether a stage's names add up: each set once, each known, each variable used, each template of names that exist.

Both functions raise RecipeError at the place in the file where the wrong name stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from genkit import yaml
from genkit.batch.planning import template
from genkit.batch.planning.stages import Axis, Stage
from genkit.pipeline import Params

__all__ = ["NAME", "names", "templates"]

BUILT_IN = ("index", "name", "pipeline", "recipe", "stage", "stem")
"""Variables that every template has; a variable of the recipe's own by that name comes first."""

NAME = re.compile(r"[A-Za-z_][\w-]*")

Path = tuple[str | int, ...]


def names(document: yaml.Document, stage: Stage) -> None:
    """Of variables and parameters, where they are set, left out, added and laid out."""
    seen: dict[str, Axis] = {}
    for axis in stage.axes:
        for name in axis.names:
            _well_formed(document, name, (*axis.path, name))
            if name in seen:
                places = f"{axis.path[-1]} and {seen[name].path[-1]}"
                raise document.error(f"{name!r} is set in two places: {places}", axis.path)
            # A row may override `params`, which then holds the default; a whole axis has no use for one.
            if name in stage.params and axis.key != "rows":
                raise document.error(f"{name!r} is set both here and under params; remove one", axis.path)
            seen[name] = axis
    for number, entry in enumerate(stage.exclude):
        for name in entry:
            if name not in seen:
                message = f"exclude names {name[:60]!r}, which no combination has: {template.suggest(name, seen)}"
                raise document.error(message, (*stage.path, "exclude", number, name))
    for way, name in stage.grid.items():
        if name not in seen:
            message = f"grid puts {name[:60]!r} at {way}, which does not vary: {template.suggest(name, seen)}"
            raise document.error(message, (*stage.path, "grid"))
        if list(stage.grid.values()).count(name) > 1:
            raise document.error(f"grid names {name[:60]!r} twice", (*stage.path, "grid"))
    for number, entry in enumerate(stage.include):
        for name in entry:
            _well_formed(document, name, (*stage.path, "include", number, name))


def _well_formed(document: yaml.Document, name: str, path: Path) -> None:
    if not NAME.fullmatch(name):
        raise document.error(f"{name[:60]!r} is no name for a variable; use letters, digits, _ and -", path)


def templates(document: yaml.Document, stage: Stage, params: type[Params], earlier: Mapping[str, Stage]) -> None:
    """Every name in a template exists, every variable is used, every parameter is known."""
    spellings = [*params.model_fields, *params.aliases]
    for key in stage.params:
        if key not in params.model_fields:
            message = f"unknown parameter {key[:60]!r}: {template.suggest(key, spellings)}"
            raise document.error(message, (*stage.path, "params", key))
    variables = stage.variables
    known = dict.fromkeys((*sorted(variables), *BUILT_IN, *sorted(_upstream(stage, earlier))))
    used: set[str] = set()
    for path, value, more in _texts(stage, params):
        try:
            for name in template.names([*stage.choices.texts(value)] if stage.choices else value):
                head, dot, part = name.partition(".")
                name = name if name in known else params.own_name(head) + dot + part
                used.add(name.split(".")[0] if name not in known else name)
                plain = name.removesuffix(".stem").removesuffix(".name")
                if name not in known and name not in more and plain not in variables:
                    message = f"no variable is called {name!r}: {template.suggest(name, [*known, *more])}"
                    raise document.error(message, (*stage.path, *path))
        except template.TemplateError as error:
            raise document.error(str(error), (*stage.path, *path)) from None
    _all_used(document, stage, params, used, spellings)


def _all_used(
    document: yaml.Document, stage: Stage, params: type[Params], used: set[str], spellings: Sequence[str]
) -> None:
    sources = {axis.source.stage for axis in stage.axes if axis.source}
    for name in sorted(stage.variables - set(params.model_fields) - used - sources - {"model"}):
        hint = template.suggest(name, spellings)
        meant = f" ({hint})" if hint.startswith("did") else ""
        axis = next((axis for axis in stage.axes if name in axis.names), None)
        place = (*axis.path, name) if axis else (*stage.path, "include")
        raise document.error(
            f"{name!r} is no parameter of {stage.pipeline}, and neither params nor output use {{{name}}}{meant}", place
        )


def _upstream(stage: Stage, earlier: Mapping[str, Stage]) -> Iterator[str]:
    """What the earlier stages' jobs bring along: {paint.animal}, {paint.stem}, {paint.seed}."""
    for axis in stage.axes:
        if axis.source:
            source = earlier[axis.source.stage]
            theirs = source.kind.Params
            own = {*source.variables, *theirs.model_fields, *theirs.aliases, "stem", "name", "index"}
            yield from (f"{source.name}.{name}" for name in own)


def _texts(stage: Stage, params: type[Params]) -> Iterator[tuple[Path, Any, Sequence[str]]]:
    """Everything that is filled as a template: where it stands, the value, further names that it may use."""
    for key, value in stage.params.items():
        yield ("params", key), value, ()
    yield ("model",), stage.model, ()
    skip = len(stage.path)
    for axis in stage.axes:
        for row in axis.values if axis.literal else ():
            yield from ((axis.path[skip:], value, ()) for key, value in row.items() if key in params.model_fields)
    for i, entry in enumerate(stage.include):
        yield from ((("include", i, key), value, ()) for key, value in entry.items() if key in params.model_fields)
    # An output may use every parameter, given or not.
    files = [f"{name}.{part}" for name in params.file_fields() for part in ("stem", "name")]
    yield ("output",), stage.output, [*params.model_fields, *files]
    for i, name in enumerate(stage.render):
        yield ("render", i), name, [*params.model_fields, *files]
