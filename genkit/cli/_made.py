"""What `inspect` and `rerun` share: where the inputs of a recorded file are now, and whether they are what they were.

A path is looked for as it was recorded, then beside the file, first with its folders and then by its name alone; there
the content must be the same, since any file may be called photo.jpg.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from genkit.cli._common import one_line
from genkit.errors import MediaError
from genkit.fields import expanded

if TYPE_CHECKING:
    from genkit.media.provenance import Input, Provenance

__all__ = ["SOUNDFONT", "Found", "find_inputs", "one_line"]

SOUNDFONT = "soundfont"


@dataclass(frozen=True)
class Found:
    """An input of a recorded file. state: "unchanged", "changed", "missing", or "memory" (it never was a file)."""

    field: str
    recorded: Input
    path: Path | None
    state: str


def find_inputs(record: Provenance, file: Path, named: Mapping[str, Path], kind: Callable[[str], str]) -> list[Found]:
    """named: paths to take instead, by field; kind: of a field's file, to compare what was in memory.

    The soundfont of a rendered sound is an input too, called SOUNDFONT.
    """
    found = [_find(field, given, file, named.get(field), kind) for field, given in record.inputs.items()]
    played = record.rendered and record.rendered.soundfont
    return [*found, _find_soundfont(played, file, named.get(SOUNDFONT))] if played else found


def _find_soundfont(recorded: Input, file: Path, named: Path | None) -> Found:
    """Without a path it is the one that comes with genkit's requirements, wherever that is now."""
    from genkit.media import midi

    if named is not None or recorded.path is not None:
        return _find(SOUNDFONT, recorded, file, named, lambda _: "")
    try:
        path = midi.soundfont()
    except MediaError:
        return Found(SOUNDFONT, recorded, None, "missing")
    return Found(SOUNDFONT, recorded, path, "unchanged" if _digest(path) == recorded.sha256 else "changed")


def _find(field: str, recorded: Input, file: Path, named: Path | None, kind: Callable[[str], str]) -> Found:
    if named is not None:
        same = _digest(named, kind(field) if recorded.path is None else None) == recorded.sha256
        return Found(field, recorded, named, "unchanged" if same else "changed")
    if recorded.path is None:
        return Found(field, recorded, None, "memory")
    path = expanded(recorded.path)
    there = [place for place in (path, file.parent / path, file.parent / path.name) if _is_file(place)]
    for place in there:
        if _digest(place) == recorded.sha256:
            return Found(field, recorded, place, "unchanged")
    if path in there:
        return Found(field, recorded, path, "changed")
    return Found(field, recorded, None, "missing")


def _is_file(path: Path) -> bool:
    """Whether a recorded name, which may be anything, is a file's. What the kernel shows of itself as files is none:
    some of that cannot be read, and some has no end."""
    try:
        return path.is_file() and not any(path.resolve().is_relative_to(place) for place in ("/proc", "/sys"))
    except (OSError, ValueError):  # too long, or with a NUL in it
        return False


def _digest(path: Path, kind: str | None = None) -> str | None:
    """Of the file's bytes, or with a kind of the media value in it; None if it cannot be read."""
    from genkit.media import provenance

    try:
        return provenance.media_class(kind).open(path).digest() if kind else provenance.digest_file(path)
    except (MediaError, OSError):  # no such file, or one that a failing disk does not give
        return None
