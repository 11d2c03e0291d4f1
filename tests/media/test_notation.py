"""Notation: what stands in the piece stands in the score; and without music21 there is one clear line."""

from __future__ import annotations

import importlib.util
import io
import sys
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pytest
import symusic

from genkit.errors import MediaError
from genkit.media import _notation
from genkit.media._notation import Notation
from genkit.media.midi import Midi
from genkit.media.provenance import Provenance, read

needs_music21 = pytest.mark.skipif(importlib.util.find_spec("music21") is None, reason="music21 is an extra")

SCORE = (
    b'<?xml version="1.0" encoding="utf-8"?>\n<score-partwise version="4.0"><identification></identification>'
    b'<part id="P1"><measure number="1"><note><pitch/></note><note><rest/></note></measure></part></score-partwise>'
)


def piece() -> Midi:
    """Two parts: a melody with triplets through 3/4, 6/8 and a change of key and tempo; and a shorter bass."""
    score = symusic.Score(480)
    melody = symusic.Track(program=40, is_drum=False, name="Violin")
    bass = symusic.Track(program=42, is_drum=False, name="Cello")
    for i in range(3):  # a triplet of eighths
        melody.notes.append(symusic.Note(160 * i, 160, 74 + i, 80))
    melody.notes.append(symusic.Note(480, 960, 69, 80))
    for i in range(6):  # the second bar, 6/8 from here
        melody.notes.append(symusic.Note(1440 + 240 * i, 240, 66 + i, 80))
    melody.notes.append(symusic.Note(2880, 1440, 62, 80))
    bass.notes.append(symusic.Note(0, 1440, 38, 80))
    score.tracks.extend([melody, bass])
    for at, numerator, denominator in ((0, 3, 4), (0, 3, 4), (1440, 6, 8)):  # stated once a track, as files do
        score.time_signatures.append(symusic.TimeSignature(at, numerator, denominator))
    score.key_signatures.append(symusic.KeySignature(0, 2, 0))
    score.key_signatures.append(symusic.KeySignature(1440, -3, 1))
    score.tempos.append(symusic.Tempo(0, 120))
    score.tempos.append(symusic.Tempo(1440, 60))
    return Midi(score)


def texts(part: ElementTree.Element, path: str) -> list[tuple[int, str]]:
    """Bar number and text of every element under a bar."""
    return [(int(bar.get("number", 0)), e.text or "") for bar in part.findall("measure") for e in bar.findall(path)]


@needs_music21
def test_a_score_holds_the_metre_the_key_the_tempo_and_the_triplets_in_every_part() -> None:
    notation = piece().notation()
    assert (notation.parts, notation.measures, notation.notes) == (2, 3, 12)
    root = ElementTree.fromstring(notation.xml)
    parts = root.findall("part")
    for part in parts:
        assert len(part.findall("measure")) == 3, "a part that ends early has the bars of the others"
        assert texts(part, "attributes/time/beats") == [(1, "3"), (2, "6")]
        assert texts(part, "attributes/time/beat-type") == [(1, "4"), (2, "8")]
        assert texts(part, "attributes/key/fifths") == [(1, "2"), (2, "-3")]
    assert texts(parts[0], "direction/direction-type/metronome/per-minute") == [(1, "120"), (2, "60")]
    ratio = "note/time-modification/"
    assert texts(parts[0], ratio + "actual-notes") == [(1, "3")] * 3
    assert texts(parts[0], ratio + "normal-notes") == [(1, "2")] * 3
    assert [name.text for name in root.findall("part-list/score-part/part-name")] == ["Violin", "Cello"]


@needs_music21
def test_drums_and_chords_are_set_too() -> None:
    score = symusic.Score(480)
    drums = symusic.Track(program=0, is_drum=True, name="Drums")
    chords = symusic.Track(program=0, is_drum=False, name="Piano")
    for i in range(8):
        drums.notes.append(symusic.Note(480 * i, 240, 36 + 2 * (i % 2), 90))
        for pitch in (60, 64, 67):
            chords.notes.append(symusic.Note(480 * i, 480, pitch, 80))
    score.tracks.extend([drums, chords])
    notation = Midi(score).notation()
    assert (notation.parts, notation.measures, notation.notes) == (2, 2, 8 + 24)
    kit = ElementTree.fromstring(notation.xml).findall("part")[0]
    assert texts(kit, "attributes/clef/sign") == [(1, "percussion")]
    steps = [step for _, step in texts(kit, "note/unpitched/display-step")]
    assert steps == ["F", "C"] * 4, "kick and snare on lines of their own"


@needs_music21
def test_the_same_piece_is_the_same_bytes_and_names_no_day() -> None:
    one, two = piece().notation(), piece().notation()
    assert one.xml == two.xml
    for word in (b"encoding-date", b"Music21 Fragment", b'"composer"'):
        assert word not in one.xml
    assert b'<score-part id="P1">' in one.xml


@needs_music21
@pytest.mark.parametrize("suffix", [".musicxml", ".mxl", ".xml"])
def test_a_file_comes_back_with_its_record(tmp_path: Path, suffix: str) -> None:
    notation, path = piece().notation(), tmp_path / f"a{suffix}"
    notation.save(path, provenance=Provenance(pipeline="test", version=1, params={"text": "<&amp;> “ü”"}))
    back = Notation.open(path)
    assert back.digest() == notation.digest()
    record = read(path)
    assert record is not None
    assert record.params == {"text": "<&amp;> “ü”"}
    assert record.content == back.digest()
    assert notation.save(tmp_path / f"plain{suffix}").read_bytes() == notation.encoded(
        "MXL" if suffix == ".mxl" else ""
    )
    assert read(tmp_path / f"plain{suffix}") is None


@needs_music21
def test_a_lied_keeps_its_notes(shared: Path) -> None:
    piece = Midi.open(shared / "data/midi/canon_in_d.mid")
    notation = piece.notation()
    assert (notation.parts, notation.notes) == (2, piece.notes)
    root = ElementTree.fromstring(notation.xml)
    assert [texts(part, "attributes/key/fifths") for part in root.findall("part")] == [[(1, "2")]] * 2


def test_without_music21_there_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "music21", None)  # as if it were not there, to `import` and to `find_spec`
    with pytest.raises(MediaError, match=r"music21, which is not installed; `pip install genkit-media\[notation\]`"):
        piece().notation()


def test_a_piece_too_long_to_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_notation, "check_installed", lambda: None)
    monkeypatch.setattr(_notation, "MAX_NOTES", 5)
    with pytest.raises(MediaError, match="at most 5 are set"):
        piece().notation()
    long = symusic.Score(1)
    long.tracks.append(symusic.Track())
    long.tracks[0].notes.append(symusic.Note(0, 2_000_000_000, 60, 90))
    with pytest.raises(MediaError, match="quarter notes long"):
        Midi(long).notation()
    with pytest.raises(MediaError, match="no notes"):
        Midi(symusic.Score(480)).notation()


def packed(content: bytes, name: str = "score.musicxml") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("META-INF/container.xml", f'<container><rootfile full-path="{name}"/></container>')
        archive.writestr("score.musicxml", content)
    return buffer.getvalue()


BOMB = b'<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><score-partwise>&b;</score-partwise>'


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        SCORE[:-10],
        b"<opus/>",
        BOMB,
        packed(BOMB),
        packed(SCORE)[:-40],
        packed(SCORE, "none.xml"),
        packed(bytes(_notation.MAX_BYTES + 10)),
        b"PK\x03\x04junk",
    ],
)
def test_a_bad_file_is_one_line(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "score.musicxml"
    path.write_bytes(data)
    with pytest.raises(MediaError, match=r"score\.musicxml") as error:
        Notation.open(path)
    assert "\n" not in str(error.value)


def test_a_score_is_known_by_its_content(tmp_path: Path) -> None:
    from genkit.media.files import kind_of

    (tmp_path / "a").write_bytes(SCORE)
    (tmp_path / "b").write_bytes(packed(SCORE))
    (tmp_path / "c").write_bytes(b'<?xml version="1.0"?><svg/>')
    assert [kind_of(tmp_path / name) for name in "abc"] == [("notation", "MUSICXML"), ("notation", "MXL"), None]
    assert Notation.open(tmp_path / "a").digest() == Notation.open(tmp_path / "b").digest()
    assert (Notation.open(tmp_path / "a").parts, Notation.open(tmp_path / "a").notes) == (1, 1)
