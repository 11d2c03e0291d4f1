"""Where in the music each token of a line is: for a network's beat encoding. See `Vocabulary.clock`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pipelines.midi_generation.tokens.vocabulary import Vocabulary

__all__ = ["clock", "passing"]


def clock(vocabulary: Vocabulary, tokens: np.ndarray, bar: int, place: int) -> tuple[np.ndarray, np.ndarray]:
    """Place in the bar and number of the bar of each base token, int64 [T] each, going on from `bar` and `place`."""
    if "Bar_None" not in vocabulary.ids:
        return _by_shifts(vocabulary, tokens, bar, place)
    begins = tokens == vocabulary.ids["Bar_None"]
    at = np.where(vocabulary.positions[tokens], vocabulary.numbers[tokens], np.where(begins, 0, -1))
    at = np.concatenate([[place], at])
    known = np.maximum.accumulate(np.where(at >= 0, np.arange(len(at)), 0))
    return at[known][1:], bar + np.cumsum(begins)


def _by_shifts(vocabulary: Vocabulary, tokens: np.ndarray, bar: int, place: int) -> tuple[np.ndarray, np.ndarray]:
    """Adds up what passes; a signature begins a bar."""
    places, bars = np.zeros(len(tokens), np.int64), np.zeros(len(tokens), np.int64)
    lengths = vocabulary.bar_lengths[tokens]
    passed = np.cumsum(vocabulary.shifts[tokens])
    length, begun = 4 * vocabulary.settings.positions, -place
    changes = np.flatnonzero(lengths).tolist()
    for start, stop in zip([0, *changes], [*changes, len(tokens)], strict=True):
        if start < stop and lengths[start]:
            now = int(passed[start])
            bar += -(-(now - begun) // length)  # what is left of the bar before is one too
            length, begun = int(lengths[start]), now
        bars[start:stop], places[start:stop] = np.divmod(passed[start:stop] - begun, length)
        bars[start:stop] += bar
    return places, bars


def passing(value: str, positions: int) -> int:
    """The places that pass in a TimeShift or Rest of a value such as "2.3.12": 2 beats and 3 of 12 parts."""
    beats, part, parts = map(int, value.split("."))
    return (beats * parts + part) * positions // parts
