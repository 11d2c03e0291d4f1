"""n-grams of tokens with modified interpolated Kneser-Ney smoothing: what a network has to be better than.

Chen & Goodman 1999 ("An empirical study of smoothing techniques for language modeling", section 4.1). With c the count
of an n-gram, or for all but the longest the number of different tokens seen before it (its continuation count):

    p_k(w | context) = max(c(context w) - D(c), 0) / c(context .)  +  gamma(context) p_{k-1}(w | shorter context)
    gamma(context)   = (D_1 N_1 + D_2 N_2 + D_3+ N_3+) / c(context .)        p_0(w) = 1 / V

where N_i is how many tokens were seen i times after the context, and the discounts D_1, D_2, D_3+ come from how many
n-grams have counts of 1 to 4.

Choices made here:
- An n-gram is one number, its tokens the digits in base V, so that counting is sorting. Only the longest n-grams are
  counted; the shorter ones' continuation counts follow from them. A few hundred MB hold those of 45 M tokens.
- A line's first token (BOS) is what precedes it, as often as needed; it is never predicted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from genkit.errors import InputError

__all__ = ["NGram"]

CHUNK = 4_000_000  # n-grams sorted at a time
FALLBACK = (0.5, 1.0, 1.5)  # discounts where too few counts are there to estimate them, as KenLM's --discount_fallback


@dataclass(frozen=True)
class _Order:
    """One length of n-gram, keys sorted: the context's digits, then the token's."""

    keys: np.ndarray
    """uint64 [N]"""
    discounted: np.ndarray
    """float64 [N], c - D(c), over the count of the context."""
    contexts: np.ndarray
    """uint64 [M]"""
    gamma: np.ndarray
    """float64 [M]: what is left for shorter contexts."""

    @classmethod
    def of(cls, keys: np.ndarray, counts: np.ndarray, base: np.uint64) -> _Order:
        discount = np.array([0.0, *_discounts(counts)])[np.minimum(counts, 3)]
        prefix = keys // base
        starts = np.flatnonzero(np.concatenate([[True], prefix[1:] != prefix[:-1]]))
        total = np.add.reduceat(counts, starts).astype(float)
        left = np.add.reduceat(discount, starts) / total
        each = np.repeat(total, np.diff(np.append(starts, len(keys))))
        return cls(keys, (counts - discount) / each, prefix[starts], left)

    def interpolate(self, context: np.ndarray, token: np.ndarray, base: np.uint64, shorter: np.ndarray) -> np.ndarray:
        """p_k of tokens after contexts (both uint64 [T]), given p_{k-1}."""
        gamma = np.where(*_found(self.contexts, context, self.gamma), 1.0)
        own = np.where(*_found(self.keys, context * base + token, self.discounted), 0.0)
        return own + gamma * shorter


def _found(keys: np.ndarray, wanted: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which are among the keys, and the values there (anything where they are not)."""
    at = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return keys[at] == wanted, values[at]


def _discounts(counts: np.ndarray) -> tuple[float, float, float]:
    """D_1, D_2 and D_3+ (Chen & Goodman 1999, equation 26)."""
    n = np.bincount(np.minimum(counts, 5), minlength=6)[1:5].astype(float)
    if not n.all():
        return FALLBACK
    y = n[0] / (n[0] + 2 * n[1])
    found = [i - (i + 1) * y * n[i] / n[i - 1] for i in (1, 2, 3)]
    return tuple(d if 0 < d <= i else f for i, (d, f) in enumerate(zip(found, FALLBACK, strict=True), 1))  # type: ignore[return-value]


class NGram:
    """The model. `fit` makes one."""

    def __init__(self, orders: list[_Order], vocabulary: int) -> None:
        self.orders, self.vocabulary = orders, vocabulary

    @classmethod
    def fit(cls, lines: Iterable[np.ndarray], vocabulary: int, order: int = 5) -> NGram:
        """Learns from lines of tokens, each with its BOS in front. int64 [T] each, 0 <= token < vocabulary.

        Raises InputError where there are no tokens or an n-gram does not fit 64 bits.
        """
        if vocabulary**order > 2**64:
            raise InputError(f"n-grams of {order} tokens out of {vocabulary} do not fit 64 bits; take a lower order")
        base = np.uint64(vocabulary)
        keys, counts = _count(lines, vocabulary, order)
        if not len(keys):
            raise InputError("there are no tokens to count n-grams of; give pieces with notes")
        orders = [_Order.of(keys, counts, base)]
        for k in range(order - 1, 0, -1):
            keys, counts = np.unique(keys % np.uint64(vocabulary**k), return_counts=True)
            orders.append(_Order.of(keys, counts, base))
        return cls(orders[::-1], vocabulary)

    @property
    def order(self) -> int:
        return len(self.orders)

    def log_probabilities(self, line: np.ndarray) -> np.ndarray:
        """Natural logarithms of the probability of each token but the first. int64 [T] -> float64 [T - 1]."""
        return np.log(self.probabilities(*_windows(line, self.order)))

    def probabilities(self, contexts: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Of tokens [T] after contexts [T, order - 1]. float64 [T]"""
        base, token = np.uint64(self.vocabulary), tokens.astype(np.uint64)
        p = np.full(len(tokens), 1 / self.vocabulary)
        for k, order in enumerate(self.orders):
            p = order.interpolate(_keys(contexts[:, self.order - 1 - k :], self.vocabulary), token, base, p)
        return p


def _windows(line: np.ndarray, order: int) -> tuple[np.ndarray, np.ndarray]:
    """What stands before each token but the first, [T - 1, order - 1], and the tokens [T - 1]."""
    padded = np.concatenate([np.repeat(line[:1], max(order - 2, 0)), line])
    if order == 1:
        return np.zeros((len(line) - 1, 0), np.int64), line[1:]
    return np.lib.stride_tricks.sliding_window_view(padded, order - 1)[:-1], line[1:]


def _keys(windows: np.ndarray, vocabulary: int) -> np.ndarray:
    """[T, k] tokens -> [T] numbers with them as digits, uint64."""
    keys = np.zeros(len(windows), np.uint64)
    for column in windows.T:
        keys = keys * np.uint64(vocabulary) + column.astype(np.uint64)
    return keys


def _count(lines: Iterable[np.ndarray], vocabulary: int, order: int) -> tuple[np.ndarray, np.ndarray]:
    """Different n-grams, sorted, uint64 [N], and how often each occurs, int64 [N]."""
    total = (np.zeros(0, np.uint64), np.zeros(0, np.int64))
    waiting: list[np.ndarray] = []
    for line in lines:
        contexts, tokens = _windows(line, order)
        waiting.append(_keys(contexts, vocabulary) * np.uint64(vocabulary) + tokens.astype(np.uint64))
        if sum(map(len, waiting)) >= CHUNK:
            total, waiting = _merged(total, waiting), []
    return _merged(total, waiting)


def _merged(total: tuple[np.ndarray, np.ndarray], waiting: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    if not waiting:
        return total
    keys, counts = np.unique(np.concatenate(waiting), return_counts=True)
    keys, counts = np.concatenate([total[0], keys]), np.concatenate([total[1], counts])
    order = np.argsort(keys, kind="stable")  # two sorted runs: merged in one pass
    keys, counts = keys[order], counts[order]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[starts], np.add.reduceat(counts, starts)
