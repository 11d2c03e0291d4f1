"""Renderings: the suffix says what comes out, what two files share is made once, and the record tells what was made."""

from __future__ import annotations

from pathlib import Path

import pytest
import symusic
import torch

from genkit.errors import MediaError
from genkit.media import rendering, spectrogram
from genkit.media.audio import Audio
from genkit.media.image import Image
from genkit.media.midi import Midi, soundfont
from genkit.media.provenance import Provenance, digest_file
from genkit.pipeline import Output

RECORD = Provenance(pipeline="test", version=1, params={"seed": 1})


@pytest.fixture
def piece() -> Midi:
    score = symusic.Score(480)
    score.tracks.append(symusic.Track())
    score.tracks[0].notes.append(symusic.Note(0, 480, 60, 90))
    return Midi(score)


def test_the_suffix_says_what_comes_out() -> None:
    for of, suffixes in rendering.SUFFIXES.items():
        assert {suffix: rendering.kind_of(f"a{suffix.upper()}", of) for suffix in suffixes} == suffixes
    assert set(rendering.SUFFIXES["midi"].values()) == {"audio", "image", "notation"}
    with pytest.raises(MediaError, match=r"a sound is not rendered to '\.wav'; use one of \.png"):
        rendering.kind_of("a.wav", "audio")
    for name in ("a.mid", "a.jpg", "a", ".wav", "a.wav.txt"):
        with pytest.raises(MediaError, match=r"use one of \.wav"):
            rendering.kind_of(name)


def test_what_two_files_share_is_made_once(piece: Midi, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    render = Midi.render
    monkeypatch.setattr(Midi, "render", lambda self, font=None: calls.append(font) or render(self, font, 8000))
    sound, roll, same = rendering.values(
        Output(midi=piece), [Path("a.wav"), Path("a.png"), Path("a.flac")], soundfont()
    )
    assert isinstance(sound, Audio)
    assert isinstance(roll, Image)
    assert same is sound
    assert calls == [soundfont()]


def test_the_record_tells_what_was_made_and_what_of() -> None:
    default, named = (rendering.record(RECORD, "audio", font).rendered for font in (None, soundfont()))
    assert default is not None
    assert named is not None
    assert default.soundfont is not None
    assert named.soundfont is not None
    assert (default.soundfont.path, named.soundfont.path) == (None, str(soundfont()))
    assert default.soundfont.sha256 == named.soundfont.sha256 == digest_file(soundfont())
    roll = rendering.record(RECORD, "image")
    assert Provenance.from_json(roll.to_json()) == roll
    assert Provenance.from_json(RECORD.to_json()).rendered is None


def test_a_sound_is_drawn_under_the_one_that_it_was_made_from(tmp_path: Path) -> None:
    dull, bright = (Audio(torch.randn(2, 4000) / 9, rate) for rate in (8000, 16000))
    path = dull.save(tmp_path / "dull.wav")
    alone, both, read = (
        rendering.values(Output(audio=bright, before=before), [Path("a.png")])[0] for before in (None, dull, path)
    )
    assert alone.digest() == bright.spectrogram().digest()
    assert both.digest() == spectrogram.draw({"before": dull, "after": bright}).digest()
    # What was saved has been rounded: a level may fall on the other side of a colour.
    assert read.digest() == spectrogram.draw({"before": Audio.open(path), "after": bright}).digest()
    with pytest.raises(MediaError, match="no sound to render"):
        rendering.values(Output(images=[both]), [Path("a.png")])


def test_the_record_names_the_piece_among_several_values(piece: Midi, tmp_path: Path) -> None:
    from PIL import Image as PILImage

    from genkit.media import provenance

    output = Output(images=[Image(PILImage.new("RGB", (4, 4)))], midi=piece, provenance=RECORD)
    output.render(tmp_path / "a.png")
    record = provenance.read(tmp_path / "a.png")
    assert record is not None
    assert output.media[record.index] is piece
