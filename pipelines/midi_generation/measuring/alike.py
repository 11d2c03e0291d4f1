"""`genkit evaluate midi --reference DIR PIECES`: how alike pieces are to others, and how much of them is copied.

The statistics are those of `genkit.metrics.midi`. "real against real" is what the overlap comes to where there is no
difference to find: the mean over SPLITS random draws from the reference of as many pieces as are measured, or half of
it if that is fewer, against the rest of it.

Copies are runs of notes whose intervals and durations are found in a row in the training set (see `streams` there).
Music repeats what other music does: what a model copied shows only beside what pieces by people share with the training
set, the held-out column.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genkit.evaluation import Report
from genkit.metrics.copies import longest_runs
from genkit.metrics.midi import STATISTICS, histogram_overlap, lengths, overlap, statistics, streams
from genkit.pipeline import Progress
from pipelines.midi_generation.measuring.evaluate import read

__all__ = ["alike"]

SPLITS = 20
GRAMS = (8, 16, 32)


@dataclass(frozen=True)
class Piece:
    """What is kept of a piece."""

    path: Path
    statistics: Mapping[str, float]
    lengths: np.ndarray
    streams: Sequence[np.ndarray]


def alike(params: Any, report: Report, progress: Progress) -> None:
    """Adds the tables `statistics` and `copies`, and `pieces` to the details. Raises InputError, MediaError."""
    pieces = _pieces(params.pieces, report, progress, "pieces")
    reference = _pieces([params.reference], report, progress, "reference")
    report.facts |= {"pieces": len(pieces), "reference": len(reference)}
    report.tables["statistics"] = _compared(pieces, reference)
    if len(pieces) < 10 or len(reference) < 10:
        report.notes.append("fewer than ten pieces make no distribution: read the overlaps with care")
    trained, held_out = reference, None
    if params.train is not None:
        trained = _pieces([params.train], report, progress, "train")
        held_out = reference
    if params.held_out is not None:
        held_out = _pieces([params.held_out], report, progress, "held out")
    report.facts["train"] = len(trained)
    copied = _Copied.of(pieces, trained)
    report.tables["copies"] = _copies(copied, _Copied.of(held_out, trained) if held_out else None)
    if held_out is None:
        report.notes.append("no held-out share: --train (or --held-out) gives pieces by people to compare copies with")
    report.details["pieces"] = [
        {"file": str(piece.path), **piece.statistics, **found}
        for piece, found in zip(pieces, copied.each(), strict=True)
    ]


def _pieces(places: Sequence[Path], report: Report, progress: Progress, what: str) -> list[Piece]:
    def take(midi: Any) -> tuple[Mapping[str, float], np.ndarray, list[np.ndarray]]:
        return statistics(midi.score), lengths(midi.score), streams(midi.score)

    return [Piece(path, *taken) for path, taken in read(places, take, report, progress, what)]


def _compared(pieces: Sequence[Piece], reference: Sequence[Piece]) -> list[dict[str, Any]]:
    """A row for each statistic, one for the distribution of note lengths, and their mean."""
    splits = list(_splits(len(reference), len(pieces)))
    rows: list[dict[str, Any]] = []
    for name in STATISTICS:
        mine, theirs = _column(pieces, name), _column(reference, name)
        ceiling = [overlap(theirs[a], theirs[b]) for a, b in splits]
        rows.append(_row(name, _mean(theirs), _mean(mine), overlap(mine, theirs), ceiling))
    mine, theirs = np.stack([p.lengths for p in pieces]), np.stack([p.lengths for p in reference])
    ceiling = [histogram_overlap(theirs[a].sum(0), theirs[b].sum(0)) for a, b in splits]
    rows.append(_row("note_lengths (histogram)", None, None, histogram_overlap(mine.sum(0), theirs.sum(0)), ceiling))
    means = [_mean(np.array([row[key] for row in rows])) for key in ("overlap", "real_against_real")]
    rows.append(
        {"statistic": "mean", "reference": None, "pieces": None, "overlap": means[0], "real_against_real": means[1]}
    )
    return rows


def _row(name: str, theirs: float | None, mine: float | None, found: float, ceiling: Sequence[float]) -> dict[str, Any]:
    return {
        "statistic": name,
        "reference": theirs,
        "pieces": mine,
        "overlap": found,
        "real_against_real": _mean(np.array(ceiling)),
    }


def _splits(count: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Draws of `size` numbers below `count`, at most half, and the others of each; the same ones every time."""
    draw = np.random.default_rng(0)
    size = min(size, count // 2)
    for _ in range(SPLITS if size else 0):
        order = draw.permutation(count)
        yield order[:size], order[size:]


def _column(pieces: Sequence[Piece], name: str) -> np.ndarray:
    return np.array([piece.statistics[name] for piece in pieces])


def _mean(values: np.ndarray) -> float:
    """Of what is a number; NaN where nothing is."""
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else float("nan")


@dataclass(frozen=True)
class _Copied:
    """For each piece the longest run from each of its notes that is found in the training set, by stream."""

    runs: Sequence[Sequence[np.ndarray]]

    @classmethod
    def of(cls, pieces: Sequence[Piece], trained: Sequence[Piece]) -> _Copied:
        found = iter(longest_runs([s for p in pieces for s in p.streams], [s for p in trained for s in p.streams]))
        return cls([[next(found) for _ in piece.streams] for piece in pieces])

    def each(self) -> list[dict[str, float]]:
        """Of each piece the longest run, in notes, and the shares of runs found."""
        return [{"longest_run": _longest(runs), **_shares(runs)} for runs in self.runs]

    def all(self) -> dict[str, float]:
        """Of all together: the longest run, the mean of each piece's longest, and the shares."""
        longest = [_longest(runs) for runs in self.runs]
        together = [stream for runs in self.runs for stream in runs]
        return {
            "longest_run": max(longest),
            "longest_run, mean of pieces": sum(longest) / len(longest),
            **_shares(together),
        }


def _longest(runs: Sequence[np.ndarray]) -> int:
    """In notes: a run of n intervals is of n + 1."""
    longest = max((int(stream.max(initial=0)) for stream in runs), default=0)
    return longest + 1 if longest else 0


def _shares(runs: Sequence[np.ndarray]) -> dict[str, float]:
    """Of the runs of n intervals and durations in the streams, the share that is found; NaN where none is so long."""
    shares = {}
    for n in GRAMS:
        places = np.concatenate([stream[: max(0, len(stream) - n + 1)] for stream in runs] or [np.zeros(0)])
        shares[f"{n}-grams_found"] = float((places >= n).mean()) if len(places) else float("nan")
    return shares


def _copies(pieces: _Copied, held_out: _Copied | None) -> list[dict[str, Any]]:
    mine = pieces.all()
    theirs: Mapping[str, Any] = held_out.all() if held_out else {}
    return [{"found_in_train": name, "pieces": value, "held_out": theirs.get(name)} for name, value in mine.items()]
