"""Writes the tune that the shipped recipes carry on, so that the encoding is nobody's but genkit's.

    python recipes/quickstart/write_tune.py [FOLDER]

ode_to_joy.mid   two phrases of the Ode to Joy (Beethoven, Ninth Symphony, 1824; public domain) for flute, over a broken
                 bass for piano in the manner of Alberti that is genkit's own: eight bars in D major

Needs symusic. The same bytes every time.
"""

from __future__ import annotations

import sys
from pathlib import Path

import symusic

QUARTER = 480
PITCH = {
    "A2": 45,
    "C#3": 49,
    "D3": 50,
    "E3": 52,
    "F#3": 54,
    "G3": 55,
    "A3": 57,
    "D5": 74,
    "E5": 76,
    "F#5": 78,
    "G5": 79,
    "A5": 81,
}

OPENING = [("F#5", 1), ("F#5", 1), ("G5", 1), ("A5", 1), ("A5", 1), ("G5", 1), ("F#5", 1), ("E5", 1)]
OPENING += [("D5", 1), ("D5", 1), ("E5", 1), ("F#5", 1)]
MELODY = [*OPENING, ("F#5", 1.5), ("E5", 0.5), ("E5", 2), *OPENING, ("E5", 1.5), ("D5", 0.5), ("D5", 2)]

TONIC, DOMINANT = ("D3", "A3", "F#3", "A3"), ("A2", "E3", "C#3", "E3")
HALVES = [TONIC, TONIC, DOMINANT, DOMINANT, TONIC, TONIC, DOMINANT, DOMINANT]
HALVES += [TONIC, TONIC, DOMINANT, DOMINANT, TONIC, TONIC, DOMINANT, TONIC]


def part(name: str, program: int, notes: list[tuple[str, float]], velocity: int) -> symusic.Track:
    """A track of notes one behind the other. notes: (name, quarters)."""
    track, time = symusic.Track(name=name, program=program, is_drum=False), 0
    for pitch, quarters in notes:
        duration = round(quarters * QUARTER)
        track.notes.append(symusic.Note(time, duration, PITCH[pitch], velocity))
        time += duration
    return track


def tune() -> symusic.Score:
    score = symusic.Score(QUARTER)
    score.tempos.append(symusic.Tempo(0, 104))
    score.time_signatures.append(symusic.TimeSignature(0, 4, 4))
    score.key_signatures.append(symusic.KeySignature(0, 2, 0))
    score.tracks.append(part("Flute", 73, MELODY, 88))
    score.tracks.append(part("Piano", 0, [(pitch, 0.5) for half in HALVES for pitch in half], 64))
    return score


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    tune().dump_midi(folder / "ode_to_joy.mid")
