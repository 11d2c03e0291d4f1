"""Renderings: the suffix says what comes out, what two files share is made once, and the record tells what was made."""

from __future__ import annotations

from pathlib import Path

import pytest
import symusic

from genkit.errors import MediaError
from genkit.media import rendering
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
    kinds = {suffix: rendering.kind_of(f"a{suffix.upper()}") for suffix in rendering.SUFFIXES}
    assert kinds == rendering.SUFFIXES
    assert set(kinds.values()) == {"audio", "image", "notation"}
    for name in ("a.mid", "a.jpg", "a", ".wav", "a.wav.txt"):
        with pytest.raises(MediaError, match=r"use one of \.wav"):
            rendering.kind_of(name)


def test_what_two_files_share_is_made_once(piece: Midi, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    render = Midi.render
    monkeypatch.setattr(Midi, "render", lambda self, font=None: calls.append(font) or render(self, font, 8000))
    sound, roll, same = rendering.values(piece, [Path("a.wav"), Path("a.png"), Path("a.flac")], soundfont())
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


def test_the_record_names_the_piece_among_several_values(piece: Midi, tmp_path: Path) -> None:
    from PIL import Image as PILImage

    from genkit.media import provenance

    output = Output(images=[Image(PILImage.new("RGB", (4, 4)))], midi=piece, provenance=RECORD)
    output.render(tmp_path / "a.png")
    record = provenance.read(tmp_path / "a.png")
    assert record is not None
    assert output.media[record.index] is piece
