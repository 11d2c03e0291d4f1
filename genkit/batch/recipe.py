"""A recipe: YAML -> `Recipe`, checked as far as it can be without making a single job.

    recipe = load("foxes.yaml", overrides=["params.seed=4"])
    recipe.stages[0].axes            # what the jobs are the product of

A recipe without `stages` is a recipe of one stage. Every way to get several jobs (`matrix`, `zip`, `rows`, `files`)
becomes an `Axis`, a list of partial assignments; the jobs of a stage are the product of its axes in the order in which
they stand in the file, the last one running fastest. A name that is a parameter of the pipeline sets it; any other is a
variable for templates, and one that no template uses is an error, since it is a typing mistake nine times in ten.

Errors are `RecipeError`, with file, line and column.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genkit import registry, yaml
from genkit.batch.planning import names, template
from genkit.batch.planning.builder import Builder
from genkit.batch.planning.forms import RecipeForm, StageForm, validated
from genkit.batch.planning.stages import Stage
from genkit.errors import GenkitError, RecipeError
from genkit.fields import expanded
from genkit.pipeline import Params

__all__ = ["Recipe", "load", "parse"]

_VARIABLE = re.compile(r"\s*\{[A-Za-z_][\w.-]*(:[\w.]*)?\}\s*")


@dataclass(frozen=True)
class Recipe:
    """root: the folder that relative input files start from; digest: of the recipe's content, "sha256:..."."""

    name: str
    description: str
    max_jobs: int
    stages: tuple[Stage, ...]
    root: Path
    document: yaml.Document = field(repr=False, compare=False)

    @property
    def digest(self) -> str:
        text = json.dumps(self.document.value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def error(self, message: str, path: Sequence[str | int] = ()) -> RecipeError:
        return self.document.error(message, path)


def load(path: str | Path, *, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe file. Relative inputs start at its folder.

    overrides: "params.seed=4", values as YAML or text; file names in them start from the working folder.

    Raises RecipeError.
    """
    path = Path(path)
    document = yaml.read(path)
    return _recipe(document, path.absolute().parent, path.stem, overrides)


def parse(text: str, *, root: str | Path = ".", name: str = "recipe", overrides: Sequence[str] = ()) -> Recipe:
    """Like `load`, from the text itself. name: what errors call it."""
    return _recipe(yaml.parse(text, name=name), Path(root).absolute(), "recipe", overrides)


def _recipe(document: yaml.Document, root: Path, stem: str, overrides: Sequence[str]) -> Recipe:
    if not isinstance(document.value, dict):
        raise document.error("a recipe is a mapping that names at least its pipeline (pipeline: style-transfer)")
    if "train" in document.value:
        raise document.error("this is a training recipe; start it with `genkit train`", ("train",))
    for text in overrides:
        _override(document, text)
    head, stages = _split(document)
    form = validated(RecipeForm, head, document, ())
    name = form.name or stem
    if problem := names.fault(name) or ("holds a '/'; leave it out" if "/" in name else None):
        raise document.error(f"name {name[:60]!r} {problem}", ("name",))
    built: list[Stage] = []
    for number, (path, values) in enumerate(stages, 1):
        builder = Builder(document, root, path, form.max_jobs, built)
        built.append(builder.stage(values, default_name=f"stage{number}"))
    return Recipe(name, form.description, form.max_jobs, tuple(built), root, document)


def _override(document: yaml.Document, text: str) -> None:
    """`Document.assign`, with stages by name and `null` taking a value away."""
    dotted, equals, value = text.partition("=")
    steps = dotted.split(".")
    if steps[0] == "stages" and len(steps) > 1:
        stages = document.value.get("stages")
        if not isinstance(stages, list):
            raise RecipeError(
                f"this recipe has no stages; leave out {'.'.join(steps[:2])[:80]!r}", where=f"--set {text[:80]}"
            )
        called = [stage.get("name") if isinstance(stage, dict) else None for stage in stages]
        if steps[1] in called:
            steps[1] = str(called.index(steps[1]))
        elif not steps[1].isdecimal():
            known = [str(name) for name in called if name]
            raise RecipeError(
                f"no stage is called {steps[1]!r}: {template.suggest(steps[1], known)}", where=f"--set {text[:80]}"
            )
    elif steps[0] in StageForm.model_fields and steps[0] != "name" and isinstance(document.value.get("stages"), list):
        raise RecipeError(
            f"this recipe has stages; say of which: stages.NAME.{dotted[:80]}", where=f"--set {text[:80]}"
        )
    path = document.assign(".".join(steps) + equals + _as_yaml(value))
    target = document.value
    for step in path[:-1]:
        target = target[step]
    if isinstance(target, dict):
        for name in _other_names(document.value, path):
            target.pop(name, None)
    if target[path[-1]] is None and isinstance(target, dict):
        del target[path[-1]]
    elif isinstance(target, dict):
        target[path[-1]] = _from_here(document.value, path, target[path[-1]])


def _as_yaml(value: str) -> str:
    """A value from the command line: what is not YAML (`*.png`, `{stem}.png`) is a text, and so is `{stem}`."""
    if _VARIABLE.fullmatch(value):
        return json.dumps(value)
    try:
        yaml.parse(value)
        return value
    except RecipeError:
        return json.dumps(value)


def _from_here(recipe: dict[str, Any], path: Sequence[str | int], value: Any) -> Any:
    """File names given on the command line start from the working folder, not from the recipe's."""
    params, rest = _place(recipe, path)
    if len(rest) == 2 and rest[0] in ("params", "matrix", "zip"):
        wanted = params is not None and params.own_name(str(rest[1])) in params.file_fields()
    else:
        wanted = rest in (("rows",), ("soundfont",)) or (len(rest) == 2 and rest[0] == "files")
    return _absolute(value) if wanted else value


def _other_names(recipe: dict[str, Any], path: Sequence[str | int]) -> list[str]:
    """What else the parameter is called that a value is for: the value takes the place of any by these names."""
    params, rest = _place(recipe, path)
    if params is None or len(rest) != 2 or rest[0] not in ("params", "matrix", "zip", "files"):
        return []
    own = params.own_name(str(rest[1]))
    return [name for name in (own, *params.aliases) if name != rest[1] and params.own_name(name) == own]


def _place(recipe: dict[str, Any], path: Sequence[str | int]) -> tuple[type[Params] | None, tuple[str | int, ...]]:
    """The parameters of the stage that a path leads into, if it names a pipeline, and the path from there."""
    stage, rest = recipe, tuple(path)
    if rest[0] == "stages":
        stage, rest = recipe["stages"][rest[1]] if len(rest) > 2 else {}, rest[2:]
    try:
        return registry.get(str(stage.get("pipeline"))).Params, rest
    except (GenkitError, AttributeError):  # said where the pipeline is looked up
        return None, rest


def _absolute(value: Any) -> Any:
    if isinstance(value, list):
        return [_absolute(item) for item in value]
    return str(expanded(value).absolute()) if isinstance(value, str) and value else value


def _split(document: yaml.Document) -> tuple[dict[str, Any], list[tuple[tuple[str | int, ...], dict[str, Any]]]]:
    """The recipe's own fields, and each stage's with its place."""
    value = document.value
    head = {key: item for key, item in value.items() if key in RecipeForm.model_fields}
    rest = {key: item for key, item in value.items() if key not in head}
    if "stages" not in value:
        return head, [((), rest)]
    for key in rest:
        if key in StageForm.model_fields:
            raise document.error(f"{key!r} stands beside `stages`; move it into a stage", (key,))
        raise document.error(f"unknown field {key[:60]!r}: {template.suggest(key, RecipeForm.model_fields)}", (key,))
    stages = value["stages"] if isinstance(value["stages"], list) else []
    return head, [(("stages", i), stage) for i, stage in enumerate(stages)]
