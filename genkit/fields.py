"""The parameter types: what a field means beyond its Python type.

A field is declared once, in a pipeline's `Params`:

    size: Annotated[int, Pixels(64, 8192)] = Field(512, description="Longer side of the result.")

and from that one line come validation, the command-line flag, the JSON Schema of recipes and the widget of the page.
The hints travel in the schema under `x-genkit`; nothing downstream reads anything but the schema and the type.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, GroupedMetadata, Le, MaxLen, MinLen, MultipleOf
from pydantic import AfterValidator, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

__all__ = [
    "MAX_SEED",
    "AudioFile",
    "File",
    "Hint",
    "ImageFile",
    "MidiFile",
    "ModelFile",
    "ModelRef",
    "Number",
    "Pixels",
    "Prompt",
    "Seed",
    "Slider",
    "Steps",
    "expanded",
    "way",
]

MAX_SEED = 2**53 - 1  # the largest integer that survives JSON in every reader, a browser's included


@dataclass(frozen=True)
class Hint:
    """What a form, a flag or a schema shows of a field. Emitted as `x-genkit` in its JSON Schema.

    kind: "number", "slider", "text", "seed", "image", "audio", "midi", "model"; unit: as printed ("px", "Hz", "%");
    section: "main" is in sight on a form, any other name is a folded group of its own; short: a one-letter flag.
    """

    kind: str = ""
    unit: str = ""
    section: str = ""
    short: str = ""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        json_schema = handler(schema)
        stated = {key: value for key, value in vars(self).items() if value}
        json_schema["x-genkit"] = {**json_schema.get("x-genkit", {}), **stated}
        return json_schema


@dataclass(frozen=True)
class Number(GroupedMetadata):
    """A bounded number, both ends included. `unit` is printed behind it."""

    ge: float
    le: float
    unit: str = ""
    multiple_of: int | None = None
    kind: str = "number"

    def __iter__(self) -> Iterator[object]:
        yield Ge(self.ge)
        yield Le(self.le)
        if self.multiple_of:
            yield MultipleOf(self.multiple_of)
        yield Hint(kind=self.kind, unit=self.unit)


def Pixels(ge: int, le: int, *, multiple_of: int | None = None) -> Number:  # noqa: N802 - reads as a type
    """A length in pixels."""
    return Number(ge, le, "px", multiple_of)


def Steps(ge: int, le: int) -> Number:  # noqa: N802
    """A count of iterations."""
    return Number(ge, le, "steps")


def Slider(ge: float, le: float, unit: str = "") -> Number:  # noqa: N802
    """A number that people set by feel: a slider on the page."""
    return Number(ge, le, unit, kind="slider")


# DEL, the C1 controls, and the marks and overrides of bidirectional text, which make a text read as another.
_INVISIBLE = frozenset(
    map(chr, [*range(0x7F, 0xA0), 0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)])
)


def _printable(text: str) -> str:
    bad = next((c for c in text if (c < " " and c not in "\t\n\r") or c in _INVISIBLE), None)
    if bad is not None:
        raise PydanticCustomError(
            "control", "holds the control character {code}; remove it", {"code": f"U+{ord(bad):04X}"}
        )
    return text


Seed = Annotated[int | None, Ge(0), Le(MAX_SEED), Hint(kind="seed")]
Prompt = Annotated[str, MaxLen(10_000), AfterValidator(_printable), Hint(kind="text")]


class File:
    """A file to read: a path, or a media value already in memory (genkit's own, a PIL picture, a NumPy array).

    Validation checks that a path exists and is an ordinary file; what is in it is checked by the reader. The context
    `{"root": folder}` resolves relative paths against a folder, `{"unchecked": True}` leaves existence for later
    (a recipe's later stage names files that an earlier one has yet to make).
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(
            self._validate, serialization=core_schema.plain_serializer_function_ser_schema(self._name, when_used="json")
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "string", "format": "path", "x-genkit": {"kind": self.kind}}

    def _name(self, value: Any) -> str:
        """The path; for a value in memory what it holds, so that equal pictures have equal names."""
        if isinstance(value, Path):
            return str(value)
        if hasattr(value, "digest"):
            return f"<{self.kind} in memory, {value.digest()}>"
        digest = hashlib.sha256(
            f"{getattr(value, 'mode', '')}{value.shape if hasattr(value, 'shape') else value.size}".encode()
        )
        digest.update(value.tobytes())
        return f"<{self.kind} in memory, {digest.hexdigest()}>"

    def _validate(self, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, str | os.PathLike):
            if hasattr(value, "__genkit_media__") or type(value).__module__.split(".")[0] in ("PIL", "numpy"):
                return value
            raise PydanticCustomError(
                "file", "is not a file name; give the path of a file of kind {kind}", {"kind": self.kind}
            )
        context = info.context or {}
        text = os.fspath(value)
        if not text or "\x00" in text:
            raise PydanticCustomError("file", "is not a file name; give the path of a file")
        if any("\ud800" <= character <= "\udfff" for character in text):  # bytes that no JSON record can hold
            raise PydanticCustomError("file", "is a name that is not UTF-8; rename the file")
        path = expanded(text)
        if "root" in context and not path.is_absolute():
            path = Path(context["root"]) / path
        if not context.get("unchecked"):
            _check_regular(path)
        return path


def _check_regular(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise PydanticCustomError("file", "{reason}; check the path", {"reason": reason}) from None
    if stat.S_ISDIR(mode):
        raise PydanticCustomError("file", "is a folder; name one file (a recipe's `files:` takes a folder's)")
    if not stat.S_ISREG(mode):
        raise PydanticCustomError("file", "is no ordinary file (a pipe or a device); save it as a file first")
    if not os.access(path, os.R_OK):
        raise PydanticCustomError("file", "is not readable; check its permissions")


def expanded(path: str | os.PathLike[str]) -> Path:
    """With the home folder for "~". A name that begins with the "~" of nobody here is taken as it stands."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def way(name: str) -> list[str | int]:
    """To a file as `Params.files()` names it: "control[0].image" is ["control", 0, "image"]."""
    parts = re.findall(r"\[\d{1,9}\]|[^.\[\]]+", name)
    return [int(part[1:-1]) if part.startswith("[") else part for part in parts]


def _from_root(ref: str, info: ValidationInfo) -> str:
    """A file or folder that is there is meant before an alias or a hub id of the same spelling."""
    root = (info.context or {}).get("root")
    try:
        path = Path(root or ".") / expanded(ref)
        return str(path) if root is not None and path.exists() else ref
    except (OSError, ValueError):  # no name that a file could have
        return ref


ModelRef = Annotated[str, MinLen(1), MaxLen(1000), AfterValidator(_from_root), Hint(kind="model")]
"""A model beside the pipeline's own: an alias, a hub id, a folder or a file."""
ImageFile = Annotated[Any, File("image")]
AudioFile = Annotated[Any, File("audio")]
MidiFile = Annotated[Any, File("midi")]
ModelFile = Annotated[Any, File("model")]
