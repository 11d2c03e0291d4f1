"""Kneser-Ney n-grams: equal to sums done by hand, and a distribution whatever the context."""

from __future__ import annotations

import math

import numpy as np
import pytest

from genkit.errors import InputError
from pipelines.midi_generation.measuring import ngram
from pipelines.midi_generation.measuring.ngram import NGram

BOS, A, B = 0, 1, 2


def lines(seed: int, count: int = 20, vocabulary: int = 9) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    # Skewed, so that counts of one to four all occur and the discounts are estimated rather than fallen back on.
    tokens = [np.minimum(draw.geometric(0.35, 60), vocabulary - 1) for _ in range(count)]
    return [np.concatenate([[BOS], line]).astype(np.int64) for line in tokens]


def test_a_bigram_equals_the_calculation_by_hand() -> None:
    # BOS A B A: the bigrams BOS A, A B and B A, once each, so the discount of a count of one is 0.5 (no count of two
    # to estimate it from). A follows two different tokens and B one: continuation counts 2 and 1 of 3, discounted by
    # 1 and 0.5; what is left, 1.5 of 3, is spread over the vocabulary of three.
    model = NGram.fit([np.array([BOS, A, B, A])], 3, order=2)
    p_a, p_b = (2 - 1) / 3 + 0.5 / 3, (1 - 0.5) / 3 + 0.5 / 3
    expected = [0.5 + 0.5 * p_a, 0.5 + 0.5 * p_b, 0.5 + 0.5 * p_a]
    assert np.exp(model.log_probabilities(np.array([BOS, A, B, A]))) == pytest.approx(expected)
    unseen = 0.5 * p_b  # B after B: only what the context leaves to the unigram
    assert model.probabilities(np.array([[B]]), np.array([B]))[0] == pytest.approx(unseen)


def test_discounts_are_those_of_chen_and_goodman() -> None:
    # n1..n4 = 8, 4, 3, 2: Y = 8 / (8 + 8) = 0.5.
    counts = np.repeat([1, 2, 3, 4, 9], [8, 4, 3, 2, 5])
    assert ngram._discounts(counts) == pytest.approx((1 - 2 * 0.5 * 4 / 8, 2 - 3 * 0.5 * 3 / 4, 3 - 4 * 0.5 * 2 / 3))
    assert ngram._discounts(np.array([1, 1, 2])) == ngram.FALLBACK


def test_a_trigram_equals_a_literal_implementation() -> None:
    """Dictionaries and loops, straight from the formula."""
    corpus, v = lines(0), 9
    model = NGram.fit(corpus, v, order=3)
    padded = [(BOS, *line.tolist()) for line in corpus]
    counts: list[dict[tuple[int, ...], int]] = [{}, {}, {}]
    for line in padded:
        for i in range(2, len(line)):
            gram = line[i - 2 : i + 1]
            counts[2][gram] = counts[2].get(gram, 0) + 1
    for k in (1, 0):
        for gram in counts[k + 1]:
            counts[k][gram[1:]] = counts[k].get(gram[1:], 0) + 1

    def p(gram: tuple[int, ...]) -> float:
        if not gram:
            return 1 / v
        table = counts[len(gram) - 1]
        discounts = (0.0, *ngram._discounts(np.array(list(table.values()))))
        after = {g: c for g, c in table.items() if g[:-1] == gram[:-1]}
        if not after:
            return p(gram[1:])
        total, count = sum(after.values()), table.get(gram, 0)
        left = sum(discounts[min(c, 3)] for c in after.values())
        return (count - discounts[min(count, 3)]) / total + left / total * p(gram[1:])

    other = lines(1, count=1)[0]
    whole = (BOS, *other.tolist())
    expected = [math.log(p(whole[i - 2 : i + 1])) for i in range(2, len(whole))]
    assert model.log_probabilities(other) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("order", [1, 2, 5])
def test_probabilities_sum_to_one_over_the_vocabulary(order: int) -> None:
    v = 9
    model = NGram.fit(lines(2), v, order)
    draw = np.random.default_rng(3)
    seen = lines(2)[0][: order - 1]
    for context in [seen, *(draw.integers(0, v, order - 1) for _ in range(20))]:
        p = model.probabilities(np.tile(context, (v, 1)).reshape(v, order - 1), np.arange(v))
        assert (p > 0).all()
        assert p.sum() == pytest.approx(1, abs=1e-12)


def test_counting_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = NGram.fit(lines(4), 9)
    monkeypatch.setattr(ngram, "CHUNK", 100)
    parts = NGram.fit(iter(lines(4)), 9)
    line = lines(5, count=1)[0]
    assert np.array_equal(whole.log_probabilities(line), parts.log_probabilities(line))


def test_it_learns_what_follows_from_far_back() -> None:
    # The token after X tells which of two comes four later: five tokens are enough to know, four are not.
    draw = np.random.default_rng(0)
    blocks = [[1, 2 + b, 4, 4, 5 + b] for b in draw.integers(0, 2, 400)]
    line = np.array([BOS, *(token for block in blocks for token in block)])
    last = slice(4, None, 5)
    known = {n: np.exp(NGram.fit([line], 8, n).log_probabilities(line))[last].mean() for n in (3, 4)}
    assert known[3] == pytest.approx(0.5, abs=0.05)
    assert known[4] > 0.95


def test_nothing_to_count_and_numbers_too_large_are_refused() -> None:
    with pytest.raises(InputError, match="no tokens to count"):
        NGram.fit([], 9)
    with pytest.raises(InputError, match="do not fit 64 bits; take a lower order"):
        NGram.fit(lines(0), 10_000, 5)
