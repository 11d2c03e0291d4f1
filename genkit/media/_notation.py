"""Notation: a piece as a score on staves, MusicXML 4.0, written by music21.

Choices made here:
- music21 is an extra, imported when a score is asked for. It spells the notes, splits them into voices and ties them
  over bar lines; signatures, keys and tempos are the piece's.
- Times are brought to the nearest thirty-second or sextuplet of a beat: what a player reads, not what a player did.
- The same piece gives the same bytes: music21's random names of parts are numbered and its date is left out.
- A score is read back far enough to be sure that it is one: it is opened to be compared, never to be played.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import io
import itertools
import os
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar
from xml.etree import ElementTree

from genkit.errors import MediaError
from genkit.media import files

if TYPE_CHECKING:
    from genkit.media.provenance import Provenance

__all__ = ["Notation", "check_installed", "engrave", "find_field", "place_field"]

MAX_BYTES = 64 << 20  # of XML; a lied of six minutes takes 3 MB
MAX_NOTES = 100_000  # music21 takes a minute for about twenty thousand
MAX_QUARTERS = 20_000  # over an hour of music; each bar of silence is written out
DIVISORS = (8, 6)  # of a quarter: thirty-seconds, and sextuplets with triplets among them

KIT = {
    **dict.fromkeys((35, 36), "F4"),
    **dict.fromkeys((37, 38, 39, 40), "C5"),
    **dict.fromkeys((41, 43), "A4"),
    **dict.fromkeys((45, 47), "D5"),
    **dict.fromkeys((48, 50), "E5"),
    44: "D4x",
    **dict.fromkeys((42, 46), "G5x"),
    **dict.fromkeys((51, 53, 59), "F5x"),
    **dict.fromkeys((49, 52, 55, 57), "A5x"),
}
"""Where General MIDI's drums stand, after N. Weinberg, "Guide to Standardized Drumset Notation" (1998); x: a cross."""

_CONTAINER = (
    '<?xml version="1.0" encoding="utf-8"?>\n<container><rootfiles>'
    '<rootfile full-path="score.musicxml" media-type="application/vnd.recordare.musicxml+xml"/>'
    "</rootfiles></container>\n"
)
_FIELD = re.compile(rb'<miscellaneous><miscellaneous-field name="genkit">([^<]*)</miscellaneous-field></miscellaneous>')


class Notation:
    """A score: `.xml` is its MusicXML, as UTF-8."""

    __genkit_media__: ClassVar[str] = "notation"

    def __init__(self, xml: bytes, *, name: str = "the score") -> None:
        """Raises MediaError if `xml` is no MusicXML of parts (score-partwise); `name` opens its message."""
        self.xml = _FIELD.sub(b"", xml)
        if len(xml) > MAX_BYTES:
            raise MediaError(f"{name} has over {MAX_BYTES >> 20} MiB; give a smaller score")
        if b"<!ENTITY" in xml:  # a few of which unfold to gigabytes
            raise MediaError(f"{name} defines entities, which no score needs; save it anew")
        try:
            self._root = ElementTree.fromstring(self.xml)
        except (ElementTree.ParseError, ValueError, LookupError) as error:
            raise MediaError(f"{name} is not XML, or damaged ({str(error)[:80]})") from None
        if self._root.tag != "score-partwise":
            raise MediaError(f"{name} is XML but no score of parts (score-partwise); export it as MusicXML")

    @classmethod
    def open(cls, source: Any) -> Notation:
        """A score from a path (.musicxml or .mxl, by content), a Notation, or a file object. Raises MediaError."""
        if isinstance(source, Notation):
            return source
        if isinstance(source, str | os.PathLike):
            with files.open_regular(source) as file:
                return cls(_unpacked(file, repr(str(source))), name=repr(str(source)))
        if hasattr(source, "read"):
            return cls(_unpacked(source, "the score"))
        raise MediaError(f"a {type(source).__name__} is not a score; give a path")

    @property
    def parts(self) -> int:
        """How many parts it has."""
        return len(self._root.findall("part"))

    @property
    def measures(self) -> int:
        """How many bars its longest part has."""
        return max((len(part.findall("measure")) for part in self._root.findall("part")), default=0)

    @property
    def notes(self) -> int:
        """Sounding notes: chords by their notes, tied ones once, without rests."""
        notes = (note for note in self._root.iter("note") if note.find("rest") is None)
        return sum(1 for note in notes if all(tie.get("type") != "stop" for tie in note.findall("tie")))

    def digest(self) -> str:
        """sha256 (hex) of the XML without the record in it; packed and plain files of one score have one digest."""
        return hashlib.sha256(b"genkit notation\n" + self.xml).hexdigest()

    def encoded(self, format: str = "MUSICXML", **options: Any) -> bytes:
        """The bytes of a file, without provenance: "MUSICXML", or "MXL", the same in a zip."""
        if options:
            raise MediaError(f"{format} has no option {sorted(options)[0]!r}; it takes none")
        return _packed(self.xml) if format == "MXL" else self.xml

    def save(self, path: str | Path, provenance: Provenance | None = None, **options: Any) -> Path:
        """Writes the file atomically, with its provenance in it. Returns the path. Raises MediaError, DiskFull."""
        from genkit.media import saving

        return saving.save(self, path, provenance, options)

    def __repr__(self) -> str:
        return f"<genkit.Notation {self.parts} parts, {self.measures} bars, {self.notes} notes>"


def check_installed() -> None:
    """Raises MediaError, with the remedy, if music21 is not there."""
    if importlib.util.find_spec("music21") is None:
        raise MediaError("notation is written by music21, which is not installed; `pip install genkit-media[notation]`")


def engrave(score: Any) -> Notation:
    """score: a symusic Score in ticks. Raises MediaError: no music21, too many notes, or a piece that it cannot set."""
    check_installed()
    if score.note_num() > MAX_NOTES:
        raise MediaError(f"the piece has {score.note_num():,} notes; at most {MAX_NOTES:,} are set as notation")
    quarters = score.end() / max(score.ticks_per_quarter, 1)
    if quarters > MAX_QUARTERS:
        many = f"the piece is {quarters:,.0f} quarter notes long"
        raise MediaError(f"{many}; at most {MAX_QUARTERS:,} are set as notation")
    with warnings.catch_warnings():  # of chords it cannot name and the like, which concern nobody here
        warnings.simplefilter("ignore")
        import music21

        try:
            file = music21.midi.MidiFile()
            file.readstr(bytes(_conducted(score).dumps_midi()))
            stream = music21.midi.translate.midiFileToStream(file, quarterLengthDivisors=DIVISORS)
            _fill(stream, music21)
            _place_drums(stream, music21)
            xml = music21.musicxml.m21ToXml.GeneralObjectExporter(stream).parse()
        except Exception as error:  # of any kind: it meets rhythms that have no name
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
            raise MediaError(f"the piece cannot be set as notation ({reason}); render its sound or its roll") from error
    return Notation(_repeatable(xml))


def _conducted(score: Any) -> Any:
    """A copy whose first track has no notes: music21 gives every part the signatures of that track, and of no other.

    Files often state a signature once a track, and symusic keeps them all: one that changes nothing is left out.
    """
    import symusic

    led: Any = score.copy()
    played = [track for track in led.tracks if len(track.notes)]
    conductor: Any = symusic.Track(program=0, is_drum=False, name="")
    led.tracks = symusic.core.TrackTickList([conductor, *played])
    led.time_signatures = _changes(led.time_signatures, lambda one: (one.numerator, one.denominator))
    led.key_signatures = _changes(led.key_signatures, lambda one: (one.key, one.tonality))
    return led


def _fill(stream: Any, music21: Any) -> None:
    """Full rests for the bars that a part lacks at its end: all parts of a score have the same bars."""
    parts = {part: list(part.getElementsByClass("Measure")) for part in stream.parts}
    longest = max(parts.values(), key=len, default=[])
    for part, bars in parts.items():
        for bar in longest[len(bars) :]:
            empty = music21.stream.Measure(number=bar.number)
            empty.timeSignature = copy.deepcopy(bar.timeSignature)
            empty.keySignature = copy.deepcopy(bar.keySignature)
            empty.append(music21.note.Rest(quarterLength=bar.barDuration.quarterLength))
            part.append(empty)


def _place_drums(stream: Any, music21: Any) -> None:
    """Drums on the lines of a drum set, cymbals with crosses, under their clef; music21 puts all on one line."""
    for part in stream.parts:
        strokes = list(part.recurse().getElementsByClass("Unpitched"))
        chords = list(part.recurse().getElementsByClass("PercussionChord"))
        strokes += [stroke for chord in chords for stroke in chord.notes]
        for stroke in strokes:
            place = KIT.get(getattr(stroke.storedInstrument, "percMapPitch", None) or -1)
            if place is not None:
                stroke.displayStep, stroke.displayOctave = place[0], int(place[1])
                stroke.notehead = "x" if place.endswith("x") else "normal"
        if strokes:
            part.getElementsByClass("Measure").first().clef = music21.clef.PercussionClef()


def _changes(events: Any, value: Callable[[Any], Any]) -> Any:
    """Of events in order of time those that change `value`; of several at one time the last."""
    latest = {one.time: one for one in sorted(events, key=lambda one: one.time)}
    kept: list[Any] = []
    for one in latest.values():
        if not kept or value(one) != value(kept[-1]):
            kept.append(one)
    return type(events)(kept)


def _repeatable(xml: bytes) -> bytes:
    """Without what differs from run to run: names of parts and instruments, the date; and without music21's own title
    and composer, which are not the piece's."""
    numbers = itertools.count(1)
    names: dict[bytes, bytes] = {}

    def numbered(found: re.Match[bytes]) -> bytes:
        return b'"%s"' % names.setdefault(found[0], b"%s%d" % (found[1], next(numbers)))

    xml = re.sub(rb'"([PI])[0-9a-f]{32}"', numbered, xml)
    for line in (rb"<encoding-date>[^<]*</encoding-date>", rb"<movement-title>Music21 Fragment</movement-title>"):
        xml = re.sub(rb"\s*" + line, b"", xml)
    return re.sub(rb'\s*<creator type="composer">Music21</creator>', b"", xml)


def place_field(data: bytes, format: str, text: str) -> bytes | None:
    """The file with a text in its identification, where MusicXML has a place for what is not of the score."""
    xml = _unpacked(io.BytesIO(data), "the score")
    body = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").encode()
    field = b'<miscellaneous><miscellaneous-field name="genkit">' + body + b"</miscellaneous-field></miscellaneous>"
    before, mark, after = xml.partition(b"</identification>")
    if not mark:
        return None
    xml = before + field + mark + after
    return _packed(xml) if format == "MXL" else xml


def find_field(file: BinaryIO, name: str) -> str | None:
    """The text that `place_field` put there. Raises MediaError for a file that is too damaged to look into."""
    found = _FIELD.search(_unpacked(file, repr(name)))
    if not found:
        return None
    text = found[1].decode("utf-8", "replace")
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def _packed(xml: bytes) -> bytes:
    """MusicXML 4.0, "Compressed .mxl files": a zip whose first file names the score. Dates are the zip's zero."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in (("META-INF/container.xml", _CONTAINER.encode()), ("score.musicxml", xml)):
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _unpacked(file: BinaryIO, name: str) -> bytes:
    """The XML in a plain or packed file; what is unpacked is bounded, whatever the zip says of it."""
    data = file.read(MAX_BYTES + 1)
    if data[:2] != b"PK":
        return data
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            with archive.open("META-INF/container.xml") as container:
                path = ElementTree.fromstring(container.read(1 << 16)).find(".//{*}rootfile")
            with archive.open("" if path is None else path.get("full-path", "")) as score:
                return score.read(MAX_BYTES + 1)
    except (
        zipfile.BadZipFile,
        zlib.error,
        KeyError,
        ElementTree.ParseError,
        RuntimeError,
    ) as error:
        raise MediaError(f"{name} is a zip without a score in it, or damaged ({str(error)[:80]})") from None
