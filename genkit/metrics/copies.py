"""What sequences have copied from others: the longest run from each place that is found in a training set.

Exact, by sorting and without hashing: `ranks[k][i]` numbers the runs of 2^k symbols from place i on in their order,
made from those of half the length (Manber & Myers 1993). In the order of the highest k, the training place that shares
the longest run with a place is the nearest one before or behind it; how long it is the ranks say, from the highest k
down.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["longest_runs"]


def longest_runs(queries: Sequence[np.ndarray], training: Sequence[np.ndarray]) -> list[np.ndarray]:
    """How many symbols from each place on are found in a row somewhere in the training set.

    queries, training: sequences of symbols, int64 [N] each, of any values. Returns int64 [N] for each query.
    Memory: for each symbol of both about 50 bytes, and 4 for each doubling up to the length of the longest query.
    """
    if not queries:
        return []
    symbols, ends = _joined([*queries, *training])
    asked = sum(len(query) + 1 for query in queries)
    ranks = [_numbered(symbols)]
    while 1 << (len(ranks) - 1) <= max(map(len, queries)):
        ranks.append(_doubled(ranks[-1], 1 << (len(ranks) - 1)))
    order = np.argsort(ranks[-1], kind="stable")
    trained = order >= asked
    place = np.arange(len(order))
    before = np.maximum.accumulate(np.where(trained, place, -1))
    behind = np.minimum.accumulate(np.where(trained, place, len(order))[::-1])[::-1]
    mine = np.flatnonzero(~trained)
    best = np.zeros(asked, np.int64)
    for neighbour in (before[mine], behind[mine]):
        there = (neighbour >= 0) & (neighbour < len(order))
        a = order[mine[there]]
        best[a] = np.maximum(best[a], _common(ranks, a, order[neighbour[there]]))
    return [best[end - len(query) : end] for query, end in zip(queries, ends, strict=False)]


def _joined(sequences: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """All in one, each with an end of its own that equals nothing else; and where the ends are."""
    ends = np.cumsum([len(sequence) + 1 for sequence in sequences]) - 1
    symbols = np.full(int(ends[-1]) + 1, -1, np.int64)
    inner = np.ones(len(symbols), bool)
    inner[ends] = False
    symbols[inner] = np.unique(np.concatenate(sequences), return_inverse=True)[1]
    symbols[ends] = -1 - np.arange(len(ends))
    return symbols, ends


def _numbered(keys: np.ndarray) -> np.ndarray:
    return np.unique(keys, return_inverse=True)[1].astype(np.int32)


def _doubled(rank: np.ndarray, length: int) -> np.ndarray:
    """Ranks of runs twice as long. Past the end comes nothing, which is less than anything."""
    after = np.zeros(len(rank), np.int64)
    after[:-length] = rank[length:].astype(np.int64) + 1
    return _numbered(rank.astype(np.int64) * (int(rank.max()) + 2) + after)


def _common(ranks: Sequence[np.ndarray], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How many symbols the runs from places a and b have in common. [N] each."""
    length = np.zeros(len(a), np.int64)
    last = len(ranks[0]) - 1
    for k in range(len(ranks) - 1, -1, -1):
        i, j = a + length, b + length
        same = (i <= last) & (j <= last)
        same &= ranks[k][np.minimum(i, last)] == ranks[k][np.minimum(j, last)]
        length += same.astype(np.int64) << k
    return length
