"""What a piece of music comes out as besides its .mid: its sound, its piano roll, its notation. The suffix says which.

    .wav .flac .ogg .mp3     the sound, played with a soundfont
    .png                     the piano roll
    .musicxml .xml .mxl      the notation, if music21 is installed

The command line, recipes and `Output.render` all come here. A rendering's record is that of the piece, with a word on
what was made of it: making the file again makes the piece again and renders it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genkit.errors import MediaError
from genkit.media import files

if TYPE_CHECKING:
    from genkit.media.midi import Midi
    from genkit.media.provenance import Provenance, RenderedKind
    from genkit.pipeline import Output

__all__ = ["SUFFIXES", "check", "kind_of", "make", "record", "values", "write"]

SUFFIXES: dict[str, RenderedKind] = {
    **dict.fromkeys(files.SUFFIXES["audio"], "audio"),
    ".png": "image",
    **dict.fromkeys(files.SUFFIXES["notation"], "notation"),
}
"""suffix -> "audio" (the sound), "image" (the roll) or "notation"."""


def kind_of(path: str | Path) -> RenderedKind:
    """What is rendered to a path: "audio", "image" or "notation". Raises MediaError, listing the suffixes."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        named = f"a piece is not rendered to {suffix!r}" if suffix else "a suffix is missing"
        raise MediaError(f"{str(path)!r}: {named}; use one of {', '.join(SUFFIXES)}")
    return SUFFIXES[suffix]


def check(paths: Sequence[str | Path], soundfont: str | Path | None = None) -> list[Path]:
    """Whether renderings can be written to `paths`, asked before anything is computed. Makes missing folders.

    Raises MediaError: a suffix or a place that does not fit, a file named twice, no soundfont, a soundfont without a
    sound to play, no music21.
    """
    from genkit.media import _notation, midi

    targets = [files.check_target(path, kind_of(path)) for path in paths]
    for i, path in enumerate(targets):
        if path.absolute() in [other.absolute() for other in targets[:i]]:
            raise MediaError(f"{str(path)!r} is named twice; render to different files")
    kinds = {kind_of(path) for path in targets}
    if soundfont is not None and "audio" not in kinds:
        raise MediaError(f"{str(soundfont)!r}: a soundfont plays a sound, and none is rendered; render a .wav as well")
    if "audio" in kinds:
        midi.soundfont_file(soundfont)
    if "notation" in kinds:
        _notation.check_installed()
    return targets


def make(piece: Midi, kind: str, soundfont: str | Path | None = None) -> Any:
    """A rendering of `kind`: an Audio, an Image or a Notation. Raises MediaError."""
    if kind == "audio":
        return piece.render(soundfont)
    return piece.roll() if kind == "image" else piece.notation()


def values(piece: Midi, paths: Sequence[Path], soundfont: str | Path | None = None) -> list[Any]:
    """The rendering for each path; what two files share (a .wav and a .flac) is made once. Raises MediaError."""
    made = {kind: make(piece, kind, soundfont) for kind in dict.fromkeys(map(kind_of, paths))}
    return [made[kind_of(path)] for path in paths]


def record(provenance: Provenance, kind: RenderedKind, soundfont: str | Path | None = None) -> Provenance:
    """The record of a rendering of `kind`, from that of its piece. Reads the soundfont for its digest."""
    from genkit.media import midi
    from genkit.media.provenance import Input, Rendered, digest_file

    played = None
    if kind == "audio":
        # Where the default one lies is a fact of this machine, and looked up again on the next.
        played = Input(digest_file(midi.soundfont_file(soundfont)), None if soundfont is None else str(soundfont))
    return dataclasses.replace(provenance, rendered=Rendered(kind, played))


def write(output: Output, paths: Sequence[str | Path], soundfont: str | Path | None = None) -> list[Path]:
    """Renders an output's piece to each path, atomically, with its record. Returns the paths.

    Raises MediaError (what `check` says, or a piece that cannot be rendered), DiskFull.
    """
    targets = check(paths, soundfont)
    if output.midi is None:
        raise MediaError("there is no piece of music to render; only pipelines that make MIDI have one")
    of_piece = output.provenance and output.provenance.at(len(output.media) - 1)
    for path, value in zip(targets, values(output.midi, targets, soundfont), strict=True):
        value.save(path, provenance=of_piece and record(of_piece, kind_of(path), soundfont))
    return targets
