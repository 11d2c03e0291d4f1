"""Music made of recorded notes: names, pitch, strength, places, and that a crop is a stretch of the whole."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import symusic
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genkit.errors import InputError, MediaError
from genkit.media.audio import Audio
from genkit.training.task import Setup
from pipelines.audio_super_resolution.train.keyboard import MARKS
from pipelines.audio_super_resolution.train.notes import HEADROOM, RELEASE, Notes, Recording, Songs, main

RATE = 16000
TICKS = 1000  # a quarter, and at the tempo below a second
Struck = tuple[float, float, int, int]  # seconds from and for, pitch, velocity


def frequency(pitch: int) -> float:
    return 440 * 2 ** ((pitch - 69) / 12)


def tone(pitch: int, *, overtone: float = 0.0, seconds: float = 1.0, rate: int = RATE) -> Tensor:
    """[T], a dying cosine, which begins at its loudest; overtone: level of its third partial."""
    time = torch.arange(round(seconds * rate)) / rate
    phase = 2 * math.pi * frequency(pitch) * time
    return 0.4 * torch.exp(-2 * time) * (phase.cos() + overtone * (3 * phase).cos())


def record(sound: Tensor, path: Path) -> None:
    soundfile.write(path, sound.numpy(), RATE, subtype="PCM_24")


def heard(sound: Tensor, near: float, rate: int = RATE) -> float:
    """Hz of the strongest partial within a semitone of a frequency."""
    size = 1 << 18
    power = torch.fft.rfft(sound * torch.hann_window(len(sound), periodic=False), size).abs()
    low, high = (int(near * 2 ** (step / 12) * size / rate) for step in (-1, 1))
    return (low + int(power[low:high].argmax())) * rate / size


def level(sound: Tensor, hertz: float) -> float:
    turn = torch.exp(-2j * math.pi * hertz * torch.arange(len(sound)) / RATE)
    return float((sound * turn).sum().abs())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every third key from F2 to A5 at two strengths, told apart by their colour."""
    home = tmp_path_factory.mktemp("notes")
    for pitch in range(53, 97, 3):
        for mark, overtone in (("pp", 0.0), ("FF", 0.5)):
            record(tone(pitch, overtone=overtone), home / f"{mark}_{pitch}.wav")
    return home


@pytest.fixture(scope="module")
def notes(folder: Path) -> Notes:
    return Notes(folder, rate=RATE)


def song(
    path: Path, struck: Sequence[Struck], *, pedals: Sequence[tuple[float, float]] = (), drums: Sequence[Struck] = ()
) -> Path:
    """A MIDI file of one part, and another with drums."""
    score = symusic.Score(TICKS)
    score.tempos.append(symusic.Tempo(0, 60.0))
    for notes, drum in ((struck, False), (drums, True)):
        track = symusic.Track("", 0, drum)
        for start, length, pitch, velocity in notes:
            track.notes.append(symusic.Note(round(start * TICKS), round(length * TICKS), pitch, velocity))
        for down, up in () if drum else pedals:
            track.controls.append(symusic.ControlChange(round(down * TICKS), 64, 127))
            track.controls.append(symusic.ControlChange(round(up * TICKS), 64, 0))
        score.tracks.append(track)
    score.dump_midi(str(path))
    return path


def piece(path: Path, seed: int = 0, seconds: float = 6.0) -> Path:
    """Forty notes at random, on and between the recorded keys and beyond them."""
    draw = np.random.default_rng(seed)
    return song(
        path,
        [
            (
                float(draw.random() * seconds),
                float(draw.random()),
                int(draw.integers(48, 100)),
                int(draw.integers(1, 128)),
            )
            for _ in range(40)
        ],
        pedals=[(1.0, 2.5)],
    )


def played(path: Path, notes: Notes) -> Songs:
    return Songs([path], notes, bits=None)


# ------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "middle_c", "pitch", "velocity"),
    [
        ("FF_A3", 3, 69, 112),
        ("PP_As2", 3, 58, 33),
        ("Mf_B-1", 3, 23, 80),
        ("mp_c7", 3, 108, 64),
        ("fff_Bb3", 3, 70, 127),
        ("ppp_F#3", 3, 66, 16),
        ("FF_A4", 4, 69, 112),
        ("v100_60", 3, 60, 100),
        ("60", 3, 60, 80),
        ("C3", 3, 60, 80),
    ],
)
def test_a_name_tells_strength_and_pitch(name: str, middle_c: int, pitch: int, velocity: int) -> None:
    path = Path(f"{name}.flac")
    assert Recording.named(path, middle_c) == (pitch, velocity, path)


@pytest.mark.parametrize(
    "name", ["FF_H3", "take one", "v128_60", "v0_60", "FF_128", "FF_C9", "C-3", "xx_A3", "FF_A3_2"]
)
def test_other_names_are_named_and_left_out(name: str, tmp_path: Path) -> None:
    bad = tmp_path / f"{name}.wav"
    record(tone(69), bad)
    with pytest.raises(InputError, match="tells no strength and pitch"):
        Notes(tmp_path, rate=RATE)
    record(tone(69), tmp_path / "FF_A3.wav")
    said: list[str] = []
    notes = Notes(tmp_path, rate=RATE, setup=Setup(device=torch.device("cpu"), say=said.append))
    assert [r.pitch for r in notes.recordings] == [69]
    assert any(str(bad) in line for line in said)
    with pytest.raises(MediaError):
        Notes(tmp_path, rate=RATE, setup=Setup(device=torch.device("cpu"), strict=True))


def test_a_folder_without_notes_and_damaged_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no files"):
        Notes(tmp_path, rate=RATE)
    (tmp_path / "FF_A3.flac").write_bytes(b"fLaC and no more")
    with pytest.raises(InputError, match=r"FF_A3\.flac"):
        Notes(tmp_path, rate=RATE)


# ------------------------------------------------------------------------------------------------- pitch and strength


@pytest.mark.parametrize("rate", [RATE, 11025])
@pytest.mark.parametrize("pitch", [50, 53, 54, 55, 60, 75, 79, 98])
def test_every_key_is_in_tune(pitch: int, rate: int, folder: Path) -> None:
    sound = Notes(folder, rate=rate).note(pitch, 33)
    cents = 1200 * math.log2(heard(sound, frequency(pitch), rate) / frequency(pitch))
    assert abs(cents) < 2


def test_strength_follows_velocity(notes: Notes) -> None:
    soft, loud = notes.note(60, 20), notes.note(60, 120)
    third = 3 * frequency(60)
    assert level(soft, third) < 0.02 * level(soft, frequency(60))
    assert level(loud, third) > 0.4 * level(loud, frequency(60))
    # Within a strength loudness goes with the square of velocity.
    assert torch.allclose(notes.note(60, 127), notes.note(60, 100) * 1.27**2, atol=1e-6)


def test_strength_counts_within_reach_and_pitch_beyond(tmp_path: Path) -> None:
    for name in ("pp_60", "FF_62", "FF_70"):
        record(tone(60), tmp_path / f"{name}.wav")
    notes = Notes(tmp_path, rate=RATE)
    assert notes.choose(60, 127).path.stem == "FF_62"
    assert notes.choose(62, 10).path.stem == "pp_60"
    assert notes.choose(57, 127).path.stem == "pp_60"
    assert notes.choose(66, 127).path.stem == "FF_62"  # as far from 70: raised rather than lowered


@pytest.mark.parametrize("share", [0.5, 0.25, 0.1])
def test_the_held_out_notes_cover_keyboard_and_strengths(share: float, folder: Path) -> None:
    train, held = Notes.split(folder, share, rate=RATE)
    a, b = ({r.path for r in part.recordings} for part in (train, held))
    assert not a & b
    assert a | b == set(folder.iterdir())
    assert abs(len(b) - share * len(a | b)) <= 1
    assert {r.path for r in Notes.split(folder, share, rate=RATE)[1].recordings} == b
    if share == 0.1:
        places = [r.pitch for r in held.recordings]
        assert places[0] < 65 < 85 < places[-1]


@pytest.mark.parametrize("share", [0, -0.1, 0.6, math.nan])
def test_a_share_that_is_none(share: float, folder: Path) -> None:
    with pytest.raises(InputError, match="share"):
        Notes.split(folder, share)


def test_too_few_notes_to_hold_any_out(tmp_path: Path) -> None:
    record(tone(60), tmp_path / "60.wav")
    with pytest.raises(InputError, match="give more notes"):
        Notes.split(tmp_path, 0.1)


# ------------------------------------------------------------------------------------------------------------- places


def test_a_note_stands_at_its_sample_and_is_damped(notes: Notes, tmp_path: Path) -> None:
    songs = played(song(tmp_path / "a.mid", [(0.5, 0.25, 62, 100)]), notes)
    sound = songs.crop(0, 0.0, 2 * RATE)
    start, end, release = RATE // 2, 3 * RATE // 4, round(RELEASE * RATE)
    note = HEADROOM * notes.note(62, 100)
    assert not sound[:start].any()
    assert sound[start] != 0
    assert torch.allclose(sound[start:end], note[: end - start], atol=1e-6)
    assert 0 < sound[end : end + release].abs().max() < note.abs().max()
    assert sound[end : end + release].square().sum() < note[end - start :][:release].square().sum()
    assert not sound[end + release :].any()
    assert songs.duration(0) == pytest.approx(0.75 + RELEASE)


def test_the_pedal_holds_until_it_is_lifted(notes: Notes, tmp_path: Path) -> None:
    dry = played(song(tmp_path / "dry.mid", [(0.0, 0.25, 62, 100)]), notes)
    wet = played(song(tmp_path / "wet.mid", [(0.0, 0.25, 62, 100)], pedals=[(0.1, 0.6)]), notes)
    assert wet.duration(0) == pytest.approx(0.6 + RELEASE)
    note = HEADROOM * notes.note(62, 100)
    assert torch.allclose(wet.crop(0, 0.0, int(0.6 * RATE)), note[: int(0.6 * RATE)], atol=1e-6)
    assert not dry.crop(0, 0.45, RATE).any()


def test_drums_are_left_out(notes: Notes, tmp_path: Path) -> None:
    struck: list[Struck] = [(0.0, 0.5, 62, 100), (0.5, 0.5, 65, 50)]
    plain = played(song(tmp_path / "plain.mid", struck), notes)
    drums = played(song(tmp_path / "drums.mid", struck, drums=[(0.2, 0.2, 40, 120)]), notes)
    assert torch.equal(plain.crop(0, 0.0, RATE), drums.crop(0, 0.0, RATE))
    with pytest.raises(MediaError, match="drums"):
        played(song(tmp_path / "only.mid", [], drums=[(0.2, 0.2, 40, 120)]), notes)


def test_a_key_sounds_once(notes: Notes, tmp_path: Path) -> None:
    once = played(song(tmp_path / "once.mid", [(0.0, 0.5, 62, 100), (1.0, 0.2, 65, 50)]), notes)
    twice = played(song(tmp_path / "twice.mid", [(0.0, 0.5, 62, 100), (0.0, 0.3, 62, 40), (1.0, 0.2, 65, 50)]), notes)
    assert torch.equal(once.crop(0, 0.0, RATE), twice.crop(0, 0.0, RATE))
    again = played(song(tmp_path / "again.mid", [(0.0, 0.9, 62, 100), (0.4, 0.5, 62, 40)]), notes)
    second = again.crop(0, 0.4 + RELEASE, 1000)
    alone = HEADROOM * notes.note(62, 40)[round(RELEASE * RATE) :][:1000]
    assert torch.allclose(second, alone, atol=1e-6)


# -------------------------------------------------------------------------------------------------------------- crops


@pytest.fixture(scope="module")
def whole(notes: Notes, tmp_path_factory: pytest.TempPathFactory) -> tuple[Songs, Tensor]:
    songs = played(piece(tmp_path_factory.mktemp("song") / "piece.mid"), notes)
    return songs, songs.crop(0, 0.0, songs.length(0))


@given(start=st.integers(0, 8 * RATE), samples=st.integers(1, 3 * RATE))
@settings(max_examples=60, deadline=None)
def test_a_crop_is_that_stretch_of_the_whole(whole: tuple[Songs, Tensor], start: int, samples: int) -> None:
    songs, sound = whole
    expected = torch.nn.functional.pad(sound, (0, 12 * RATE))[start : start + samples]
    assert torch.allclose(songs.crop(0, start / RATE, samples), expected, rtol=0, atol=1e-6)


def test_a_crop_longer_than_the_song_ends_in_silence(whole: tuple[Songs, Tensor]) -> None:
    songs, sound = whole
    crop = songs.crop(0, 0.0, len(sound) + 500)
    assert torch.equal(crop[: len(sound)], sound)
    assert not crop[len(sound) :].any()
    assert sound.abs().max() > 0.01


def test_the_same_whatever_was_played_before_and_in_whatever_memory(folder: Path, tmp_path: Path) -> None:
    path = piece(tmp_path / "piece.mid", seed=3)
    songs = played(path, Notes(folder, rate=RATE))
    first = songs.crop(0, 1.0, RATE)
    songs.crop(0, 3.0, RATE)
    tight = Notes(folder, rate=RATE, memory=100_000)
    small = played(path, tight)
    for _ in range(2):
        assert torch.equal(songs.crop(0, 1.0, RATE), first)
        assert torch.equal(small.crop(0, 1.0, RATE), first)
        assert 0 < tight.used <= 100_000
    copy = pickle.loads(pickle.dumps(songs))
    assert copy.notes.used == 0
    assert torch.equal(copy.crop(0, 1.0, RATE), first)


def test_rounded_to_16_bits(notes: Notes, tmp_path: Path) -> None:
    path = piece(tmp_path / "piece.mid")
    rounded, plain = Songs([path], notes).crop(0, 1.0, RATE), Songs([path], notes, bits=None).crop(0, 1.0, RATE)
    assert torch.equal(rounded * 32768, (rounded * 32768).round())
    assert (rounded - plain).abs().max() <= 0.5 / 32768 + 1e-9


def test_a_song_without_dynamics_is_given_some(notes: Notes, tmp_path: Path) -> None:
    flat: list[Struck] = [(float(t), 0.5, 60 + t % 12, 90) for t in range(0, 400, 2)]
    a, b = (played(song(tmp_path / "flat.mid", flat), notes).events[0].velocity for _ in range(2))
    assert (a == b).all()
    assert set(a.tolist()) == set(list(MARKS.values())[1:-1])
    other = played(song(tmp_path / "other.mid", flat), notes).events[0].velocity
    assert (a != other).any()


def test_songs_that_cannot_be_played(notes: Notes, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no songs"):
        Songs([], notes)
    good, bad = piece(tmp_path / "good.mid"), tmp_path / "bad.mid"
    bad.write_bytes(b"MThd and no more")
    with pytest.raises(InputError, match="rate"):
        Songs([good], notes, 44100)
    said: list[str] = []
    songs = Songs([bad, good], notes, setup=Setup(device=torch.device("cpu"), say=said.append))
    assert songs.paths == [good]
    assert any("bad.mid" in line for line in said)
    for start, samples in ((-1.0, 10), (0.0, 0), (math.nan, 10)):
        with pytest.raises(InputError, match="stretch"):
            songs.crop(0, start, samples)


def test_from_the_console(folder: Path, notes: Notes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home, out = tmp_path / "songs", tmp_path / "out"
    home.mkdir()
    paths = [piece(home / f"{name}.mid", seed) for seed, name in enumerate("abc")]
    words = [str(folder), str(home), str(out), "--rate", str(RATE), "--limit", "2", "--seconds", "1.5"]
    main(words)
    assert sorted(p.name for p in out.iterdir()) == ["a.flac", "b.flac"]
    written = Audio.open(out / "a.flac")
    assert torch.equal(written.samples, Songs([paths[0]], notes).render(0, 1.5).samples)
    assert written.duration == 1.5
    main(words)  # the same again is no harm
    with pytest.raises(InputError, match="holds another sound"):
        main([*words, "--part", "held"])
    assert torch.equal(Audio.open(out / "a.flac").samples, written.samples)
    for wrong in (["--limit", "-1"], ["--seconds", "0"], ["--rate", "0"]):
        with pytest.raises(InputError):
            main([*words, *wrong])
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "--held-out" in capsys.readouterr().out
