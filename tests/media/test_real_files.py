"""Real pictures, sounds and scores from the shared data come through the readers unharmed."""

from __future__ import annotations

import io
from pathlib import Path

from genkit.media.audio import Audio
from genkit.media.image import Image
from genkit.media.midi import Midi


def some(folder: Path, *suffixes: str) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    assert found
    return found[:: max(1, len(found) // 12)]


def test_scores_survive_the_round_trip(shared: Path) -> None:
    for path in some(shared / "data" / "midi", ".mid"):
        piece = Midi.open(path)
        back = Midi.open(io.BytesIO(piece.encoded()))
        assert (back.notes, back.digest()) == (piece.notes, piece.digest()), path.name


def test_pictures_and_sounds_are_read(shared: Path) -> None:
    for path in some(shared / "data" / "images", ".jpg", ".jpeg", ".png", ".webp")[:6]:
        assert min(Image.open(path).size) > 16
    for path in some(shared / "data" / "audio", ".wav", ".flac", ".ogg", ".mp3")[:6]:
        assert Audio.open(path).duration > 0.1
