"""Make a file again from the record inside it.

    genkit rerun fox.png                            writes fox-rerun.png
    genkit rerun fox.png --check                    writes nothing, says whether the same comes out
    genkit rerun out.png --input content=moved.jpg

What the file says is somebody else's word: its parameters go through the same validation as anybody's, no file is read
but the inputs that it states with their digests, and no model is fetched that only it names. Results are compared as
they come back from a file of that format, so that --check holds for JPEG and MP3 too.
"""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from genkit import registry
from genkit.cli import _common, _made
from genkit.errors import GenkitError, InputError, MediaError, ModelError
from genkit.fields import expanded, way

if TYPE_CHECKING:
    from genkit.media.provenance import Provenance
    from genkit.pipeline import Output, Params, Pipeline


@click.command
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--output", "-o", metavar="FILE", help="Where to write; replaced if it is there. [default: FILE-rerun]")
@click.option("--check", is_flag=True, help="Compare instead of writing: exit 0 if identical, 1 with what differs.")
@click.option("--input", "inputs", metavar="NAME=PATH", multiple=True, help="Where an input is now.")
@click.option("--force", is_flag=True, help="Go on with inputs that have changed.")
@click.option("--model", "-m", metavar="MODEL", help="Another model. [default: the recorded one]")
@_common.runtime_options
@_common.quiet_option
def command(
    file: Path,
    output: str | None,
    check: bool,
    inputs: tuple[str, ...],
    force: bool,
    model: str | None,
    device: str | None,
    dtype: str | None,
    deterministic: bool,
    quiet: bool,
) -> None:
    """Make FILE again from the record inside it, or --check that the same comes out."""
    from genkit.media import provenance, rendering, saving

    record = provenance.read(file)
    if record is None:
        raise InputError(f"{str(file)!r} holds no genkit record, so there is nothing to make again")
    kind = registry.get(record.pipeline)
    found = _inputs(record, kind, file, _named(inputs), force)
    params = _params(record, kind, found)
    _fetch_nothing(record, kind, params, model)
    rendered = record.rendered
    makes = rendered.kind if rendered else kind.produces
    target = _target(file, output, makes) if output or not check else None
    original = provenance.open_media(file) if check else None  # before the work: a damaged file ends it here
    loaded = registry.load(
        record.pipeline,
        model=model or record.model,
        device=device,
        dtype=dtype or record.runtime.get("dtype"),
        deterministic=deterministic or record.runtime.get("deterministic") == "true",
    )
    changes = [f"input {one.field!r} has changed" for one in found if one.state == "changed"]
    changes += _changes(record, loaded, params)
    if changes and not quiet and not check:
        _common.note(f"the result may differ: {'; '.join(changes)}")
    with _common.progress_bar(record.pipeline, quiet=quiet) as progress:
        output_made = loaded.generate([params], progress)[0]
    value = _value(file, record, output_made)
    if rendered:
        value = _rendering(value, rendered.kind, _soundfont(found, inputs), output_made.before)
    if target is not None:
        made = output_made.provenance and output_made.provenance.at(record.index, record.count)
        if rendered and made:
            made = rendering.record(made, rendered.kind, _soundfont(found, inputs))
        _write(value, target, file, record, made)
    if original is not None:
        with saving.as_saved(value, _format(file), record.encoding) as again:
            _compare(file, record, original, again, changes)


def _value(file: Path, record: Provenance, made: Output) -> Any:
    """The one of several values that the file is."""
    if record.index >= len(made.media):
        raise GenkitError(f"{str(file)!r} is number {record.index + 1} of its run, which now makes {len(made.media)}")
    return made.media[record.index]


def _rendering(value: Any, kind: str, soundfont: Path | None, before: Any) -> Any:
    """What the file shows or plays of a piece or sound. Raises GenkitError where none is made any more."""
    from genkit.media import rendering

    if kind not in rendering.SUFFIXES.get(value.__genkit_media__, {}).values():
        raise GenkitError(f"the file is a rendering, and of what the pipeline now makes there is none ({value!r})")
    return rendering.make(value, kind, soundfont, before)


def _soundfont(found: list[_made.Found], inputs: tuple[str, ...]) -> Path | None:
    """The one that was named, then or now; None for the default, whose place belongs in no record."""
    for one in found:
        if one.field == _made.SOUNDFONT and (one.recorded.path is not None or one.field in _named(inputs)):
            return one.path
    return None


def _write(value: Any, target: Path, file: Path, record: Provenance, made: Provenance | None) -> None:
    """With the options that the file was saved with, if it is of the same format."""
    from genkit.media import files

    options = record.encoding if files.file_format(target, value.__genkit_media__) == _format(file) else {}
    value.save(target, provenance=made, **options)
    _common.data(str(target))


def _format(file: Path) -> str:
    from genkit.media import files

    found = files.kind_of(file)
    return found[1] if found else ""


def _named(inputs: tuple[str, ...]) -> dict[str, Path]:
    named = {}
    for text in inputs:
        field, sign, path = text.partition("=")
        if not sign or not path:
            raise InputError(f"--input {text!r} is not valid: give NAME=PATH, such as content=photo.jpg")
        named[field] = expanded(path)
    return named


def _inputs(
    record: Provenance, kind: type[Pipeline], file: Path, named: dict[str, Path], force: bool
) -> list[_made.Found]:
    """Every input where it is now. Raises InputError for one that is not there or, without `force`, has changed."""
    found = _made.find_inputs(record, file, named, kind.Params.file_kind)
    known = [one.field for one in found]
    if unknown := set(named) - set(known):
        listed = ", ".join(known) or "none"
        raise InputError(f"--input {min(unknown)!r} is no input of {str(file)!r}; its inputs are: {listed}")
    for one in found:
        _check(one, force)
    return found


def _params(record: Provenance, kind: type[Pipeline], found: list[_made.Found]) -> Params:
    """The recorded parameters with their files where they are now, validated. Raises InputError."""
    values = copy.deepcopy(record.params)
    for one in found:
        if one.field in record.inputs:  # a soundfont is no parameter
            _put(values, one.field, str(one.path))
    params = kind.Params.parse(values, unchecked=True)
    for name, path in params.files().items():
        if name not in record.inputs:
            raise InputError(
                f"{name} {str(path)!r} stands in the record, but not among the inputs with their digests, so it is not "
                f"read; run `genkit {kind.name}` with it if it is meant"
            )
    return kind.Params.parse(values)


def _fetch_nothing(record: Provenance, kind: type[Pipeline], params: Params, named: str | None) -> None:
    """Raises ModelError for a model that would be fetched and that neither the pipeline nor the reader has named."""
    from genkit import weights

    for role, ref in kind.model_refs(named or record.model, params).items():
        if ref != named and ref not in kind.models and not weights.here(ref, kind.models):
            raise ModelError(
                f"the record's {role} {ref!r} is not on this machine, and a file's word fetches nothing: "
                "fetch it yourself if you trust it, or name a model with --model"
            )


def _check(found: _made.Found, force: bool) -> None:
    digest, remedy = found.recorded.sha256[:12], f"--input {found.field}=PATH"
    if found.path is not None and not found.path.is_file():
        raise InputError(f"input {found.field!r}: {str(found.path)!r} does not exist; check the path")
    if found.state == "memory":
        raise InputError(f"input {found.field!r} was a value in memory (sha256 {digest}...), not a file; give {remedy}")
    if found.state == "missing":
        was = f"{found.recorded.path or 'its default place'!r} (sha256 {digest}...)"
        raise InputError(f"input {found.field!r} is not at {was} any more; say where it is: {remedy}")
    if found.state == "changed" and not force:
        raise InputError(
            f"input {found.field!r}: {str(found.path)!r} is not what it was (sha256 {digest}...); "
            f"give the old one by {remedy}, or go on with --force"
        )


def _put(values: Any, field: str, path: str) -> None:
    """field: "content", "style[0]" for one of a list, "control[0].image" for one in an object.

    Raises MediaError if the record has no such parameter."""
    *there, last = way(field) or [""]
    try:
        for part in there:
            values = values[part]
        if isinstance(values, dict) and last not in values:
            raise KeyError(last)
        values[last] = path
    except (KeyError, IndexError, TypeError):
        raise MediaError(f"the genkit record names an input {field!r} that its parameters have not") from None


def _target(file: Path, output: str | None, kind: str) -> Path:
    """The path named, or a free one beside the file; asked before anything is computed."""
    from genkit.media import files

    if output is not None:
        return files.check_target(output, kind)
    stems = itertools.chain([f"{file.stem}-rerun"], (f"{file.stem}-rerun_{n}" for n in itertools.count(2)))
    return files.check_target(next(path for stem in stems if not (path := file.with_stem(stem)).exists()), kind)


def _changes(record: Provenance, loaded: Pipeline, params: Params) -> list[str]:
    """What is not as it was when the file was made, in words."""
    from genkit import weights

    changes = []
    if record.version != loaded.version:
        changes.append(f"the pipeline is version {loaded.version}, was {record.version}")
    model = None if loaded.model is None else str(loaded.model)
    for role, ref in loaded.model_refs(model, params).items():
        was = record.models.get(role)
        try:
            now = weights.digest(ref, loaded.models)
        except ModelError as error:
            now = str(error)
        if was is None or was.digest != now:
            changes.append(f"the {role} {str(ref)!r} is not what it was ({now}, was {was.digest if was else 'none'})")
    now_on = loaded.runtime.describe()
    names = sorted(set(record.runtime) | set(now_on))
    pairs = [(name, now_on.get(name, "not known"), record.runtime.get(name, "not recorded")) for name in names]
    return changes + [f"{name} is {now}, was {was_on}" for name, now, was_on in pairs if now != was_on]


def _compare(file: Path, record: Provenance, original: Any, again: Any, changes: list[str]) -> None:
    """Says "identical", or raises GenkitError with what differs and what may be why."""
    if original.digest() == again.digest():
        _common.data("identical")
        return
    why = list(changes)
    if record.content and original.digest() != record.content:
        verdict = "and what was made then comes out" if again.digest() == record.content else ""
        why.insert(0, f"the file was changed since it was made {verdict}".strip())
    if not why and record.job and registry.get(record.pipeline).together > 1:
        why = ["no recorded fact has changed; it may have shared a pass with other jobs, which changes the last bits"]
    reason = "; ".join(why) or "no recorded fact has changed"
    raise GenkitError(f"{str(file)!r} differs from what is made now: {_difference(original, again)} ({reason})")


def _difference(original: Any, again: Any) -> str:
    import numpy as np

    if original.__genkit_media__ == "image":
        if original.size != again.size or original.pil.mode != again.pil.mode:
            return f"{original.size[0]} x {original.size[1]} px, now {again.size[0]} x {again.size[1]}"
        apart = np.abs(np.asarray(original.pil, np.int16) - np.asarray(again.pil, np.int16))
        return f"pixels by at most {apart.max()} of 255, {apart.mean():.3g} on the mean"
    if original.__genkit_media__ == "audio":
        from genkit.media import recording

        shapes = [(sound.channels, sound.frames, sound.sample_rate) for sound in (original, again)]
        if shapes[0] != shapes[1]:
            return f"{original!r}, now {again!r}"
        most, mean = recording.difference(original, again)
        return f"samples by at most {most:.3g} of 1, {mean:.3g} on the mean"
    if original.__genkit_media__ == "notation":
        return f"{original!r}, now {again!r}"
    ours, theirs = _notes(original), _notes(again)
    return f"{len(ours - theirs)} of {len(ours)} notes are not made now, {len(theirs - ours)} of {len(theirs)} are new"


def _notes(value: Any) -> set[tuple[int, ...]]:
    return {
        (i, note.time, note.duration, note.pitch, note.velocity)
        for i, track in enumerate(value.score.tracks)
        for note in track.notes
    }
