"""Statistics of pieces of MIDI, how alike two sets of pieces are by them, and what a piece repeats of itself.

Of one piece (`statistics`), drums counted only in groove, beats and notes per beat:

    pitch_class_entropy   entropy of its twelve pitch classes, in bits (Wu & Yang 2020, section 5.1, but of the piece)
    scale_consistency     largest share of notes in one of the major or natural minor scales (Mogren 2016; MusPy)
    groove_consistency    1 - mean over neighbouring bars of the share of places where just one of them has an onset
                          (Wu & Yang 2020, section 5.2; places of a twelfth of a quarter note, bars of one length)
    polyphony             mean number of different pitches that sound, while any does (MusPy)
    empty_beat_rate       share of quarter notes in which nothing sounds (MusPy)
    pitch_range           highest pitch less lowest, in semitones (MusPy)
    notes_per_beat        notes for each quarter note
    note_length           mean of log2 of the notes' length in quarter notes
    self_repetition       share of runs of eight notes (interval, duration) that came before in the piece; see `streams`

MusPy is Dong et al. 2020 (https://arxiv.org/abs/2008.01951); Wu & Yang 2020 is "The Jazz Transformer on the front line"
(https://arxiv.org/abs/2008.01307). Two sets are compared as Yang & Lerch 2020 do ("On the evaluation of generative
models in music"): the overlap of two densities estimated by Gaussian kernels; here densities of the values themselves.

Choices made here: numpy alone, and nothing as long as the piece has ticks, so that a file with 2^31 of them costs no
more than another. A score is symusic's, in ticks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["LENGTHS", "STATISTICS", "histogram_overlap", "lengths", "overlap", "statistics", "streams"]

STATISTICS = (
    "pitch_class_entropy",
    "scale_consistency",
    "groove_consistency",
    "polyphony",
    "empty_beat_rate",
    "pitch_range",
    "notes_per_beat",
    "note_length",
    "self_repetition",
)
PLACES = 12  # in a quarter note: triplets and sixteenths are exact
LENGTHS = np.array([1, 2, 3, 4, 6, 8, 9, 12, 16, 18, 24, 36, 48, 72, 96])
"""The note lengths that are told apart, in twelfths of a quarter note; others count as the nearest of them."""
RUN = 8  # notes of a run in self_repetition
_MAJOR = np.isin(np.arange(12), (0, 2, 4, 5, 7, 9, 11))


def statistics(score: Any) -> dict[str, float]:
    """The statistics of a piece, by name; NaN where it has no note that one could be taken of."""
    time, duration, pitch, is_drum, _ = _notes(score)
    quarter = int(score.ticks_per_quarter)
    tuned = ~is_drum
    found = dict.fromkeys(STATISTICS, math.nan)
    if not len(time):
        return found
    end = time + np.maximum(duration, 1)
    beats = -(-int(end.max()) // quarter)
    found["empty_beat_rate"] = 1 - _union(time // quarter, -(-end // quarter)) / beats
    found["notes_per_beat"] = len(time) / beats
    found["groove_consistency"] = groove_consistency(score, time)
    if tuned.any():
        found["pitch_class_entropy"] = pitch_class_entropy(pitch[tuned])
        found["scale_consistency"] = scale_consistency(pitch[tuned])
        found["polyphony"] = polyphony(time[tuned], end[tuned], pitch[tuned])
        found["pitch_range"] = float(np.ptp(pitch[tuned]))
        found["note_length"] = float(np.log2(np.maximum(duration[tuned], 1) / quarter).mean())
        found["self_repetition"] = self_repetition(streams(score))
    return found


def pitch_class_entropy(pitch: np.ndarray) -> float:
    """Bits, 0 (one pitch class) to log2(12). pitch: MIDI numbers [N]."""
    share = np.bincount(pitch % 12, minlength=12) / len(pitch)
    return float(-(share[share > 0] * np.log2(share[share > 0])).sum()) + 0.0


def scale_consistency(pitch: np.ndarray) -> float:
    """0 to 1. A natural minor scale has the pitch classes of its relative major: twelve are tried."""
    counts = np.bincount(pitch % 12, minlength=12)
    return float(max(counts[np.roll(_MAJOR, root)].sum() for root in range(12)) / len(pitch))


def polyphony(start: np.ndarray, end: np.ndarray, pitch: np.ndarray) -> float:
    """1 or more. start, end: ticks [N]."""
    apart = pitch * (int(end.max()) + 1)  # every pitch gets a stretch of the line to itself
    return _union(start + apart, end + apart) / _union(start, end)


def _union(start: np.ndarray, end: np.ndarray) -> int:
    """How much of the line some intervals [start, end) cover."""
    order = np.argsort(start, kind="stable")
    start, end = start[order], end[order]
    reach = np.maximum.accumulate(end)
    covered = np.concatenate([[start[0]], reach[:-1]])
    return int(np.maximum(reach - np.maximum(start, covered), 0).sum())


def groove_consistency(score: Any, time: np.ndarray) -> float:
    """0 to 1; NaN where no two bars of one length stand side by side. time: the onsets in ticks [N]."""
    quarter = int(score.ticks_per_quarter)
    onset = np.unique((np.asarray(time, np.int64) * PLACES + quarter // 2) // quarter)
    pairs, unlike = 0, 0.0
    for begin, end, length in _signatures(score, quarter, int(onset[-1]) + 1):
        count = -(-(end - begin) // length)
        inside = onset[(onset >= begin) & (onset < end)] - begin
        kept = np.isin(inside + length, inside, assume_unique=True).sum()  # onsets that the next bar has too
        first, last = int((inside < length).sum()), int((inside >= (count - 1) * length).sum())
        if count > 1:
            pairs += count - 1
            unlike += (2 * len(inside) - first - last - 2 * kept) / length
    return float(1 - unlike / pairs) if pairs else math.nan


def _signatures(score: Any, quarter: int, end: int) -> list[tuple[int, int, int]]:
    """Stretches of one time signature: begin, end and length of a bar, in places. 4/4 where none is stated."""
    changes: list[tuple[int, int]] = [(0, 4 * PLACES)]
    for signature in sorted(score.time_signatures, key=lambda s: s.time):
        at = round(signature.time * PLACES / quarter)
        length = max(1, round(4 * PLACES * signature.numerator / max(signature.denominator, 1)))
        if at == changes[-1][0]:
            changes[-1] = (at, length)
        elif length != changes[-1][1]:
            changes.append((at, length))
    ends = [at for at, _ in changes[1:]] + [end]
    stretches = [(at, min(stop, end), length) for (at, length), stop in zip(changes, ends, strict=True)]
    return [stretch for stretch in stretches if stretch[0] < stretch[1]]


def lengths(score: Any) -> np.ndarray:
    """How many notes (not drums) have each of LENGTHS. int64 [15]"""
    _, duration, _, is_drum, _ = _notes(score)
    places = np.maximum(duration[~is_drum], 1) * PLACES / int(score.ticks_per_quarter)
    nearest = np.abs(np.log(places)[:, None] - np.log(LENGTHS)).argmin(1)
    return np.bincount(nearest, minlength=len(LENGTHS))


# Runs of notes.


def streams(score: Any) -> list[np.ndarray]:
    """The notes of each program but drums as numbers, int64 [N - 1] each: the interval from the note before, and the
    note's duration in twelfths of a quarter note. Transposing the piece changes nothing.

    Notes are in the order of their onsets, of one onset from high to low; tracks of one program are one stream, as a
    part of the piano is written over two staves.
    """
    time, duration, pitch, is_drum, program = _notes(score)
    length = np.clip(np.round(duration * PLACES / int(score.ticks_per_quarter)), 1, 1023).astype(np.int64)
    found = []
    for number in np.unique(program[~is_drum]):
        mine = np.flatnonzero(~is_drum & (program == number))
        mine = mine[np.lexsort((length[mine], -pitch[mine], time[mine]))]
        found.append((np.diff(pitch[mine]) + 128) * 1024 + length[mine][1:])
    return found


def self_repetition(pieces: Sequence[np.ndarray], run: int = RUN) -> float:
    """Share of runs of so many notes that came before; NaN for less than a run. pieces: what `streams` gives."""
    windows = [np.lib.stride_tricks.sliding_window_view(s, run) for s in pieces if len(s) >= run]
    if not windows:
        return math.nan
    together = np.concatenate(windows)
    return 1 - len(np.unique(together, axis=0)) / len(together)


def _notes(score: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Onset and duration in ticks, pitch, whether of drums, and program, of every note: int64 [N] (bool the fourth)."""
    columns: list[list[np.ndarray]] = [[], [], [], [], []]
    for track in score.tracks:
        notes = track.notes.numpy()
        count = len(notes["time"])
        for column, values in zip(columns, (notes["time"], notes["duration"], notes["pitch"]), strict=False):
            column.append(np.asarray(values, np.int64))
        columns[3].append(np.full(count, track.is_drum))
        columns[4].append(np.full(count, track.program, np.int64))
    empty = np.zeros(0, np.int64)
    time, duration, pitch, drum, program = (np.concatenate(column) if column else empty for column in columns)
    return time, duration, pitch, drum.astype(bool), program


# Sets of pieces.


def overlap(a: np.ndarray, b: np.ndarray, points: int = 512) -> float:
    """Area under both of two densities, 0 to 1: Gaussian kernels, bandwidth by Scott's rule. NaNs are left out.

    a, b: values [N] and [M]. NaN where one has none; two sets of one and the same value overlap wholly.
    """
    a, b = a[np.isfinite(a)], b[np.isfinite(b)]
    if not len(a) or not len(b):
        return math.nan
    both = np.concatenate([a, b])
    spread = float(np.ptp(both))
    if spread <= 1e-9 * max(1.0, float(np.abs(both).max())):
        return 1.0
    # Where a set has no spread of its own, a kernel that is narrow beside the distance to the other.
    widths = [max(float(x.std(ddof=1)) * len(x) ** -0.2 if len(x) > 1 else 0.0, spread / 100) for x in (a, b)]
    grid = np.linspace(both.min() - 4 * max(widths), both.max() + 4 * max(widths), points)
    densities = [_density(x, width, grid) for x, width in zip((a, b), widths, strict=True)]
    return float(np.minimum(*densities).sum() * (grid[1] - grid[0]))


def _density(values: np.ndarray, width: float, grid: np.ndarray) -> np.ndarray:
    total = np.zeros(len(grid))
    for part in np.array_split(values, -(-len(values) // 1024)):
        total += np.exp(-0.5 * ((grid[:, None] - part) / width) ** 2).sum(1)
    return total / (len(values) * width * math.sqrt(2 * math.pi))


def histogram_overlap(a: np.ndarray, b: np.ndarray) -> float:
    """What two histograms share, 0 to 1. counts [N] each; NaN where one is empty."""
    if not a.sum() or not b.sum():
        return math.nan
    return float(np.minimum(a / a.sum(), b / b.sum()).sum())
