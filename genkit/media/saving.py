"""How a media value becomes a file: encoded, read back, its record put into it, and only then given its name."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genkit.errors import MediaError
from genkit.media import _embed, files, parameters
from genkit.media.provenance import Provenance, decode, read_text, sidecar

if TYPE_CHECKING:
    from genkit.media.recording import Recording

__all__ = ["as_saved", "save"]


@contextlib.contextmanager
def as_saved(value: Any, format: str, options: dict[str, Any]) -> Iterator[Any]:
    """A value as a file of a format gives it back, after JPEG's or MP3's loss. Raises MediaError."""
    from genkit.media import recording

    if not isinstance(value, recording.Recording):
        yield decode(value.encoded(format, **options), value.__genkit_media__)
        return
    with tempfile.TemporaryDirectory(prefix="genkit-", dir=recording.scratch_folder()) as folder:
        path = Path(folder) / "sound"
        value.encode(path, format, **options)
        yield recording.Recording.open(path)


def save(value: Any, path: str | Path, provenance: Provenance | None, options: dict[str, Any]) -> Path:
    """Writes a media value with its record, atomically. options: of its `encoded`, and `sidecar=True` for the record
    beside the file as well. What `Image.save`, `Audio.save` and `Midi.save` do. Raises MediaError, DiskFull."""
    options = dict(options)
    beside = options.pop("sidecar", False)
    path = files.check_target(path, value.__genkit_media__)
    format = files.file_format(path, value.__genkit_media__)
    if hasattr(value, "encode"):
        return _save_long(value, path, format, provenance, options, beside)
    data = value.encoded(format, **options)
    decoded = decode(data, value.__genkit_media__)  # a file that does not read back is never written
    if provenance is None:
        return files.atomic_write(path, data)
    record = dataclasses.replace(provenance, content=decoded.digest(), encoding=options)
    text = record.to_json()
    embedded = _embed.place(value, data, format, text, _parameters(record, decoded), options)
    if embedded is None or beside:
        _write_beside(path, text)
    try:
        return files.atomic_write(path, embedded or data, check=_check(text) if embedded else None)
    except BaseException:
        if embedded is None or beside:
            with contextlib.suppress(OSError):
                sidecar(path).unlink()
        raise


def _save_long(
    value: Recording, path: Path, format: str, provenance: Provenance | None, options: dict[str, Any], beside: bool
) -> Path:
    """The same for a sound on disk, in memory that does not grow with it."""
    written = False

    def content(temporary: Path) -> None:
        nonlocal written
        value.encode(temporary, format, **options)
        decoded = type(value).open(temporary)
        digest = decoded.digest()  # reads all of it: a file that does not read back is never written
        if provenance is None:
            return
        record = dataclasses.replace(provenance, content=digest, encoding=options)
        text = record.to_json()
        with temporary.open("r+b") as file:
            embedded = _embed.tag(file, format, text, _parameters(record, decoded))
        if embedded:
            _check(text)(temporary)
        if beside or not embedded:
            _write_beside(path, text)
            written = True

    try:
        return files.atomic_write(path, content)
    except BaseException:
        if written:
            with contextlib.suppress(OSError):
                sidecar(path).unlink()
        raise


def _write_beside(path: Path, text: str) -> None:
    """First the record, then the file: should the machine stop in between, a record without a file harms nobody."""
    files.atomic_write(sidecar(path), text.encode() + b"\n")


def _check(text: str) -> Any:
    def check(temporary: Path) -> None:
        found, name = read_text(temporary)
        record = None if found is None else Provenance.from_json(found, name=name)
        if record is None or (found != text and record.to_json() != text):
            raise MediaError(f"{str(temporary)!r}: the record written does not read back")

    return check


def _parameters(record: Provenance, decoded: Any) -> str:
    """For other tools, with what was found where nobody stated it. The seed of the index-th of several is `seed` +
    index, where `found` does not list their `seeds`."""
    stated = {name: value for name, value in record.params.items() if name not in record.inputs and value != []}
    params = {name: record.found[name] for name in parameters.SETTLED if name in record.found} | stated
    seeds = record.found.get("seeds")
    if isinstance(seeds, list) and record.index < len(seeds):
        params["seed"] = seeds[record.index]
    elif isinstance(params.get("seed"), int):
        params["seed"] += record.index  # type: ignore[operator]
    size = decoded.size if decoded.__genkit_media__ == "image" else None
    used = record.models.get("model")
    model = record.model or (used.ref if used else record.pipeline)
    return parameters.text(params, size=size, model=Path(model).name, version=f"genkit {record.genkit}")
