"""MIDI: a piece survives; bytes that would choke a parser or fill the memory never reach one."""

from __future__ import annotations

import contextlib
import io
import struct
from pathlib import Path

import numpy as np
import pytest
import symusic
from hypothesis import given
from hypothesis import strategies as st

from genkit.errors import MediaError
from genkit.media.image import Image
from genkit.media.midi import Midi, soundfont

NOTE = b"\x00\x90\x40\x40\x60\x80\x40\x40"
END = b"\x00\xff\x2f\x00"


def smf(*tracks: bytes, division: int = 480, declared: int | None = None) -> bytes:
    """A Standard MIDI File."""
    data = b"MThd" + struct.pack(">IHHH", 6, 1, len(tracks), division)
    for track in tracks:
        data += b"MTrk" + struct.pack(">I", len(track) if declared is None else declared) + track
    return data


def piece(*pitches: int) -> Midi:
    score = symusic.Score(480)
    track = symusic.Track(program=0, is_drum=False, name="melody")
    for i, pitch in enumerate(pitches):
        track.notes.append(symusic.Note(480 * i, 480, pitch, 80))
    score.tracks.append(track)
    return Midi(score)


@given(st.lists(st.integers(0, 127), min_size=1, max_size=20))
def test_a_piece_survives_the_round_trip(pitches: list[int]) -> None:
    one = piece(*pitches)
    back = Midi.open(io.BytesIO(one.encoded()))
    assert [note.pitch for note in back.score.tracks[0].notes] == pitches
    assert back.digest() == one.digest()


def bad() -> dict[str, bytes]:
    return {
        "empty": b"",
        "text": b"hello",
        "head alone": smf()[:10],
        "no track": smf(),
        "division 0": smf(NOTE + END, division=0),
        "SMPTE division": smf(NOTE + END, division=0xE728),
        "one delta of 279,620 s": smf(b"\x00\x90\x40\x40\xff\xff\xff\x7f\x80\x40\x40" + END),
        "many deltas": smf(b"".join(b"\x83\xff\x7f\x90\x40\x40" for _ in range(500)) + END),
        "a meta event of 268 MB": smf(b"\x00\xff\x01\xff\xff\xff\x7fhi" + NOTE + END),
        "no notes": smf(END),
        "only note-offs": smf(b"\x00\x90\x40\x00" + END),
        "no status": smf(b"\x00\x40\x40" + END),
        "running status after sysex": smf(NOTE + b"\x00\xf0\x01\xf7\x00\x40\x40" + END),
        "data over 127": smf(b"\x00\x90\x40\xc0" + END),
        "cut in a message": smf(NOTE + b"\x00\x90\x40"),
        "cut in a delta": smf(NOTE + b"\x81"),
        "a track longer than the file": smf(NOTE + END, declared=10**9),
        "a five-byte number": smf(b"\xff\xff\xff\xff\x7f" + NOTE + END),
        "a real-time message": smf(b"\x00\xf8" + NOTE + END),
        "over 32 MiB": smf(NOTE + END) + bytes(33 << 20),
    }


@pytest.mark.parametrize("what", sorted(bad()))
def test_a_bad_file_is_one_line(what: str, tmp_path: Path) -> None:
    path = tmp_path / "piece.mid"
    path.write_bytes(bad()[what])
    with pytest.raises(MediaError, match="piece") as error:
        Midi.open(path)
    assert "\n" not in str(error.value)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(junk: bytes) -> None:
    for data in (junk, smf(junk), smf(NOTE + junk + END)):
        with contextlib.suppress(MediaError):
            Midi.open(io.BytesIO(data), empty=True)


@pytest.mark.parametrize(
    "data",
    [
        smf(NOTE),  # no end-of-track
        smf(b"\x00\x90\x40\x40\x00\xff\x01\x01a\x60\x40\x00" + END),  # running status carried over a meta event
        smf(NOTE + END) + b"junk",
        b"MThd" + struct.pack(">IHHH", 6, 0, 1, 96) + b"XFIH\0\0\0\2ab" + smf(NOTE + END)[14:],
    ],
)
def test_files_that_every_player_takes_are_taken(data: bytes) -> None:
    assert Midi.open(io.BytesIO(data)).notes == 1


@pytest.mark.parametrize("program", [0, 24, 40, 48, 56, 71, 73])  # piano, guitar, violin, strings, trumpet, ...
def test_it_sounds_at_its_pitch(program: int) -> None:
    """symusic's synthesiser plays most of these out of tune by itself; see `_soundfont`."""
    score = piece(60, 60).score
    score.tracks[0].program = program
    sound = Midi(score).render(sample_rate=22050).samples[0, 2000:12000].numpy().astype(np.float64)
    power = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), 1 << 16)) ** 2
    likeness = np.fft.irfft(power)  # its greatest value lies at the period
    shortest = int(22050 / 400)
    period = shortest + likeness[shortest : int(22050 / 180)].argmax()
    assert abs(12 * np.log2(22050 / period / 261.63)) < 0.3, "in semitones from middle C"


def test_it_rings_out_and_is_repeatable() -> None:
    sound = piece(69, 69).render(sample_rate=22050)
    assert sound.channels == 2
    assert 2.5 < sound.duration < 4
    assert 0.01 < sound.samples.abs().max() <= 1
    assert piece(69, 69).render(sample_rate=22050).digest() == sound.digest()


def test_rendering_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GENKIT_MAX_SAMPLES", "10000")
    with pytest.raises(MediaError, match="too long"):
        piece(60).render()
    monkeypatch.delenv("GENKIT_MAX_SAMPLES")
    with pytest.raises(MediaError, match="no notes"):
        piece().render()
    (tmp_path / "font.sf2").write_bytes(b"RIFF")
    with pytest.raises(MediaError, match="soundfont"):
        piece(60).render(tmp_path / "font.sf2")
    (tmp_path / "font.sf2").write_bytes(soundfont().read_bytes()[:5000])
    with pytest.raises(MediaError, match="soundfont"):
        piece(60).render(tmp_path / "font.sf2")


def test_a_roll_shows_every_note() -> None:
    roll = piece(60, 64, 67).roll(width=300, height=120)
    assert isinstance(roll, Image)
    assert roll.size == (300, 120)
    pixels = np.asarray(roll.pil, int)
    coloured = (pixels.max(2) - pixels.min(2)) > 40
    assert [coloured[:, x].any() for x in (50, 150, 250)] == [True, True, True]
    rows = [np.flatnonzero(coloured[:, x]).mean() for x in (50, 150, 250)]
    assert rows == sorted(rows, reverse=True), "higher notes are higher up"
    assert piece().roll().size == (1024, 384)


@pytest.mark.parametrize("division", [1, 480, 32767])
@pytest.mark.parametrize("delta", [b"\x60", b"\xff\xff\xff\x7f"])
@pytest.mark.parametrize("tempo", [b"\0\0\0", b"\0\0\1", b"\xff\xff\xff"])
def test_any_tempo_that_a_file_may_state_sounds_and_shows_or_is_one_line(
    monkeypatch: pytest.MonkeyPatch, division: int, delta: bytes, tempo: bytes
) -> None:
    monkeypatch.setenv("GENKIT_MAX_SAMPLES", "1000000")
    data = smf(b"\x00\xff\x51\x03" + tempo + b"\x00\x90\x40\x40" + delta + b"\x80\x40\x40" + END, division=division)
    with contextlib.suppress(MediaError):
        one = Midi.open(io.BytesIO(data))
        assert one.roll().size[1] == 384
        assert one.render(sample_rate=8000).duration < 65


def test_a_notebook_shows_and_plays_it() -> None:
    html = piece(60)._repr_mimebundle_()["text/html"]
    assert "<img" in html
    assert "<audio" in html
    assert "<img" in piece()._repr_mimebundle_()["text/html"]
