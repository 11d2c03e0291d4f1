"""One combination of a stage's values on its way to a job: templates filled, parameters validated, inputs digested,
outputs named, and from all that the job's identity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from genkit.batch.job import Job, Made, Take
from genkit.batch.planning import names, template
from genkit.batch.planning.choices import Choices
from genkit.batch.planning.stages import format_of
from genkit.errors import GenkitError
from genkit.fields import expanded, way
from genkit.media.files import file_format
from genkit.pipeline import Params

if TYPE_CHECKING:
    from genkit.batch.planning.planner import StagePlanner

__all__ = ["Draft"]

LATER = ".genkit-stage"
"""Where an earlier stage's output is put among file parameters until the job is run: .genkit-stage/TAKE/OUTPUT."""


class Draft:
    """One combination on its way to a job."""

    def __init__(self, planner: StagePlanner, index: int, combination: Mapping[str, Any]) -> None:
        self.of, self.index, self.raw = planner, index, combination
        self.given, self.combination = planner.stage.params, combination
        self.derived: int | None = None

    def error(self, message: str, name: str | None = None) -> Exception:
        """An error about this job, at the place that gave the named value."""
        stage = self.of.stage
        values = ", ".join(f"{key}={template.shown(_plain(value))[:40]}" for key, value in self.combination.items())
        job = f"job {self.index} ({values[:160]})" if values else f"job {self.index}"
        axis = next((axis for axis in stage.axes if name in axis.names), None)
        path = (*stage.path, "params", name) if name in stage.params else (*stage.path, name or "params")
        return self.of.recipe.error(f"{job}: {message}", axis.path if axis else path)  # type: ignore[arg-type]

    def choose(self, choices: Choices) -> None:
        """Draws what the texts leave open, by the job's seed."""
        seed = template.fill(self.raw.get("seed", self.given.get("seed")), {**self.raw, "index": self.index})
        if seed is None:
            seed = self.derived = self._seed()

        def drawn(values: Mapping[str, Any], but: Collection[str]) -> dict[str, Any]:
            return {
                key: choices.pick(value, f"{seed}/{key}") if isinstance(value, str) and key not in but else value
                for key, value in values.items()
            }

        self.given = drawn(self.given, self.of.files)
        self.combination = drawn(self.raw, {*self.of.files, *self.of.data})

    def job(self) -> tuple[Job, dict[str, Any]]:
        of = self.of
        if of.stage.choices:
            self.choose(of.stage.choices)
        model = self._model()
        params = self._params()
        inputs, takes = self._inputs(params)
        if params.seed is None:
            params = params.model_copy(update={"seed": self._seed() if self.derived is None else self.derived})
        record, models = params.record(), self._models(model, params)
        named = self._output_variables(record)
        output = self._output(named)
        job = Job(
            id=self._identity(record, inputs, takes, models),
            stage=of.stage.name,
            index=self.index,
            pipeline=of.kind.name,
            model=model,
            params=record,
            output=output,
            inputs=inputs,
            takes=takes,
            variables={key: _plain(value) for key, value in self.raw.items()},
            renders=tuple(self._render(entry, output, named) for entry in of.stage.render),
            soundfont=str(of.stage.soundfont) if of.stage.soundfont else None,
            soundfont_digest=of.rendered.get("soundfont"),
        )
        name = output.rpartition("/")[2]
        return job, {**named, "stem": name.rpartition(".")[0], "name": name}

    def _identity(
        self, record: Mapping[str, Any], inputs: Mapping[str, str], takes: Mapping[str, Take], models: Mapping[str, str]
    ) -> str:
        of = self.of
        params = {key: value for key, value in record.items() if key not in of.files}
        identity = {
            "schema": 1,
            "pipeline": of.kind.name,
            "version": of.kind.version,
            "params": _without(params, {*inputs, *models}),
            "files": {
                **{name: {"sha256": digest} for name, digest in inputs.items()},
                **{name: {"job": take.job, "take": take.number} for name, take in takes.items()},
            },
            "models": models,
            **({"dtype": of.dtype} if of.dtype else {}),
            **of.rendered,
        }
        return hashlib.sha256(_canonical(identity).encode()).hexdigest()

    @cached_property
    def variables(self) -> dict[str, Any]:
        """Everything a template may name. An earlier job stands as its output's path."""
        of = self.of
        found: dict[str, Any] = {
            "index": self.index,
            "recipe": of.recipe.name,
            "stage": of.stage.name,
            "pipeline": of.stage.pipeline,
        }
        for key, value in self.combination.items():
            path = _plain(value)
            if isinstance(path, str) and (key in of.files or key in of.file_axes):
                found |= _parts(key, path)
            if isinstance(value, Made):
                source = of.sources[key].stage
                found |= {f"{source}.{name}": item for name, item in value.variables.items() if "." not in name}
        only = of.file_axes[0] if len(of.file_axes) == 1 else None
        if f"{only}.stem" in found:
            found["stem"], found["name"] = found[f"{only}.stem"], found[f"{only}.name"]
        return self._with_aliases(found | {key: _plain(value) for key, value in self.combination.items()})

    def _with_aliases(self, variables: dict[str, Any]) -> dict[str, Any]:
        """The variables, those of parameters under their other names too."""
        aliases = self.of.kind.Params.aliases
        if not aliases:
            return variables
        names = {alias + end: own + end for alias, own in aliases.items() for end in ("", ".stem", ".name")}
        return {alias: variables[own] for alias, own in names.items() if own in variables} | variables

    def _model(self) -> str | None:
        of = self.of
        given = self.combination.get("model") if "model" not in of.fields else None
        model = template.fill(of.stage.model if given is None else given, self.variables)
        if model is None or model in of.kind.models:
            return model
        if not isinstance(model, str) or "\x00" in model:
            raise self.error(f"model {template.shown(model)[:60]!r} is no name", "model")
        path = of.recipe.root / expanded(model)
        return str(path) if path.exists() else model

    def _models(self, model: str | None, params: Params) -> dict[str, str]:
        kind = self.of.kind
        try:
            return {role: self.of.digests.model(kind, ref) for role, ref in kind.model_refs(model, params).items()}
        except GenkitError as error:
            raise self.error(str(error), "model") from None

    def _params(self) -> Params:
        of = self.of
        later = {
            key: f"{LATER}/{of.sources[key].take}/{value.output}"
            for key, value in self.combination.items()
            if isinstance(value, Made)
        }
        in_files = {**self.variables, **later}
        values: dict[str, Any] = {}
        for key, value in self.given.items():
            values[key] = template.fill(value, in_files if key in of.files else self.variables)
            if key in of.lists and isinstance(values[key], str):
                values[key] = [values[key]]
        for key, value in self.combination.items():
            if key in of.fields:
                own = later.get(key, value)
                filled = own if key in of.data else template.fill(own, in_files)
                values[key] = [filled] if key in of.lists and isinstance(filled, str) else filled
        try:
            return of.kind.Params.parse(values, root=of.recipe.root, unchecked=True)
        except GenkitError as error:
            name = next((key for key in values if str(error).startswith((f"{key} ", f"{key}["))), None)
            raise self.error(str(error), name) from None

    def _inputs(self, params: Params) -> tuple[dict[str, str], dict[str, Take]]:
        """Digests of the files there are, and what is to be taken from earlier jobs."""
        inputs: dict[str, str] = {}
        takes: dict[str, Take] = {}
        stages = {value.output: value.id for value in self.combination.values() if isinstance(value, Made)}
        later = self.of.recipe.root / LATER
        for name, path in params.files().items():
            if stages and path.is_relative_to(later):
                number, _, output = path.relative_to(later).as_posix().partition("/")
                takes[name] = Take(output, stages[output], int(number))
                continue
            try:
                inputs[name] = self.of.digests.file(path)
            except GenkitError as error:
                raise self.error(f"{name}: {error}", str(way(name)[0])) from None
            except OSError as error:
                raise self.error(f"{name}: {str(path)!r} cannot be read: {error.strerror}", str(way(name)[0])) from None
        return inputs, takes

    def _seed(self) -> int:
        variables = {key: self._content(key, value) for key, value in self.raw.items()}
        return self.of.nth_seed(_canonical([self.of.recipe.name, self.of.stage.name, variables]))

    def _content(self, name: str, value: Any) -> Any:
        """What stands for a variable in the seed: content, not paths."""
        if isinstance(value, Made):
            return value.id
        if isinstance(value, str) and (name in self.of.files or name in self.of.file_axes):
            path = self.of.recipe.root / expanded(value)
            return self.of.digests.file(path) if path.is_file() else value
        return value

    def _output_variables(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The variables, and every parameter as it will be used; a file stands as its bare name."""
        of = self.of
        found = {**dict.fromkeys(of.fields), **self.variables}
        written_as_number = {key for key, value in self.combination.items() if isinstance(value, int | float)}
        # 440 stays 440 where the parameter is a float.
        found |= {key: value for key, value in record.items() if key not in {*of.files, *written_as_number}}
        for key in of.files:
            written = of.stage.params.get(key)
            if key not in self.combination and isinstance(written, str):
                found |= _parts(key, str(template.fill(written, self.variables)))
        found |= {key: found[f"{key}.stem"] for key in {*of.files, *of.file_axes} if f"{key}.stem" in found}
        return self._with_aliases(found)

    def _output(self, variables: Mapping[str, Any]) -> str:
        output = self._name(self.of.output, variables, "output")
        try:
            file_format(output, self.of.kind.produces)
            return output
        except GenkitError as error:
            problem = str(error).removeprefix(f"{output!r}: ")
            raise self.error(f"output {output[:100]!r}: {problem}", "output") from None

    def _render(self, entry: str, output: str, variables: Mapping[str, Any]) -> str:
        """The name of a rendering: beside the piece, or as its template says, where {stem} is the piece's."""
        piece = PurePosixPath(output)
        if "." not in entry:
            return piece.with_suffix(f".{format_of(entry)}").as_posix()
        return self._name(entry, {**variables, "stem": piece.stem, "name": piece.name}, "render")

    def _name(self, text: str, variables: Mapping[str, Any], key: str) -> str:
        """A template filled, as a path that every disk takes."""
        safe = {key: names.safe(variables[key]) for key in template.names(text) if key in variables}
        name = template.shown(template.fill(text, {**variables, **safe}))
        if problem := names.fault(name):
            raise self.error(f"{key} {name[:100]!r}: {problem}", key)
        return name


def _plain(value: Any) -> Any:
    return value.output if isinstance(value, Made) else value


def _parts(key: str, path: str) -> dict[str, str]:
    return {f"{key}.stem": Path(path).stem, f"{key}.name": Path(path).name}


def _without(value: Any, names: Collection[str], at: str = "") -> Any:
    """Parameters without the files and models in objects among them ("control[0].image"), which have digests."""
    if isinstance(value, list):
        return [_without(item, names, f"{at}[{i}]") for i, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    places = {key: f"{at}.{key}" if at else key for key in value}
    return {
        key: _without(item, names, places[key]) for key, item in value.items() if not at or places[key] not in names
    }


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
