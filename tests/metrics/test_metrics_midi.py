"""Statistics of pieces and the search for copies, against values worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import symusic

from genkit.metrics import midi
from genkit.metrics.copies import longest_runs

Q = 480  # ticks of a quarter note


def score(
    notes: Iterable[tuple[float, float, int]],
    signatures: Sequence[tuple[float, int, int]] = (),
    *,
    drums: bool = False,
    quarter: int = Q,
) -> Any:
    """notes: (onset, duration, pitch), signatures: (time, numerator, denominator), times in quarter notes."""
    made = symusic.Score(quarter)
    for time, numerator, denominator in signatures:
        made.time_signatures.append(symusic.TimeSignature(round(time * quarter), numerator, denominator))
    track = symusic.Track(program=0, is_drum=drums)
    for onset, duration, pitch in notes:
        track.notes.append(symusic.Note(round(onset * quarter), round(duration * quarter), pitch, 80))
    made.tracks.append(track)
    return made


SCALE = [(i, 1, 60 + step) for i, step in enumerate((0, 2, 4, 5, 7, 9, 11, 12))]
ALBERTI = [(i / 2, 0.5, pitch) for i, pitch in enumerate((48, 55, 52, 55) * 8)]


def melody(seed: int, count: int = 200) -> list[tuple[float, float, int]]:
    draw = np.random.default_rng(seed)
    durations = draw.choice([0.25, 0.5, 0.75, 1, 1.5, 2], count)
    return list(zip(np.cumsum(durations) - durations, durations, draw.integers(50, 80, count).tolist(), strict=True))


def test_a_scale() -> None:
    found = midi.statistics(score(SCALE))
    # Seven pitch classes in eight notes, C twice.
    assert found["pitch_class_entropy"] == pytest.approx(6 / 8 * 3 + 2 / 8 * 2)
    assert found["scale_consistency"] == 1
    assert found["groove_consistency"] == 1  # two bars of four quarters
    assert found["polyphony"] == 1
    assert found["empty_beat_rate"] == 0
    assert found["pitch_range"] == 12
    assert found["notes_per_beat"] == 1
    assert found["note_length"] == 0  # log2 of a quarter
    assert math.isnan(found["self_repetition"])  # seven intervals are no run of eight


def test_an_alberti_bass() -> None:
    found = midi.statistics(score(ALBERTI))
    assert found["pitch_class_entropy"] == pytest.approx(1.5)  # C a quarter, G a half, E a quarter
    assert found["groove_consistency"] == 1
    assert found["notes_per_beat"] == 2
    assert found["note_length"] == -1
    assert found["pitch_range"] == 7
    # 31 intervals in a period of four: 24 runs of eight, four of them different.
    assert found["self_repetition"] == pytest.approx(20 / 24)


def test_a_chromatic_scale_fits_no_scale() -> None:
    found = midi.statistics(score([(i, 1, 60 + i) for i in range(12)]))
    assert found["scale_consistency"] == pytest.approx(7 / 12)
    assert found["pitch_class_entropy"] == pytest.approx(math.log2(12))


@pytest.mark.parametrize("semitones", [-5, 1, 6])
def test_a_natural_minor_scale_is_as_consistent_as_a_major_one(semitones: int) -> None:
    steps = (0, 2, 3, 5, 7, 8, 10)
    minor = score([(i, 1, 60 + semitones + step) for i, step in enumerate(steps)])
    assert midi.statistics(minor)["scale_consistency"] == 1


def test_polyphony_counts_different_pitches_while_anything_sounds() -> None:
    # A chord of three for a quarter, a rest, then one note for a quarter: (3 + 1) / 2; a unison counts once.
    chord = [(0, 1, 60), (0, 1, 64), (0, 1, 67), (0, 1, 67), (3, 1, 60)]
    assert midi.statistics(score(chord))["polyphony"] == pytest.approx(2)
    # One pitch struck again before it ends sounds as one: three quarters of C, one of E above it.
    assert midi.statistics(score([(0, 2, 60), (1, 2, 60), (0, 1, 64)]))["polyphony"] == pytest.approx(4 / 3)


def test_empty_beats() -> None:
    # Sounding in the first quarter, across the third and fourth, and the eighth: four of eight are empty.
    assert midi.statistics(score([(0, 0.5, 60), (2.5, 1, 60), (7, 1, 60)]))["empty_beat_rate"] == pytest.approx(4 / 8)


def test_groove_in_bars_of_the_signature() -> None:
    # 3/4: the second bar has an onset that the first has not, and lacks one: 2 of 36 places; the third equals it.
    onsets = [0, 1, 2, 3, 4, 5.5, 6, 7, 8.5]
    notes = [(onset, 0.25, 60) for onset in onsets]
    assert midi.statistics(score(notes, [(0, 3, 4)]))["groove_consistency"] == pytest.approx(1 - (2 / 36 + 0) / 2)
    # After a change of signature bars are compared with those of their own length alone.
    changed = [(0, 3, 4), (6, 2, 4)]
    notes = [(onset, 0.25, 60) for onset in (0, 1, 3, 4, 6, 8, 8.5)]
    assert midi.statistics(score(notes, changed))["groove_consistency"] == pytest.approx(1 - (0 + 1 / 24) / 2)


def test_one_bar_has_no_groove_to_keep() -> None:
    assert math.isnan(midi.statistics(score([(0, 1, 60)]))["groove_consistency"])


def test_drums_count_in_groove_and_beats_alone() -> None:
    found = midi.statistics(score([(i, 0.5, 36) for i in range(16)], drums=True))
    assert (found["groove_consistency"], found["notes_per_beat"], found["empty_beat_rate"]) == (1, 1, 0)
    assert math.isnan(found["pitch_class_entropy"])
    assert math.isnan(found["polyphony"])
    assert all(math.isnan(value) for value in midi.statistics(symusic.Score(Q)).values())


def test_statistics_do_not_depend_on_the_resolution_of_the_file() -> None:
    notes = melody(0)
    coarse, fine = midi.statistics(score(notes, quarter=24)), midi.statistics(score(notes, quarter=10080))
    assert coarse == pytest.approx(fine, nan_ok=True)


def test_a_piece_of_two_billion_ticks_takes_no_memory() -> None:
    far = symusic.Score(1)
    far.tracks.append(symusic.Track())
    far.tracks[0].notes.append(symusic.Note(0, 1, 60, 80))
    far.tracks[0].notes.append(symusic.Note(2**31 - 10, 5, 67, 80))
    found = midi.statistics(far)
    assert found["empty_beat_rate"] == pytest.approx(1)
    assert found["polyphony"] == 1


def test_lengths_go_to_the_nearest() -> None:
    counts = midi.lengths(score([(0, 1, 60), (1, 0.5, 60), (2, 1 / 3, 60), (3, 100, 60)]))
    found = dict(zip(midi.LENGTHS.tolist(), counts.tolist(), strict=True))
    assert {length: count for length, count in found.items() if count} == {12: 1, 6: 1, 4: 1, 96: 1}


# Overlap.


def test_overlap_of_equal_and_of_distant_sets() -> None:
    draw = np.random.default_rng(0)
    a = draw.normal(0, 1, 400)
    assert midi.overlap(a, a) == pytest.approx(1, abs=1e-3)
    assert midi.overlap(a, a + 50) == pytest.approx(0, abs=1e-3)
    assert midi.overlap(a, np.array([np.nan])) != midi.overlap(a, np.array([np.nan]))  # NaN
    assert midi.overlap(np.full(3, 2.0), np.full(5, 2.0)) == 1
    assert midi.overlap(np.full(3, 2.0), np.full(5, 3.0)) == pytest.approx(0, abs=1e-3)


def test_overlap_of_two_normals_is_the_closed_form() -> None:
    # Two unit normals d apart share 2 Phi(-d/2). Kernels widen both by sqrt(1 + n^-0.4).
    draw = np.random.default_rng(1)
    n, d = 4000, 1.5
    a, b = draw.normal(0, 1, n), draw.normal(d, 1, n)
    width = math.sqrt(1 + n**-0.4)
    assert midi.overlap(a, b) == pytest.approx(math.erfc(d / 2 / width / math.sqrt(2)), abs=0.02)
    assert midi.overlap(a, b) == pytest.approx(midi.overlap(b, a))


def test_overlap_of_histograms() -> None:
    assert midi.histogram_overlap(np.array([2, 2, 0]), np.array([0, 1, 1])) == pytest.approx(0.5)
    assert math.isnan(midi.histogram_overlap(np.zeros(3), np.ones(3)))


# Copies.


def test_a_transposed_copy_is_found_and_a_random_melody_is_not() -> None:
    training = [stream for seed in range(5) for stream in midi.streams(score(melody(seed)))]
    theirs = melody(3)
    copy = [(onset, duration, pitch + 5) for onset, duration, pitch in theirs[40:100]]
    own = melody(77, 30)
    shift = own[-1][0] + own[-1][1] - copy[0][0]
    (stream,) = midi.streams(score([*own, *((onset + shift, duration, pitch) for onset, duration, pitch in copy)]))
    (found,) = longest_runs([stream], training)
    # Sixty notes are 59 intervals; the first of them is the 30th symbol (29 intervals of one's own, one to the copy).
    assert found[30] == 59
    assert found.max() == 59
    (random,) = longest_runs(midi.streams(score(melody(78))), training)
    assert random.max() < 5


def test_durations_count() -> None:
    theirs = melody(0, 50)
    slower = [(2 * onset, 2 * duration, pitch) for onset, duration, pitch in theirs]
    (found,) = longest_runs(midi.streams(score(slower)), midi.streams(score(theirs)))
    assert found.max() < 5


@pytest.mark.parametrize("seed", range(5))
def test_runs_equal_a_search_letter_by_letter(seed: int) -> None:
    draw = np.random.default_rng(seed)
    training = [draw.integers(0, 3, size) for size in draw.integers(0, 60, 4)]
    queries = [draw.integers(-1, 3, size) for size in (*draw.integers(0, 40, 3), 1)]

    def longest(query: np.ndarray, start: int) -> int:
        runs = (n for n in range(len(query) - start, 0, -1))
        return next((n for n in runs if any(_inside(query[start : start + n], t) for t in training)), 0)

    found = longest_runs(queries, training)
    for query, lengths in zip(queries, found, strict=True):
        assert lengths.tolist() == [longest(query, i) for i in range(len(query))]


def _inside(part: np.ndarray, whole: np.ndarray) -> bool:
    return any(np.array_equal(part, whole[i : i + len(part)]) for i in range(len(whole) - len(part) + 1))


def test_a_run_does_not_cross_from_one_training_piece_to_the_next() -> None:
    (found,) = longest_runs([np.array([1, 2, 3, 4])], [np.array([1, 2]), np.array([3, 4])])
    assert found.tolist() == [2, 1, 2, 1]
    (nothing,) = longest_runs([np.array([1, 2])], [])
    assert nothing.tolist() == [0, 0]
    assert longest_runs([], [np.array([1])]) == []
