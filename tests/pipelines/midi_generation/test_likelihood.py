"""Likelihood: equal to the network run over the whole piece at once, however it is cut and batched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipelines.midi_generation.measuring.likelihood import Likelihood, likelihood, windowed
from pipelines.midi_generation.networks.transformer_xl import Config, TransformerXL

V = 11
NOTES = np.arange(V) >= 8
Line = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def network() -> Any:
    torch.manual_seed(0)
    made = TransformerXL(Config(V, layers=2, width=16, heads=2, feedforward=32, memory=4, places=6, bars=3))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # far from uniform, so that contexts matter
    return made.eval()


@pytest.fixture(scope="module")
def plain() -> Any:
    """Without a beat, as `windowed` calls it."""
    torch.manual_seed(1)
    made = TransformerXL(Config(V, layers=2, width=16, heads=2, feedforward=32))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made.eval()


def lines(*sizes: int) -> list[Line]:
    draw = np.random.default_rng(0)
    made = []
    for size in sizes:
        bars = np.sort(draw.integers(0, 5, size))
        made.append((draw.integers(0, V, size), draw.integers(0, 6, size), bars, (draw.random(size) < 0.8).astype(int)))
    return made


@torch.no_grad()
def losses(network: Any, line: Line) -> torch.Tensor:
    """Of every token but the first, all that is before it in sight."""
    tokens, place, bar = (torch.from_numpy(part)[None] for part in line[:3])
    logits, _ = network(tokens[:, :-1], place=place[:, :-1], bar=bar[:, :-1], memory_len=0)
    return F.cross_entropy(logits[0], tokens[0, 1:], reduction="none").double()


@pytest.mark.parametrize(("segment", "batch"), [(1000, 1), (7, 2), (1, 3)])
def test_with_memory_enough_it_is_the_whole_context(network: Any, segment: int, batch: int) -> None:
    pieces = lines(30, 13, 22)
    found = likelihood(network, pieces, segment=segment, memory=1000, batch=batch, pitches=NOTES)
    counted = [torch.from_numpy(line[3][1:] > 0) for line in pieces]
    expected = sum(float(losses(network, line)[mask].sum()) for line, mask in zip(pieces, counted, strict=True))
    assert found.nats == pytest.approx(expected, rel=1e-5)
    assert found.tokens == sum(int(mask.sum()) for mask in counted)
    assert found.notes == sum(int(NOTES[line[0][1:]][line[3][1:] > 0].sum()) for line in pieces)


def test_without_memory_every_segment_begins_anew(network: Any) -> None:
    (line,) = lines(25)
    found = likelihood(network, [line], segment=6, memory=0, pitches=NOTES)
    expected = 0.0
    for begin in range(0, 24, 6):
        part = tuple(array[begin : begin + 7] for array in line)
        expected += float(losses(network, part)[torch.from_numpy(part[3][1:] > 0)].sum())  # type: ignore[arg-type]
    assert found.nats == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("context", [6, 7, 24, 100])
def test_windows_ask_for_each_token_once_with_half_a_context_before_it(plain: Any, context: int) -> None:
    pieces = lines(25, 8, 40)
    found = windowed(plain, pieces, context=context, batch=2, pitches=NOTES)
    stride, expected, count = context // 2, 0.0, 0
    for tokens, _, _, weight in pieces:
        for target in range(1, len(tokens)):
            if weight[target]:
                # The first window in whose second half (or whole, at a piece's begin) the token lies.
                begin = 0 if target <= context else -(-(target - context) // stride) * stride
                seen = torch.from_numpy(tokens[begin:target])[None]
                assert len(seen[0]) <= context
                assert begin == 0 or len(seen[0]) > context - stride
                expected += float(-plain(seen, memory_len=0)[0][0, -1].log_softmax(-1)[tokens[target]])
                count += 1
    assert found.tokens == count
    assert found.nats == pytest.approx(expected, rel=1e-5)


def test_progress_is_told_of_every_token(network: Any, plain: Any) -> None:
    pieces, told = lines(30, 13), []
    found = likelihood(network, pieces, segment=7, memory=3, pitches=NOTES, done=told.append)
    assert sum(told) == found.tokens
    told.clear()
    found = windowed(plain, pieces, context=6, pitches=NOTES, done=told.append)
    assert sum(told) == found.tokens


def test_units() -> None:
    found = Likelihood(nats=np.log(2) * 60, tokens=30, notes=10, seconds=4)
    assert (found.nll, found.bits_per_note, found.bits_per_second) == pytest.approx((2 * np.log(2), 6, 15))
    assert np.isnan(Likelihood(1, 1, 1).bits_per_second)
