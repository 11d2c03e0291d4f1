"""Drawing a token, against distributions worked out by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.midi_generation.composing.sampling import Sampling, choose

SHARES = np.array([0.1, 0.4, 0.05, 0.3, 0.15])
LOGITS = np.log(SHARES).astype(np.float32)
ALL = np.ones(5, bool)


def drawn(sampling: Sampling, *, allowed=ALL, logits=LOGITS, count: int = 4000, **options) -> dict[int, float]:
    generator = torch.Generator().manual_seed(0)
    found = Counter(choose(logits, allowed, sampling, generator, **options) for _ in range(count))
    return {token: found[token] / count for token in sorted(found)}


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), {0: 0.1, 1: 0.4, 2: 0.05, 3: 0.3, 4: 0.15}),
        (Sampling(top_k=2), {1: 4 / 7, 3: 3 / 7}),
        (Sampling(top_p=0.7), {1: 4 / 7, 3: 3 / 7}),  # 0.4 + 0.3 is enough
        (Sampling(top_p=0.71), {1: 40 / 85, 3: 30 / 85, 4: 15 / 85}),
        (Sampling(top_p=0.01), {1: 1.0}),
        (Sampling(min_p=0.3), {1: 40 / 85, 3: 30 / 85, 4: 15 / 85}),  # at least 0.12
        (Sampling(min_p=1.0), {1: 1.0}),
        (Sampling(temperature=0.5), dict(enumerate(SHARES**2 / (SHARES**2).sum()))),
        (Sampling(temperature=0), {1: 1.0}),
        (Sampling(temperature=1e-300), {1: 1.0}),
        (Sampling(top_k=1, temperature=3), {1: 1.0}),
    ],
)
def test_shares(sampling: Sampling, expected: dict[int, float]) -> None:
    found = drawn(sampling)
    assert set(found) == set(expected)
    assert found == pytest.approx(expected, abs=0.03)


def test_only_what_is_allowed_counts() -> None:
    assert drawn(Sampling(), allowed=np.array([1, 0, 1, 0, 0], bool)) == pytest.approx({0: 2 / 3, 2: 1 / 3}, abs=0.03)
    assert drawn(Sampling(temperature=0), allowed=np.array([1, 0, 1, 0, 0], bool)) == {0: 1.0}
    assert drawn(Sampling(top_p=0.5), allowed=np.array([0, 0, 1, 0, 1], bool)) == {4: 1.0}


def test_the_temperature_of_durations_is_theirs_alone() -> None:
    sampling = Sampling(temperature=1, duration_temperature=0)
    assert drawn(sampling, duration=True) == {1: 1.0}
    assert len(drawn(sampling)) == 5


def test_the_penalty_divides_the_odds_of_what_was_played_whatever_constant_the_logits_have() -> None:
    sampling = Sampling(repetition_penalty=2)
    expected = {0: 0.1, 1: 0.2, 2: 0.05, 3: 0.15, 4: 0.15}
    expected = {token: share / 0.65 for token, share in expected.items()}
    for constant in (0, 7, -7):
        found = drawn(sampling, logits=LOGITS + np.float32(constant), recent=[1, 3, 1])
        assert found == pytest.approx(expected, abs=0.03)
    assert drawn(sampling, recent=[1, 3, *[9] * 0]) != drawn(sampling)


def test_the_penalty_forgets() -> None:
    sampling, logits = Sampling(repetition_penalty=3, temperature=0), np.append(LOGITS, np.float32(-9))
    allowed = np.ones(6, bool)
    assert drawn(sampling, logits=logits, allowed=allowed, recent=[1], count=1) == {3: 1.0}
    assert drawn(sampling, logits=logits, allowed=allowed, recent=[1] + [5] * 64, count=1) == {1: 1.0}


@given(st.integers(0, 2**32), st.lists(st.floats(-20, 20, width=32), min_size=3, max_size=3), st.data())
def test_each_choice_takes_one_number_of_the_generator(seed: int, logits: list[float], data) -> None:
    sampling = Sampling(
        temperature=data.draw(st.sampled_from([0.0, 1.0, 3.0])), top_k=data.draw(st.sampled_from([0, 1, 2]))
    )
    allowed = np.array(data.draw(st.lists(st.booleans(), min_size=3, max_size=3).filter(any)))
    generator, beside = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
    assert allowed[choose(np.array(logits, np.float32), allowed, sampling, generator)]
    torch.rand((), generator=beside, dtype=torch.float64)
    assert torch.equal(generator.get_state(), beside.get_state())


def test_one_choice_most_likely_is_the_first_of_equals_either_way() -> None:
    logits = np.array([0, 2, 2, 1], np.float32)
    for sampling in (Sampling(temperature=0), Sampling(top_k=1)):
        assert drawn(sampling, logits=logits, allowed=np.ones(4, bool), count=20) == {1: 1.0}
