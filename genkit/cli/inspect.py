"""Say what a file is and how it was made; of a model, which one it is.

Takes any picture, sound, MIDI file or score: one that genkit made carries its record inside, and other tools leave
theirs. Takes a model too, a file, a folder or an alias: every pipeline is asked whether it knows it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from genkit import registry
from genkit.cli import _common, _made, _models
from genkit.errors import GenkitError, MediaError

if TYPE_CHECKING:
    from genkit.media.provenance import Provenance


@click.command
@click.argument("file", type=click.Path(path_type=Path))
@_common.json_option
def command(file: Path, as_json: bool) -> None:
    """Say what FILE is and how it was made: pipeline, model, parameters, and whether its inputs are still there.

    Of a model (a file, a folder or an alias): architecture, size, and what it was trained with.
    """
    model = _models.find(file)
    facts = describe(file) if model is None else _models.describe(model)
    if as_json:
        _common.echo_json(facts)
        return
    rows = _rows(facts) if model is None else _models.rows(facts)
    width = max(12, *(len(name) + 1 for name, _ in rows))
    for name, value in rows:
        _common.data(f"{name + ':':<{width}} {_made.one_line(value)}")


def describe(file: Path) -> dict[str, Any]:
    """What is known of a file, as JSON values. Raises MediaError for a file that is no media or is damaged."""
    from genkit.media import files, provenance

    value = provenance.open_media(file)
    kind, format = files.kind_of(file) or ("", "")
    facts: dict[str, Any] = {"file": str(file), "kind": kind, "format": format, "is": _size(value, kind)}
    facts["content"] = value.digest()
    try:
        record = provenance.read(file)
    except MediaError as error:  # the file is there and sound; only the word on its making is not
        return facts | {"made": None, "note": str(error)}
    if record is None:
        facts |= {"made": None, "note": "no genkit record: made by another tool, or the record was removed"}
        other = provenance.read_parameters(file)
        return facts | ({"parameters": other} if other else {})
    facts["as_written"] = record.content == facts["content"]
    return facts | {"made": dataclasses.asdict(record), "inputs": _inputs(record, file)}


def _size(value: Any, kind: str) -> dict[str, Any]:
    if kind == "image":
        return {"width": value.size[0], "height": value.size[1], "alpha": value.alpha is not None}
    if kind == "audio":
        return {"seconds": round(value.duration, 3), "channels": value.channels, "sample_rate": value.sample_rate}
    if kind == "notation":
        return {"parts": value.parts, "bars": value.measures, "notes": value.notes}
    return {"seconds": round(value.duration, 3), "tracks": len(value.score.tracks), "notes": value.notes}


def _inputs(record: Provenance, file: Path) -> list[dict[str, Any]]:
    kind: Callable[[str], str]
    try:
        kind = registry.get(record.pipeline).Params.file_kind
    except GenkitError:  # of a pipeline that is not installed the record can be read all the same
        kind = _unknown
    return [
        {"field": one.field, "recorded": one.recorded.path, "path": one.path and str(one.path), "state": one.state}
        for one in _made.find_inputs(record, file, {}, kind)
    ]


def _unknown(field: str) -> str:
    return ""


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("file", facts["file"]),
        ("is", f"{facts['kind']}, {facts['format']}, {_words(facts['is'])}"),
        ("content", f"sha256 {facts['content']}"),
    ]
    made = facts["made"]
    if made is None:
        rows.append(("made by", facts["note"]))
        return rows + [(f"  {name}", str(value)) for name, value in facts.get("parameters", {}).items()]
    if not facts["as_written"]:
        rows.append(("", "changed since genkit wrote it"))
    rows.append(("made by", f"{made['pipeline']} (version {made['version']}), genkit {made['genkit']}"))
    if made["model"]:
        rows.append(("model", made["model"]))
    rows += [(f"  {role}", f"{model['ref']} ({model['digest']})") for role, model in made["models"].items()]
    rows += [("params", "")] + [(f"  {name}", str(value)) for name, value in made["params"].items()]
    rows += [("found", "")] * bool(made["found"]) + [(f"  {k}", str(v)) for k, v in made["found"].items()]
    if made["index"]:
        rows.append(("index", f"{made['index']} (counted from 0, of several from one run)"))
    if made["rendered"]:
        rows.append(("rendered", _rendering(made["pipeline"], made["rendered"]["kind"])))
    for one in facts["inputs"]:
        unnamed = "the default one" if one["field"] == _made.SOUNDFONT else "a value in memory"
        rows.append(("input", f"{one['field']}: {one['recorded'] or unnamed} ({_STATES[one['state']]})"))
    rows.append(("on", ", ".join(f"{name} {value}" for name, value in made["runtime"].items())))
    return rows + ([("job", made["job"])] if made["job"] else [])


_RENDERED = {
    "midi": {"audio": "the sound of the piece", "image": "the piano roll", "notation": "the piece as notation"},
    "audio": {"image": "the spectrogram"},
}


def _rendering(pipeline: str, kind: str) -> str:
    try:
        return _RENDERED[registry.get(pipeline).produces][kind]
    except (GenkitError, KeyError):  # the pipeline is not installed here, or another one by now
        return f"as {kind}"


_STATES = {
    "unchanged": "still there, unchanged",
    "changed": "changed since",
    "missing": "not there any more",
    "memory": "never a file",
}


def _words(size: dict[str, Any]) -> str:
    if "width" in size:
        return f"{size['width']} x {size['height']} px" + (", with transparency" if size["alpha"] else "")
    if "channels" in size:
        return f"{size['seconds']} s, {size['channels']} channels, {size['sample_rate']} Hz"
    if "bars" in size:
        return f"{size['parts']} parts, {size['bars']} bars, {size['notes']} notes"
    return f"{size['seconds']} s, {size['tracks']} tracks, {size['notes']} notes"
