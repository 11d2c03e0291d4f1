"""Scores for the tests of MIDI generation: by hand, and random ones on the grid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import symusic
from hypothesis import strategies as st

QUARTER = 48  # ticks: twelve to the beat in sixteenths too
DRUMS = -1


def score(
    notes: Iterable[tuple[int, int, int, int]],
    signatures: Sequence[tuple[int, int, int]] = (),
    tempos: Sequence[tuple[int, float]] = (),
    quarter: int = QUARTER,
) -> Any:
    """notes: (time, duration, pitch, program), program -1 for drums, a track each; times in ticks."""
    made = symusic.Score(quarter)
    for time, numerator, denominator in signatures:
        made.time_signatures.append(symusic.TimeSignature(time, numerator, denominator))
    for time, tempo in tempos:
        made.tempos.append(symusic.Tempo(time, tempo))
    tracks: dict[int, Any] = {}
    for time, duration, pitch, program in notes:
        if program not in tracks:
            tracks[program] = symusic.Track(program=max(program, 0), is_drum=program == DRUMS)
        tracks[program].notes.append(symusic.Note(time, duration, pitch, 80))
    for track in tracks.values():
        made.tracks.append(track)
    return made


def notes(made: Any, quarter: int = QUARTER) -> Counter[tuple[int, int, int, int]]:
    """Every note as (time, duration, pitch, program), times in ticks of `quarter`."""
    found: Counter[tuple[int, int, int, int]] = Counter()
    for track in made.tracks:
        n = track.notes.numpy()
        program = DRUMS if track.is_drum else track.program
        times, durations = (n[key].astype(np.int64) * quarter / made.ticks_per_quarter for key in ("time", "duration"))
        found.update(zip(times.tolist(), durations.tolist(), n["pitch"].tolist(), [program] * len(times), strict=True))
    return found


def bar_lines(made: Any, quarter: int = QUARTER) -> list[float]:
    """Where its bars begin, up to the last note."""
    changes = [(s.time, s.numerator, s.denominator) for s in made.time_signatures]
    end = max((note.time for track in made.tracks for note in track.notes), default=0)
    lines: list[float] = []
    for (time, numerator, denominator), stop in zip(
        changes, [*(change[0] for change in changes[1:]), end + 1], strict=True
    ):
        lines += np.arange(time, stop, made.ticks_per_quarter * 4 * numerator / denominator).tolist()
    return [line * quarter / made.ticks_per_quarter for line in lines if line <= end]


SIGNATURES = [
    (4, 4),
    (3, 4),
    (2, 4),
    (6, 8),
    (9, 8),
    (12, 8),
    (5, 8),
    (2, 2),
    (3, 2),
    (3, 16),
    (9, 16),
    (7, 4),
    (15, 8),
]
TOKENS = [*range(1, 49), *range(54, 145, 6)]  # durations there is a token for, in twelfths of a beat


@st.composite
def scores(
    draw: Any, signatures: Sequence[tuple[int, int]] = tuple(SIGNATURES), most: int = 25, length: int = 6
) -> Any:
    """Any score on the grid: signatures that change, up to sixteen programs and drums, chords, overlaps, rests.

    most: notes at most; length: bars of a section at most."""
    sections = draw(
        st.lists(st.tuples(st.sampled_from(signatures), st.integers(1, length)), min_size=1, max_size=1 + length // 2)
    )
    changes, bars, time = [], [], 0
    for (numerator, denominator), count in sections:
        changes.append((time, numerator, denominator))
        beat = QUARTER * 4 // denominator
        for _ in range(count):
            bars.append((time, numerator * 12, beat // 12))
            time += numerator * beat
    programs = draw(st.lists(st.sampled_from([DRUMS, *range(128)]), min_size=1, max_size=16, unique=True))
    made = []
    for _ in range(draw(st.integers(1, most))):
        start, places, step = draw(st.sampled_from(bars))
        program = draw(st.sampled_from(programs))
        pitch = draw(st.integers(27, 88) if program == DRUMS else st.integers(0, 127))
        made.append(
            (
                start + step * draw(st.integers(0, places - 1)),
                step * draw(st.sampled_from(TOKENS)),
                pitch,
                program,
            )
        )
    tempos = draw(st.lists(st.tuples(st.integers(0, time // 12).map(lambda n: 12 * n), st.floats(31, 239)), max_size=4))
    return score(made, changes, sorted(tempos))
