"""A recipe's fields as they are written: two closed pydantic models; the JSON Schema of recipes comes from them too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BeforeValidator, ConfigDict, Field, PlainValidator

from genkit import yaml

__all__ = ["MAX_JOBS", "From", "RecipeForm", "StageForm", "validated"]

MAX_JOBS = 10_000
"""Unless a recipe says otherwise: more is a mistyped matrix more often than a wish."""


@dataclass(frozen=True)
class From:
    """Files of an earlier stage: one job for each of its jobs, on its `take`-th file; or on the one that it is rendered
    to, by format ("wav")."""

    stage: str
    take: int | str = 1


def _source(value: Any) -> Any:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list) and value and all(isinstance(item, str) and item for item in value):
        return value
    if isinstance(value, dict) and isinstance(value.get("stage"), str) and set(value) <= {"stage", "take"}:
        take = value.get("take", 1)
        if (type(take) is int and 1 <= take <= 1000) or (isinstance(take, str) and take):
            return From(value["stage"], take)
    raise ValueError("give a pattern (photos/*.jpg), a list of patterns, or {stage: NAME} for an earlier stage's files")


def _renders(value: Any) -> Any:
    texts = [value] if isinstance(value, str) else value
    if isinstance(texts, list) and texts and all(isinstance(item, str) and item for item in texts):
        return texts
    raise ValueError("give a list of formats, such as [wav, png], or of names: ['sound/{stem}.wav']")


def _rows(value: Any) -> Any:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list) and value and all(isinstance(row, dict) and row for row in value):
        return value
    raise ValueError("give a list of rows ({name: value, ...}) or the name of a CSV or JSONL file")


Values = Annotated[list[Any], Field(min_length=1)]


class StageForm(pydantic.BaseModel):
    """One stage as written."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True, protected_namespaces=())

    name: str | None = Field(None, description="What later stages call it by.")
    pipeline: str = Field(description="Which pipeline makes the jobs (`genkit list`).")
    model: str | None = Field(None, description="A model by alias, hub id or path (`genkit models`).")
    params: dict[str, Any] = Field({}, description="Parameters of every job; texts may hold {variables}.")
    matrix: dict[str, Values] = Field({}, description="Every combination of these values makes a job.")
    zip: dict[str, Values] = Field({}, description="Lists of equal length, taken side by side.")
    rows: Annotated[Any, PlainValidator(_rows)] = Field(
        None, description="A job for each row: a list, or a CSV or JSONL file."
    )
    files: dict[str, Annotated[Any, PlainValidator(_source)]] = Field(
        {}, description="A job for each file: a pattern by parameter, or {stage: NAME} for an earlier stage's outputs."
    )
    include: list[dict[str, Any]] = Field([], description="Values added to the combinations they fit, or new ones.")
    exclude: list[dict[str, Any]] = Field([], description="Combinations to leave out, named by some of their values.")
    output: str | None = Field(
        None, description="The name of each file, from the output folder down: {animal}-{seed}.png"
    )
    render: Annotated[list[str], PlainValidator(_renders)] = Field(
        [],
        description="What pieces and sounds are also rendered to: [wav, png] beside the .mid, or names such as "
        "'sound/{stem}.wav'. Sound: wav, flac, ogg, mp3; piano roll: png; notation: musicxml, mxl. Of sounds: png, the "
        "spectrogram.",
    )
    soundfont: str | None = Field(None, description="An .sf2 or .sf3 file that rendered sounds are played with.")
    choices: Literal["all", "random"] | None = Field(
        None, description="What {red|blue} and __wildcard__ in texts become: every combination, or one by the seed."
    )
    grid: dict[Literal["x", "y", "z"], str] = Field(
        {}, description="How the report lays the jobs out: {x: columns, y: rows, z: sheets}, each a name that varies."
    )


def _none_as_empty(value: Any) -> Any:
    return {} if value is None else value


class RecipeForm(pydantic.BaseModel):
    """The fields of a recipe that are not a stage's."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    name: str | None = Field(None, description="Names the output folder; the file's own name if not given.")
    description: str = Field("", description="A line for `genkit recipes`.")
    max_jobs: int = Field(MAX_JOBS, ge=1, le=10_000_000, description="More jobs than this are refused.", strict=True)
    stages: Annotated[list[dict[str, Any]], Field(min_length=1), BeforeValidator(_none_as_empty)] | None = Field(
        None, description="Several pipelines in a row; each stage may take an earlier one's outputs."
    )


_WORDS = {
    "dict_type": "should be names with values ({name: value})",
    "list_type": "should be a list ([first, second])",
    "string_type": "should be a text",
    "int_type": "should be a whole number",
}
"""What pydantic says of a wrong kind, in a recipe's words."""


def validated(form: type[Any], values: Any, document: yaml.Document, path: Sequence[str | int]) -> Any:
    try:
        return form.model_validate(values)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        loc = tuple(part for part in first["loc"] if part not in ("constrained-list", "list"))
        message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
        message = _WORDS.get(first["type"], message)
        field_name = ".".join(map(str, loc))
        if first["type"] == "missing":
            message = f"{field_name} is missing: {form.model_fields[field_name].description}"
        elif loc:
            message = f"{field_name[:80]} {message[:1].lower() + message[1:]}"
        raise document.error(message, (*path, *loc)) from None
