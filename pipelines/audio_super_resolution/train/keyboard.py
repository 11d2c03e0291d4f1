"""What a piano plays of a MIDI song: which key is struck when, how hard, and when its damper falls.

Choices made here:
- One piano: all parts but drums play on it, and one pedal (controller 64) holds all. A key that is struck again is
  damped first; a key that two parts strike at once is struck once, with the stronger hand.
- A song without dynamics is given some, a PHRASE at a time, so that every strength is heard.

N: notes of a song.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genkit.errors import MediaError
from genkit.media.midi import Midi

__all__ = ["MARKS", "Events", "events"]

MARKS = {"ppp": 16, "pp": 33, "p": 49, "mp": 64, "mf": 80, "f": 96, "ff": 112, "fff": 127}
"""The MIDI velocity of each dynamic mark, as notation programs play them."""
PHRASE = 8.0  # seconds


@dataclass(frozen=True)
class Events:
    """The notes of a song in order of their starts, each [N]; times in samples, an end being where the damper falls."""

    start: np.ndarray
    end: np.ndarray
    pitch: np.ndarray
    velocity: np.ndarray


def events(path: Path, rate: int) -> Events:
    """What a piano plays of a song. Raises MediaError."""
    tracks = [track for track in Midi.open(path).score.to("Second").tracks if not track.is_drum]
    columns = [track.notes.numpy() for track in tracks if len(track.notes)]
    if not columns:
        raise MediaError(f"{path}: holds nothing but drums; give songs with notes")
    time, duration, pitch, velocity = (
        np.concatenate([column[key] for column in columns]).astype(np.float64)
        for key in ("time", "duration", "pitch", "velocity")
    )
    pedals = sorted((p.time, p.time + p.duration) for track in tracks for p in track.pedals)
    end = _held(time + duration, pedals)
    if velocity.min() == velocity.max() and time.max() > PHRASE:
        velocity = _phrased(time, path.name)
    return _one_keyboard(
        np.round(time * rate).astype(np.int64),
        np.round(end * rate).astype(np.int64),
        pitch.astype(np.int64),
        velocity.clip(1, 127).astype(np.int64),
    )


def _held(end: np.ndarray, pedals: Sequence[tuple[float, float]]) -> np.ndarray:
    """Ends of notes, those under a pedal moved to where it is lifted. pedals: seconds from and to, in order."""
    for down, up in pedals:
        end = np.where((end >= down) & (end < up), up, end)
    return end


def _phrased(time: np.ndarray, name: str) -> np.ndarray:
    """Velocities for notes at these seconds: of a mark from pp to ff that is drawn from the song's name, by phrases."""
    choice = list(MARKS.values())[1:-1]
    phrase = (time // PHRASE).astype(int)
    drawn = {
        int(p): choice[hashlib.blake2b(f"{name} {p}".encode()).digest()[0] % len(choice)] for p in np.unique(phrase)
    }
    return np.array([drawn[int(p)] for p in phrase], np.float64)


def _one_keyboard(start: np.ndarray, end: np.ndarray, pitch: np.ndarray, velocity: np.ndarray) -> Events:
    """No key is struck twice at once, and it is damped where it is struck again."""
    order = np.lexsort((-velocity, start, pitch))
    start, end, pitch, velocity = start[order], end[order], pitch[order], velocity[order]
    first = np.flatnonzero(np.r_[True, (start[1:] != start[:-1]) | (pitch[1:] != pitch[:-1])])
    end = np.maximum.reduceat(end, first)
    start, pitch, velocity = start[first], pitch[first], velocity[first]
    again = pitch[1:] == pitch[:-1]
    end[:-1] = np.where(again, np.minimum(end[:-1], start[1:]), end[:-1])
    order = np.lexsort((pitch, start))
    return Events(start[order], end[order], pitch[order], velocity[order])
