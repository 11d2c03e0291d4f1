"""MIDI: a symusic score, checked before it is parsed, with a sound and a picture of its own.

Choices made here:
- The bytes are walked before symusic sees them (see `_smf`): time in SMPTE frames, a length of more than four hours,
  broken running status and data bytes over 127 are refused, and so is a file without notes.
- The sound is rendered by symusic with the General MIDI soundfont that pretty_midi brings along, so it needs no system
  library; the soundfont is first put in tune for it (see `_soundfont`). What is louder than full scale is turned down.
- Text events of the source are not kept by symusic; notes, controls, tempos, signatures, lyrics and markers are.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import math
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

import numpy as np
import symusic

from genkit.errors import MediaError
from genkit.fields import expanded
from genkit.media import _smf, _soundfont, files

if TYPE_CHECKING:
    from genkit.media._notation import Notation
    from genkit.media.audio import Audio
    from genkit.media.image import Image
    from genkit.media.provenance import Provenance

__all__ = ["Midi", "soundfont", "soundfont_file"]

MAX_TICK = 2**31 - 1  # of symusic's 32 bits
TAIL = 2.0  # seconds that the synthesiser rings on after the last note


class Midi:
    """A piece of music: `.score` is the symusic Score, in ticks."""

    __genkit_media__: ClassVar[str] = "midi"

    def __init__(self, score: Any) -> None:
        """score: a symusic Score in ticks."""
        self.score = score

    @classmethod
    def open(cls, source: Any, *, empty: bool = False) -> Midi:
        """A piece from a path, a Midi, a symusic Score, or a file object. empty: take one without notes.

        Raises MediaError: not there, not MIDI, damaged, out of bounds, or without notes.
        """
        if isinstance(source, Midi):
            return source
        if type(source).__module__.startswith("symusic"):
            return cls(source.to("Tick"))
        if isinstance(source, str | os.PathLike):
            with files.open_regular(source) as file:
                return cls._read(file, repr(str(source)), empty)
        if hasattr(source, "read"):
            return cls._read(source, "the piece", empty)
        raise MediaError(f"a {type(source).__name__} is not a piece of MIDI; give a path or a symusic Score")

    @classmethod
    def _read(cls, file: BinaryIO, name: str, empty: bool) -> Midi:
        data = file.read(_smf.MAX_BYTES + 1)
        facts = _smf.survey(data, name)
        if not facts.notes and not empty:
            raise MediaError(f"{name} holds no notes; give a piece with some")
        try:
            return cls(symusic.Score.from_midi(data))
        except Exception as error:  # symusic raises RuntimeError and ValueError, without a type of its own
            raise MediaError(f"{name}: the MIDI file is damaged ({str(error)[:120]})") from error

    @property
    def notes(self) -> int:
        """How many notes, all tracks together."""
        return self.score.note_num()

    @property
    def duration(self) -> float:
        """Time of the last event in seconds, by the tempo map."""
        return float(self.score.to("Second").end()) if self.notes else 0.0

    def render(self, soundfont: str | Path | None = None, sample_rate: int = 44100) -> Audio:
        """The sound of it, stereo [2, T]. soundfont: an .sf2 or .sf3 file (default: General MIDI, `soundfont()`).

        Raises MediaError: no notes, no soundfont, or longer than Audio takes.
        """
        from genkit.media import _sounds
        from genkit.media.audio import Audio

        if not self.notes:
            raise MediaError("the piece holds no notes; there is nothing to render")
        _sounds.check_bounds(2, 1, sample_rate, name="the rendered sound")
        seconds = self.duration + TAIL
        if 2 * seconds * sample_rate > _sounds.limit(None):
            raise MediaError(
                f"{seconds:,.0f} s at {sample_rate} Hz are too long to render; cut the piece or lower the rate"
            )
        synthesizer = _synthesizer(soundfont_file(soundfont), sample_rate)
        samples = synthesizer.render(_ringing_out(self.score), stereo=True)
        # In place: a piece of an hour is a gigabyte, and each copy another.
        array = np.nan_to_num(np.asarray(samples, np.float32), copy=False)
        array /= max(1.0, float(array.max(initial=0)), -float(array.min(initial=0)))
        return Audio(array, sample_rate)

    def roll(
        self, *, width: int | None = None, height: int = 384, highlight: tuple[float, float] | None = None
    ) -> Image:
        """A piano roll: time runs right over the whole piece, pitch up over its range; a colour per track.

        width, height: px (default: as wide as the piece asks for, 1024 to 4096); highlight: start and end in quarter
        notes of a span on a warmer ground, such as the prompt. Raises MediaError for a size out of bounds.
        """
        from genkit.media import _roll
        from genkit.media.image import Image

        return Image(_roll.draw(self.score, width or _roll.width_of(self.score), height, highlight))

    def notation(self) -> Notation:
        """The score of it in MusicXML, on staves: times to the nearest thirty-second or sextuplet.

        Raises MediaError: music21 is not installed, the piece holds no notes or too many, or cannot be set.
        """
        from genkit.media import _notation

        if not self.notes:
            raise MediaError("the piece holds no notes; there is nothing to set as notation")
        return _notation.engrave(self.score)

    def digest(self) -> str:
        """sha256 (hex) of the piece as symusic writes it; texts and the order of bytes in a file do not enter."""
        return hashlib.sha256(b"genkit midi\n" + self.encoded("MIDI")).hexdigest()

    def encoded(self, format: str = "MIDI", **options: Any) -> bytes:
        """The bytes of a file, without provenance; the same piece gives the same bytes."""
        if options:
            raise MediaError(f"MIDI has no option {sorted(options)[0]!r}; it takes none")
        return bytes(self.score.dumps_midi())

    def save(self, path: str | Path, provenance: Provenance | None = None, **options: Any) -> Path:
        """Writes the file atomically, with its provenance in it. Returns the path. Raises MediaError, DiskFull."""
        from genkit.media import saving

        return saving.save(self, path, provenance, options)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """The piano roll in a notebook, with a player of the first minute."""
        import base64

        roll = base64.b64encode(self.roll(width=1024).encoded("PNG")).decode()
        html = f'<img alt="piano roll" src="data:image/png;base64,{roll}">'
        if self.notes:
            start = Midi(self.score.clip(0, _tick_at(self.score, 60.0)))
            html += "<br>" + start.render()._repr_mimebundle_()["text/html"] if start.notes else ""
        return {"text/html": html, "text/plain": repr(self)}

    def __repr__(self) -> str:
        return f"<genkit.Midi {self.duration:.1f} s, {len(self.score.tracks)} tracks, {self.notes} notes>"


def _ringing_out(score: Any) -> Any:
    """A copy with a silent note TAIL seconds behind the last, without which the synthesiser stops at its release."""
    longer = score.copy()
    tempo = max(score.tempos, key=lambda tempo: tempo.time).mspq if len(score.tempos) else 500_000
    tick = score.end() + math.ceil(TAIL * 1e6 / max(tempo, 1) * score.ticks_per_quarter)
    longer.tracks.append(symusic.Track(program=0, is_drum=False, name=""))
    # At a tempo of a millionth of a second a quarter that is past the last tick there is; the sound then ends sooner.
    longer.tracks[-1].notes.append(symusic.Note(min(tick, MAX_TICK - 1), 1, 60, 0))
    return longer


def _tick_at(score: Any, seconds: float) -> int:
    """About the tick at a time, by the mean tempo of the piece."""
    length = float(score.to("Second").end())
    return max(1, math.ceil(score.end() * min(1.0, seconds / length))) if length else 1


def soundfont() -> Path:
    """The General MIDI soundfont inside pretty_midi's package, found without importing it. Raises MediaError."""
    spec = importlib.util.find_spec("pretty_midi")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "TimGM6mb.sf2"
        if path.is_file():
            return path
    raise MediaError("the General MIDI soundfont is not there; `pip install pretty-midi`, or name a soundfont")


def _synthesizer(path: Path, sample_rate: int) -> Any:
    """symusic's, with the soundfont in tune; it reads files only, so it is given one that is gone afterwards."""
    status = path.stat()
    with tempfile.TemporaryDirectory(prefix="genkit-") as folder:
        tuned = Path(folder) / path.name
        tuned.write_bytes(_tuned(path, status.st_size, status.st_mtime_ns))
        try:
            return symusic.Synthesizer(sf_path=str(tuned), sample_rate=sample_rate)
        except Exception as error:  # of symusic's own kinds, as above
            raise MediaError(f"{str(path)!r} is not a soundfont that can be played ({str(error)[:120]})") from error


@functools.lru_cache(maxsize=1)
def _tuned(path: Path, size: int, changed: int) -> bytes:
    """size, changed: of the file, so that a new one is not taken for the old."""
    return _soundfont.in_tune(path.read_bytes())


def soundfont_file(given: str | Path | None) -> Path:
    """The soundfont named, or `soundfont()`. Raises MediaError for a file that is none."""
    if given is None:
        return soundfont()
    path = expanded(given)
    with files.open_regular(path) as file:
        head = file.read(12)
    if head[:4] != b"RIFF" or head[8:12] != b"sfbk":
        raise MediaError(f"{str(path)!r} is not a soundfont; give an .sf2 or .sf3 file")
    return path
