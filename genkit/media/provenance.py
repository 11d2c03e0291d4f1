"""How a file was made, kept in the file: pipeline, models, parameters, inputs, machine; and the digest of the result.

Choices made here:
- The record holds no date and no place beyond what was asked for, so two runs of the same thing are the same bytes.
- `content` is the digest of what a reader gets back from the file (after JPEG's or MP3's loss), so `Image.open(file)`
  has it, in every format, until somebody edits the file.
- It is written into the bytes before the file gets its name: there is never a file without it. Where a format has no
  place (BMP), or too little of it (JPEG holds 64 kB), it goes to a file beside it, `NAME.genkit.json`.
- A record read from a file is somebody else's word: bounded in size, validated, closed to unknown names.

Where it is, by format: see `_embed`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import pydantic
import pydantic_core
from pydantic import ConfigDict, Field, JsonValue, StringConstraints, TypeAdapter

from genkit._version import __version__
from genkit.errors import MediaError
from genkit.media import _embed, files, parameters

if TYPE_CHECKING:
    from genkit.pipeline import Params, Pipeline

__all__ = [
    "Input",
    "ModelUsed",
    "Provenance",
    "Rendered",
    "decode",
    "digest_file",
    "media_class",
    "open_media",
    "read",
    "read_parameters",
    "read_text",
    "sidecar",
]

SCHEMA = 1
MAX_BYTES = 1 << 20  # what Pillow reads of one text in a PNG

_CLOSED = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)
_AS_IT_IS: dict[str, dict[str, Any]] = {"image": {"background": None}, "midi": {"empty": True}}
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
RenderedKind = Literal["audio", "image", "notation"]
Text = Annotated[str, StringConstraints(max_length=8192)]


@pydantic.dataclasses.dataclass(frozen=True, config=_CLOSED)
class Input:
    """A file or value that went in. path: as it was given, None for a value in memory; sha256: of the file's bytes, or
    of a value's content (`digest()`)."""

    sha256: Sha256
    path: Text | None = None


@pydantic.dataclasses.dataclass(frozen=True, config=_CLOSED)
class ModelUsed:
    """A model by the name it was asked for by, and what its content is known by."""

    ref: Text
    digest: Text


@pydantic.dataclasses.dataclass(frozen=True, config=_CLOSED)
class Rendered:
    """What a piece of music was made into after the pipeline had made it. soundfont: of a sound; without a path it is
    the one that comes with genkit's requirements."""

    kind: RenderedKind
    soundfont: Input | None = None


@pydantic.dataclasses.dataclass(frozen=True, config=_CLOSED)
class Provenance:
    """The record of one media value.

    version: of the pipeline; model: as named, None for the default; models: what that came to, by role; params: as
    `Params.record()`; inputs: by field; runtime: as `Runtime.describe()`; index: which of several values of one output;
    count: how many these are, None for one alone;
    rendered: set if the file is a rendering of that value; found: as `Output.found`;
    job: the identity of a batch's job; encoding: the options it was saved with; content: sha256 of the decoded value;
    genkit: the version that made it.
    """

    pipeline: Name
    version: int
    params: dict[str, JsonValue]
    model: Text | None = None
    models: dict[str, ModelUsed] = Field(default_factory=dict)
    inputs: dict[str, Input] = Field(default_factory=dict)
    runtime: dict[str, Text] = Field(default_factory=dict)
    index: Annotated[int, Field(ge=0)] = 0
    count: Annotated[int, Field(ge=2)] | None = None
    rendered: Rendered | None = None
    found: dict[str, JsonValue] = Field(default_factory=dict)
    job: Name | None = None
    encoding: dict[str, int | str | bool] = Field(default_factory=dict)
    content: Sha256 | None = None
    genkit: Name = __version__
    schema: int = SCHEMA

    @classmethod
    def of(cls, pipeline: Pipeline, params: Params) -> Provenance:
        """The record of what a pipeline is about to make. Reads inputs and models for their digests."""
        from genkit import weights

        model = None if pipeline.model is None else str(pipeline.model)
        refs = pipeline.model_refs(model, params)
        return cls(
            pipeline=pipeline.name,
            version=pipeline.version,
            params=params.record(),
            model=model,
            models={role: ModelUsed(str(ref), weights.digest(ref, pipeline.models)) for role, ref in refs.items()},
            inputs=_inputs(params),
            runtime=pipeline.runtime.describe(),
        )

    def at(self, index: int, count: int | None = None) -> Provenance:
        """The record of the index-th value of the same output. count: how many it has."""
        return dataclasses.replace(self, index=index, count=None if count == 1 else count)

    def to_json(self) -> str:
        """One line; the same record gives the same text."""
        stated = {key: value for key, value in vars(self).items() if value not in (None, {})}
        stated["params"] = self.params
        return _LINE.encode(stated)

    @classmethod
    def from_json(cls, text: str | bytes, *, name: str = "the record") -> Provenance:
        """Validated. Raises MediaError, one line that `name` opens."""
        if len(text) > MAX_BYTES:
            raise MediaError(f"{name} has {len(text)} bytes; at most {MAX_BYTES} are read")
        try:
            parsed = pydantic_core.from_json(text, allow_inf_nan=False)
        except ValueError as error:
            raise MediaError(f"{name} is not JSON: {str(error)[:80]}") from None
        schema = parsed.get("schema") if isinstance(parsed, dict) else None
        if isinstance(schema, int) and schema > SCHEMA:
            raise MediaError(f"{name} is of schema {schema}, from a newer genkit; update genkit to read it")
        try:
            return _RECORD.validate_json(text)
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))[:80]
            raise MediaError(f"{name} is not valid: {where + ': ' if where else ''}{first['msg']}") from None


_RECORD = TypeAdapter(Provenance)
_LINE = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False, default=vars)


def _inputs(params: Params) -> dict[str, Input]:
    return {name: _input(value, params.file_kind(name)) for name, value in params.files().items()}


def _input(value: Any, kind: str) -> Input:
    if isinstance(value, str | Path):
        return Input(digest_file(value), str(value))
    return Input(media_class(kind).open(value).digest())


def digest_file(path: str | Path) -> str:
    """sha256 (hex) of a file's bytes. Raises MediaError if it cannot be read."""
    with files.open_regular(path) as file:
        return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()


def media_class(kind: str) -> Any:
    """Image, Audio, Notation or Midi, imported when it is asked for."""
    if kind == "image":
        from genkit.media.image import Image

        return Image
    if kind == "audio":
        from genkit.media.audio import Audio

        return Audio
    if kind == "notation":
        from genkit.media._notation import Notation

        return Notation
    from genkit.media.midi import Midi

    return Midi


def decode(data: bytes | Path, kind: str) -> Any:
    """A media value as a file of genkit's own holds it: without a background, a limit on its size, or a need of notes.

    Raises MediaError.
    """
    source = io.BytesIO(data) if isinstance(data, bytes) else data
    limits = {"image": {"max_pixels": sys.maxsize}, "audio": {"max_samples": sys.maxsize}}.get(kind, {})
    return media_class(kind).open(source, **_AS_IT_IS.get(kind, {}), **limits)


def open_media(path: str | Path) -> Any:
    """The Image, Audio, Midi or Notation in a file, by its content, as the file holds it; a long sound as a Recording,
    of which nothing is read yet. Raises MediaError."""
    found = files.kind_of(path)
    if found is None:
        raise MediaError(f"{str(path)!r} is no picture, sound, MIDI file or score that genkit knows")
    if found[0] == "audio":
        from genkit.media import recording

        return recording.sound(path)
    return media_class(found[0]).open(path, **_AS_IT_IS.get(found[0], {}))


def sidecar(path: str | Path) -> Path:
    """Where a file's record is if it is not in the file: `NAME.genkit.json` beside it."""
    path = Path(path)
    return path.with_name(path.name + ".genkit.json")


def read(path: str | Path) -> Provenance | None:
    """The record of a file: the one inside it, else the one beside it; None if there is neither.

    Raises MediaError: the file cannot be opened, or a record is there and is not valid.
    """
    text, name = read_text(path)
    return None if text is None else Provenance.from_json(text, name=name)


def read_text(path: str | Path) -> tuple[str | bytes | None, str]:
    """The same as it stands there, whatever it says, and what to call it. Raises MediaError."""
    with files.open_regular(path) as file:
        found = files.sniff(file.read(files.HEAD))
        file.seek(0)
        text = _embed.find_record(file, found[1], str(path)) if found else None
    name = f"the genkit record in {str(path)!r}"
    beside = sidecar(path)
    if text is None and beside.is_file():
        with files.open_regular(beside) as file:
            text, name = file.read(MAX_BYTES + 1), f"the genkit record {str(beside)!r}"
    return text, name


def read_parameters(path: str | Path) -> dict[str, Any] | None:
    """What a tool wrote of how a picture was made (`parameters`, as A1111 has it), as a dict; None if none is."""
    with files.open_regular(path) as file:
        found = files.sniff(file.read(files.HEAD))
        file.seek(0)
        text = _embed.find_parameters(file, found[1], str(path)) if found else None
    return parameters.parse(text) if text else None
