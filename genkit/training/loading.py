"""From a training recipe's file to what the trainer takes, every mistake with its file, line and column."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic

from genkit import shipped, yaml
from genkit.errors import InputError, RecipeError
from genkit.fields import expanded
from genkit.pipeline import one_line
from genkit.training.recipe import TaskConfig, TrainRecipe, find_task, path_fields, unknown

if TYPE_CHECKING:
    from genkit.training.task import Task

__all__ = ["Training", "load"]


@dataclass(frozen=True)
class Training:
    recipe: TrainRecipe
    task: type[Task]
    config: TaskConfig


def load(source: str | Path, *, overrides: Sequence[str] = (), debug: bool = False) -> Training:
    """Reads a recipe: a file, or a shipped one by name ("style_transfer/fast").

    overrides: "task.data=photos" ("data=photos" will do where the recipe has nothing of that name), values as YAML,
    file names in them from the working folder; debug: lays the recipe's `debug` section over it. Imports the task's
    module, and with it torch. Raises RecipeError, InputError.
    """
    path = find(source)
    root = Path(os.path.abspath(path)).parent  # noqa: PTH100 - `resolve` would leave the folder of a linked recipe
    document = yaml.read(path)
    value = document.value
    if not isinstance(value, dict):
        raise document.error("a training recipe is a mapping that names at least its task (train: style-fast)")
    if "train" not in value:
        if "pipeline" in value or "stages" in value:
            raise document.error("this is a recipe of a batch; start it with `genkit run`")
        raise document.error("train is missing: name the training task (`genkit train --list` shows them)")
    small = value.pop("debug", None)
    if small is not None and not isinstance(small, dict):
        raise document.error("debug is a mapping of what is laid over the rest", ("debug",))
    if debug:
        if not small:
            raise document.error("this recipe has no `debug` section")
        _overlay(document, small)
    given = [document.assign(_in_task(text, str(value["train"]))) for text in overrides]
    recipe = _validated(TrainRecipe, value, document, ())
    try:
        task = find_task(recipe.train)
    except InputError as error:
        raise document.error(str(error), ("train",)) from None
    _from_here(task.Config, value.get("task"), given)
    config = _validated(task.Config, value.get("task") or {}, document, ("task",), root=root)
    return Training(recipe, task, config)


def find(source: str | Path) -> Path:
    """A recipe's file; a name without a suffix that is no file is looked for among the shipped ones."""
    path = expanded(source)
    if path.suffix in (".yaml", ".yml") or path.exists():
        return path
    known = {name.removeprefix("train/"): file for name, file in shipped.recipes().items() if name.startswith("train/")}
    name = str(source).removeprefix("train/")
    if name not in known:
        raise InputError(unknown("training recipe", name, known))
    return known[name]


def _in_task(text: str, train: str) -> str:
    """An override, with the `task.` that people leave out put before a name that only the task has."""
    name = text.partition("=")[0].partition(".")[0].strip()
    if name in TrainRecipe.model_fields or not name.isidentifier():
        return text
    try:
        return f"task.{text}" if name in find_task(train).Config.model_fields else text
    except InputError:  # told of where the recipe is validated
        return text


def _overlay(document: yaml.Document, small: Mapping[str, Any]) -> None:
    """Lays `debug` over the recipe; places follow their values, so that errors point into `debug`."""
    moved = {path[1:]: place for path, place in document.places.items() if path[:1] == ("debug",) and len(path) > 1}
    _merge(document.value, small)
    document.places.update(moved)


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(below.get(key), dict):
            _merge(below[key], value)
        else:
            below[key] = value


def _from_here(config: type[TaskConfig], values: Any, given: Sequence[tuple[Any, ...]]) -> None:
    """File names given on the command line start from the working folder, as the shell completed them."""
    fields = path_fields(config)
    for path in given:
        inside = [str(name) for name in path[1:]]
        for field in fields if path[:1] == ("task",) else ():
            names = field.split(".")
            if inside[: len(names)] == names or names[: len(inside)] == inside:
                _make_absolute(values, names)


def _make_absolute(values: Any, names: Sequence[str]) -> None:
    """Makes the file name at the place `names` of nested mappings absolute, if there is one."""
    for name in names[:-1]:
        values = values.get(name) if isinstance(values, dict) else None
    if isinstance(values, dict) and names[-1] in values:
        values[names[-1]] = _absolute(values[names[-1]])


def _absolute(value: Any) -> Any:
    if isinstance(value, list):
        return [_absolute(item) for item in value]
    return os.path.abspath(expanded(value)) if isinstance(value, str) and value else value  # noqa: PTH100


def _validated(
    model: type[Any], values: Any, document: yaml.Document, path: tuple[str, ...], *, root: Path | None = None
) -> Any:
    if not isinstance(values, dict):
        raise document.error(f"{'.'.join(path)} is a mapping of the task's settings", path)
    try:
        return model.model_validate(values, context={"root": root} if root else None)
    except pydantic.ValidationError as error:
        loc = error.errors(include_url=False)[0]["loc"]
        inner = model.model_fields[str(loc[0])].annotation if len(loc) > 1 and loc[0] in model.model_fields else None
        if isinstance(inner, type) and issubclass(inner, pydantic.BaseModel):
            _validated(inner, values[loc[0]], document, (*path, str(loc[0])), root=root)  # its own words for it
        raise RecipeError(one_line(error, model), where=document.where((*path, *loc))) from None
