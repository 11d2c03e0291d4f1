"""From a stage's values as they stand in the file to a `Stage`: fields checked, tables and folders read, axes laid out.

Everything that can be known without making a job is said here and in `checks`, at the place in the file where it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from genkit import registry, yaml
from genkit.batch.planning import checks, sources, template
from genkit.batch.planning.choices import Choices
from genkit.batch.planning.forms import From, RecipeForm, StageForm, validated
from genkit.batch.planning.stages import Axis, Stage, format_of
from genkit.errors import GenkitError
from genkit.fields import expanded
from genkit.media import rendering
from genkit.pipeline import Params, Pipeline

__all__ = ["Builder"]


class Builder:
    """Turns one stage's values into a `Stage`."""

    def __init__(
        self, document: yaml.Document, root: Path, path: tuple[str | int, ...], limit: int, earlier: Sequence[Stage]
    ) -> None:
        self.document, self.root, self.path, self.limit = document, root, path, limit
        self.earlier = {stage.name: stage for stage in earlier}
        self.choices = Choices(root, limit)

    def fail(self, message: str, *path: str | int) -> NoReturn:
        raise self.document.error(message, (*self.path, *path))

    def stage(self, values: Mapping[str, Any], *, default_name: str) -> Stage:
        kind = self._pipeline(values)
        self._unknown_fields(values, kind.Params)
        form: StageForm = validated(StageForm, values, self.document, self.path)
        form = self._own_names(form, kind.Params)
        if form.choices == "all":
            self._none_beside(form)
            form = self._written_out(form, kind.Params)
        name = form.name or default_name
        if not checks.NAME.fullmatch(name) or name in self.earlier:
            self.fail(f"stage name {name[:60]!r} is taken or not made of letters, digits, _ and -", "name")
        stage = Stage(
            name=name,
            pipeline=form.pipeline,
            model=form.model,
            params=form.params,
            axes=tuple(self._axes(form, list(values), kind.Params)),
            include=form.include,
            exclude=form.exclude,
            output=form.output,
            render=self._render(form, kind),
            soundfont=self._soundfont(form, kind),
            choices=self.choices if form.choices == "random" else None,
            grid={str(way): name for way, name in form.grid.items()},
            path=self.path,
        )
        checks.names(self.document, stage)
        checks.templates(self.document, stage, kind.Params, self.earlier)
        return stage

    def _written_out(self, form: StageForm, params: type[Params]) -> StageForm:
        """Every choice as values of their own: under `params` it makes an axis of `matrix`."""
        files = params.file_fields()
        update: dict[str, Any] = {"matrix": {}}
        given = {key: [value] for key, value in form.params.items() if isinstance(value, str) and key not in files}
        for place, axes in (("params", given), ("matrix", form.matrix)):
            for key, values in axes.items():
                try:
                    texts = [row[key] for value in values for row in self.choices.rows({key: value})]
                except template.TemplateError as error:
                    self.fail(str(error), place, key)
                if place == "params" and texts != values and key in form.matrix:
                    self.fail(f"{key!r} is set both here and under params; remove one", "matrix", key)
                if place == "matrix" or texts != values:
                    update["matrix"].setdefault(key, []).extend(texts)
        if isinstance(form.rows, list):
            try:
                update["rows"] = [one for row in form.rows for one in self.choices.rows(row)]
            except template.TemplateError as error:
                self.fail(str(error), "rows")
        update["params"] = {key: value for key, value in form.params.items() if key not in update["matrix"]}
        return form.model_copy(update=update)

    def _none_beside(self, form: StageForm) -> None:
        """`zip` goes side by side and `include` joins what it fits, so their choices cannot be multiplied."""
        places: list[tuple[tuple[str | int, ...], Any]] = []
        places += [(("zip", key), value) for key, values in form.zip.items() for value in values]
        places += [(("include", i, key), value) for i, row in enumerate(form.include) for key, value in row.items()]
        for place, value in places:
            if isinstance(value, str) and self.choices.within(value):
                shown = f"{value[:60]!r} is a choice in {place[0]}, where choices: all makes none"
                self.fail(f"{shown}; put it under params or matrix, or draw: choices: random", *place)

    def _pipeline(self, values: Mapping[str, Any]) -> type[Pipeline]:
        name = values.get("pipeline")
        if not isinstance(name, str):
            self.fail(f"pipeline is missing: name one of {', '.join(registry.pipelines())}", "pipeline")
        try:
            return registry.get(name)
        except GenkitError as error:
            self.fail(str(error), "pipeline")

    def _render(self, form: StageForm, kind: type[Pipeline]) -> tuple[str, ...]:
        if form.render and kind.produces not in rendering.SUFFIXES:
            self.fail(f"{kind.name} makes no music and no sound; render is for pieces (MIDI) and sounds", "render")
        for number, entry in enumerate(form.render):
            if entry in form.render[:number]:
                self.fail(f"{entry[:60]!r} is named twice", "render", number)
            try:
                rendering.kind_of(f"piece.{format_of(entry)}", kind.produces)
            except GenkitError:
                known = ", ".join(suffix.removeprefix(".") for suffix in rendering.SUFFIXES[kind.produces])
                noun = rendering.NOUNS[kind.produces]
                self.fail(f"{noun} is not rendered to {entry[:60]!r}; use one of {known}", "render", number)
        return tuple(form.render)

    def _soundfont(self, form: StageForm, kind: type[Pipeline]) -> Path | None:
        if form.soundfont is None:
            return None
        if kind.produces != "midi" or not any(
            rendering.kind_of(f"piece.{format_of(entry)}") == "audio" for entry in form.render
        ):
            self.fail("a soundfont plays a sound, and none is rendered; add one: render: [wav]", "soundfont")
        from genkit.media import midi

        try:
            return midi.soundfont_file(self.root / expanded(form.soundfont))
        except GenkitError as error:
            self.fail(str(error), "soundfont")

    def _unknown_fields(self, values: Mapping[str, Any], params: type[Params]) -> None:
        known = [key for key in StageForm.model_fields if key != "name" or self.path]
        for key in values:
            if params.own_name(key) in params.model_fields and key not in known:
                self.fail(f"{key!r} is a parameter; write it under params, or under matrix for several values", key)
            if key not in known:
                fields = known if self.path else [*known, *RecipeForm.model_fields]
                self.fail(f"unknown field {key[:60]!r}: {template.suggest(key, fields)}", key)

    def _own_names(self, form: StageForm, params: type[Params]) -> StageForm:
        """The form with every parameter by its own name, whichever the file has."""
        mappings = {key: self._renamed(getattr(form, key), params, key) for key in ("params", "matrix", "zip", "files")}
        lists = {
            key: [self._renamed(entry, params, key, number) for number, entry in enumerate(getattr(form, key))]
            for key in ("include", "exclude")
        }
        grid = {way: params.own_name(name) for way, name in form.grid.items()}
        return form.model_copy(update={**mappings, **lists, "grid": grid})

    def _renamed(self, values: Mapping[str, Any], params: type[Params], *path: str | int) -> dict[str, Any]:
        try:
            renamed = params.renamed(values)
        except GenkitError as error:
            self.fail(str(error), *path)
        for name in values:  # what is wrong with a value is told at the name that the file has
            place = self.document.places.get((*self.path, *path, name))
            if place is not None:
                self.document.places[(*self.path, *path, params.own_name(name))] = place
        return renamed

    def _axes(self, form: StageForm, order: Sequence[str], params: type[Params]) -> list[Axis]:
        makers = {"matrix": self._matrix, "zip": self._zip, "rows": self._table, "files": self._files}
        return [
            axis for key in dict.fromkeys((*order, "matrix")) if key in makers for axis in makers[key](form, params)
        ]

    def _matrix(self, form: StageForm, params: type[Params]) -> list[Axis]:
        return [
            Axis(key, (*self.path, "matrix", key), [{key: value} for value in values], names=(key,))
            for key, values in form.matrix.items()
        ]

    def _zip(self, form: StageForm, params: type[Params]) -> list[Axis]:
        lengths = {key: len(values) for key, values in form.zip.items()}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{key} has {length}" for key, length in lengths.items())
            self.fail(f"zip takes lists of equal length, and {told}", "zip")
        rows = [dict(zip(form.zip, values, strict=True)) for values in zip(*form.zip.values(), strict=True)]
        return [Axis("zip", (*self.path, "zip"), rows, names=tuple(form.zip))] if rows else []

    def _table(self, form: StageForm, params: type[Params]) -> list[Axis]:
        if form.rows is None:
            return []
        literal = isinstance(form.rows, list)
        try:
            rows = form.rows if literal else sources.table(self.root / expanded(form.rows), self.limit)
        except ValueError as error:
            self.fail(str(error), "rows")
        rows = [self._renamed(row, params, "rows", number) for number, row in enumerate(rows)]
        return [
            Axis(
                "rows",
                (*self.path, "rows"),
                rows,
                literal=literal,
                names=tuple(dict.fromkeys(key for row in rows for key in row)),
            )
        ]

    def _files(self, form: StageForm, params: type[Params]) -> list[Axis]:
        axes = []
        for key, source in form.files.items():
            path = (*self.path, "files", key)
            if isinstance(source, From):
                if source.stage not in self.earlier:
                    hint = (
                        template.suggest(source.stage, self.earlier)
                        if self.earlier
                        else "no stage comes before this one"
                    )
                    self.fail(f"no earlier stage is called {source.stage[:60]!r}: {hint}", "files", key)
                source = From(source.stage, self._take(source, key))
                axes.append(Axis(key, path, source=source, literal=False, names=(key,)))
                continue
            found: dict[str, None] = {}  # in order, each once
            for pattern in [source] if isinstance(source, str) else source:
                try:
                    kind = params.file_fields().get(key, "")
                    found |= dict.fromkeys(sources.matches(pattern, self.root, kind, self.limit))
                except OSError as error:
                    self.fail(f"{pattern[:200]!r} cannot be read: {error.strerror}", "files", key)
                except ValueError as error:
                    self.fail(str(error), "files", key)
            axes.append(Axis(key, path, [{key: name} for name in found], literal=False, names=(key,)))
        return axes

    def _take(self, source: From, key: str) -> int:
        """The number of the file: what a piece or sound is rendered to comes after it, in the order of `render`."""
        if isinstance(source.take, int):
            return source.take
        earlier = self.earlier[source.stage]
        own = "mid" if earlier.kind.produces == "midi" else format_of(earlier.output or ".wav")
        formats = [own, *map(format_of, earlier.render)]
        if source.take not in formats:
            made = ", ".join(formats[1:]) or "nothing"
            self.fail(f"stage {source.stage!r} renders {made}, and no {source.take[:20]!r}", "files", key, "take")
        return formats.index(source.take) + 1
