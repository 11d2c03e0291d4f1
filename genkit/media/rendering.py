"""What a piece of music or a sound comes out as besides its own file. The suffix says which.

    a piece    .wav .flac .ogg .mp3     its sound, played with a soundfont
               .png                     its piano roll
               .musicxml .xml .mxl      its notation, if music21 is installed
    a sound    .png                     its spectrogram, under that of the sound it was made from, if there was one

The command line, recipes and `Output.render` all come here. A rendering's record is that of the piece or sound, with a
word on what was made of it: making the file again makes the piece again and renders it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genkit.errors import MediaError
from genkit.media import files

if TYPE_CHECKING:
    from genkit.media.image import Image
    from genkit.media.provenance import Provenance, RenderedKind
    from genkit.pipeline import Output

__all__ = ["NOUNS", "SUFFIXES", "check", "kind_of", "make", "record", "values", "write"]

SUFFIXES: dict[str, dict[str, RenderedKind]] = {
    "midi": {
        **dict.fromkeys(files.SUFFIXES["audio"], "audio"),
        ".png": "image",
        **dict.fromkeys(files.SUFFIXES["notation"], "notation"),
    },
    "audio": {".png": "image"},
}
"""kind of media that is rendered -> suffix -> "audio" (the sound), "image" (roll or spectrogram) or "notation"."""

NOUNS = {"midi": "a piece", "audio": "a sound"}


def kind_of(path: str | Path, of: str = "midi") -> RenderedKind:
    """What a piece or a sound is rendered to at a path: "audio", "image" or "notation".

    of: "midi" or "audio". Raises MediaError, listing the suffixes.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES[of]:
        named = f"{NOUNS[of]} is not rendered to {suffix!r}" if suffix else "a suffix is missing"
        raise MediaError(f"{str(path)!r}: {named}; use one of {', '.join(SUFFIXES[of])}")
    return SUFFIXES[of][suffix]


def check(paths: Sequence[str | Path], soundfont: str | Path | None = None, of: str = "midi") -> list[Path]:
    """Whether renderings can be written to `paths`, asked before anything is computed. Makes missing folders.

    of: what is rendered, "midi" or "audio". Raises MediaError: a suffix or a place that does not fit, a file named
    twice, no soundfont, a soundfont without a sound to play, no music21.
    """
    from genkit.media import _notation, midi

    targets = [files.check_target(path, kind_of(path, of)) for path in paths]
    for i, path in enumerate(targets):
        if path.absolute() in [other.absolute() for other in targets[:i]]:
            raise MediaError(f"{str(path)!r} is named twice; render to different files")
    kinds = {kind_of(path, of) for path in targets}
    if soundfont is not None and "audio" not in kinds:
        raise MediaError(f"{str(soundfont)!r}: a soundfont plays a sound, and none is rendered; render a .wav as well")
    if "audio" in kinds:
        midi.soundfont_file(soundfont)
    if "notation" in kinds:
        _notation.check_installed()
    return targets


def make(value: Any, kind: str, soundfont: str | Path | None = None, before: Any = None) -> Any:
    """A rendering of `kind` of a Midi or an Audio: an Audio, an Image or a Notation. before: as `Output.before`.

    Raises MediaError.
    """
    if value.__genkit_media__ == "audio":
        return _spectrogram(value, before)
    if kind == "audio":
        return value.render(soundfont)
    return value.roll() if kind == "image" else value.notation()


def _spectrogram(sound: Any, before: Any) -> Image:
    from genkit.media import recording, spectrogram
    from genkit.media.audio import Audio

    if before is None:
        return sound.spectrogram()
    dull = before if isinstance(before, Audio) else recording.sound(before)
    return spectrogram.draw({"before": dull, "after": sound})


def values(output: Output, paths: Sequence[Path], soundfont: str | Path | None = None) -> list[Any]:
    """The rendering for each path; what two files share (a .wav and a .flac) is made once. Raises MediaError."""
    value = _rendered(output)
    kinds = [kind_of(path, value.__genkit_media__) for path in paths]
    made = {kind: make(value, kind, soundfont, output.before) for kind in dict.fromkeys(kinds)}
    return [made[kind] for kind in kinds]


def _rendered(output: Output) -> Any:
    """What of an output is rendered: the piece or the sound, its last value. Raises MediaError."""
    if not output.media or output.media[-1].__genkit_media__ not in SUFFIXES:
        raise MediaError("there is no piece of music and no sound to render; only pipelines that make one have it")
    return output.media[-1]


def record(provenance: Provenance, kind: RenderedKind, soundfont: str | Path | None = None) -> Provenance:
    """The record of a rendering of `kind`, from that of its piece or sound. Reads the soundfont for its digest."""
    from genkit.media import midi
    from genkit.media.provenance import Input, Rendered, digest_file

    played = None
    if kind == "audio":
        # Where the default one lies is a fact of this machine, and looked up again on the next.
        played = Input(digest_file(midi.soundfont_file(soundfont)), None if soundfont is None else str(soundfont))
    return dataclasses.replace(provenance, rendered=Rendered(kind, played))


def write(output: Output, paths: Sequence[str | Path], soundfont: str | Path | None = None) -> list[Path]:
    """Renders an output's piece or sound to each path, atomically, with its record. Returns the paths.

    Raises MediaError (what `check` says, or a piece that cannot be rendered), DiskFull.
    """
    of = _rendered(output).__genkit_media__
    targets = check(paths, soundfont, of)
    of_piece = output.provenance and output.provenance.at(len(output.media) - 1)
    for path, value in zip(targets, values(output, targets, soundfont), strict=True):
        value.save(path, provenance=of_piece and record(of_piece, kind_of(path, of), soundfont))
    return targets
