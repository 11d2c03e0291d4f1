"""Generation from the cache gives the reference's logits: any portions, any lengths, any rows, any length of piece."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipelines.midi_generation.networks import cached as module
from pipelines.midi_generation.networks.cached import Cached
from pipelines.midi_generation.networks.transformer_xl import Config, TransformerXL

LONG = 70  # tokens of the longest line; many times the memories below
BASE = Config(23, layers=3, width=24, heads=3, feedforward=40, same_length=True, places=7, bars=5, dropout=0.5)
KINDS = {
    "as the shipped model": {"activation": "relu2"},
    "as the paper": {"pre_norm": False, "places": 0, "bars": 0},
    "untied biases": {"untie_biases": True},
    "untied, post-norm, gelu": {"untie_biases": True, "pre_norm": False, "activation": "gelu"},
    "clamped": {"clamp_len": 3, "activation": "gelu"},
}


def _network(**changes: object) -> TransformerXL:
    """Weights large enough that attention is far from uniform, and different for each part."""
    network = TransformerXL(dataclasses.replace(BASE, **changes))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return network.eval()


NETWORKS = {kind: _network(**changes) for kind, changes in KINDS.items()}


def _line(seed: int, length: int = LONG) -> Tensor:
    """Tokens, place and bar of a line. [3, T]; places and bars go beyond what is told apart."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(0, n, (length,), generator=generator) for n in (23, 12, 40)])


_known: dict[tuple[str, int, int], Tensor] = {}


def _reference(kind: str, memory: int, seed: int) -> Tensor:
    """The training forward on a whole line alone. [T, V]"""
    key = (kind, memory, seed)
    if key not in _known:
        tokens, place, bar = _line(seed)[:, None]
        with torch.no_grad():
            _known[key] = NETWORKS[kind](tokens, place=place, bar=bar, memory_len=memory)[0][0]
    return _known[key]


def _close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def _batch(seeds: Sequence[int], begins: Sequence[int], lengths: Sequence[int]) -> Iterator[Tensor]:
    """Tokens, place and bar of pieces of several lines, padded with what is no token of theirs. [B, T] each"""
    parts = torch.full((3, len(seeds), max(1, *lengths)), 6)
    for row, (seed, begin, length) in enumerate(zip(seeds, begins, lengths, strict=True)):
        parts[:, row, :length] = _line(seed)[:, begin : begin + length]
    return iter(parts)


def test_the_reference_tells_tokens_apart_enough_for_these_tests():
    for kind in KINDS:
        logits = _reference(kind, 5, 1)
        assert logits.std() > 0.5
        assert (_reference(kind, 5, 1) - _reference(kind, 6, 1))[6:].abs().max() > 1e-2  # one token of memory is seen


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_any_portions_give_the_reference_logits(kind, data):
    """Reads of any length and single steps in any order, far past the ring's capacity."""
    memory = data.draw(st.sampled_from([0, 1, 5, 16, 100]), label="memory")
    cached = Cached(NETWORKS[kind], batch=1, memory=memory)
    line, expected = _line(1), _reference(kind, memory, 1)
    begin = 0
    while begin < LONG:
        n = min(data.draw(st.sampled_from([0, 0, 1, 2, 4, 7, 30]), label="tokens"), LONG - begin)  # 0: a step
        if n == 0:
            _close(cached.step(*line[:, begin : begin + 1])[0], expected[begin])
        else:
            every = data.draw(st.booleans(), label="every")
            logits = cached.read(*line[:, None, begin : begin + n], every=every)[0]
            _close(logits, expected[begin : begin + n] if every else expected[begin + n - 1])
        begin += max(n, 1)
        assert cached.counts == [min(begin, memory)]


@pytest.mark.parametrize("kind", ["as the shipped model", "untied, post-norm, gelu"])
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_rows_go_their_own_ways(kind, data):
    """Different lengths, steps that leave rows out, restarts, rows dropped, doubled and reordered: every row's logits
    are those of its line alone."""
    memory = data.draw(st.sampled_from([0, 1, 6, 20]), label="memory")
    seeds = [1, 2, 3]
    at = [0, 0, 0]
    cached = Cached(NETWORKS[kind], batch=3, memory=memory)
    for _ in range(14):
        rows = range(len(seeds))
        deed = data.draw(st.sampled_from(["read", "step", "step", "some step", "some step", "reset", "select"]))
        if deed == "read":
            lengths = [min(data.draw(st.integers(0, 9)), LONG - at[row]) for row in rows]
            every = data.draw(st.booleans())
            logits = cached.read(*_batch(seeds, at, lengths), lengths=lengths, every=every)
            for row, n in enumerate(lengths):
                expected = _reference(kind, memory, seeds[row])[at[row] : at[row] + n]
                if n:
                    _close(logits[row, :n] if every else logits[row], expected if every else expected[-1])
                at[row] += n
        elif deed in ("step", "some step"):
            active = [at[row] < LONG and (deed == "step" or data.draw(st.booleans())) for row in rows]
            tokens, place, bar = (part[:, 0] for part in _batch(seeds, at, [int(flag) for flag in active]))
            logits = cached.step(tokens, place, bar, active=None if all(active) else active)
            for row in rows:
                if active[row]:
                    _close(logits[row], _reference(kind, memory, seeds[row])[at[row]])
                    at[row] += 1
        elif deed == "reset":
            gone = data.draw(st.sets(st.sampled_from(rows)))
            cached.reset(sorted(gone))
            for row in gone:
                at[row] = 0
        else:
            kept = data.draw(st.lists(st.sampled_from(rows), min_size=1, max_size=4))
            cached.select(kept)
            seeds, at = [seeds[row] for row in kept], [at[row] for row in kept]
        assert cached.counts == [min(n, memory) for n in at]


def test_a_long_piece_is_exact_to_its_end_and_takes_no_more_memory():
    """A hundred and fifty times round the ring."""
    memory, steps = 3, 600
    line = _line(5, steps)
    cached = Cached(NETWORKS["as the shipped model"], batch=1, memory=memory)
    rings = [(ring.data_ptr(), ring.shape) for ring in cached._rings]
    logits = torch.cat([cached.step(*line[:, i : i + 1]) for i in range(steps)])
    with torch.no_grad():
        tokens, place, bar = line[:, None]
        expected = NETWORKS["as the shipped model"](tokens, place=place, bar=bar, memory_len=memory)[0][0]
    _close(logits, expected)
    assert rings == [(ring.data_ptr(), ring.shape) for ring in cached._rings]


def test_a_prompt_longer_than_a_portion_and_than_the_memory():
    """A read is cut in portions of its own; 600 tokens are three of them."""
    line = _line(7, 600)
    with torch.no_grad():
        tokens, place, bar = line[:, None]
        expected = NETWORKS["clamped"](tokens, place=place, bar=bar, memory_len=10)[0]
    _close(Cached(NETWORKS["clamped"], batch=1, memory=10).read(*line[:, None]), expected[:, -1])
    _close(Cached(NETWORKS["clamped"], batch=1, memory=10).read(*line[:, None], every=True), expected)
    rows = line[:, None].expand(3, 2, 600)
    logits = Cached(NETWORKS["clamped"], batch=2, memory=10).read(*rows, lengths=[300, 600])
    _close(logits, expected[0, [299, 599]])


@pytest.mark.parametrize("memory", [0, 5, 20, 63])
def test_the_way_a_graph_takes_is_exact_too(memory, monkeypatch):
    """What is captured on CUDA, run here: every slot looked at, more of them than tokens, places from tensors alone."""
    monkeypatch.setattr(module, "_slots", lambda span, device: -(-span // 64) * 64)
    monkeypatch.setattr(
        Cached,
        "_way",
        lambda self, newest, count: module._Scattered.of(torch.tensor(newest), torch.tensor(count), self._slots),
    )
    kind = "as the shipped model"
    cached = Cached(NETWORKS[kind], batch=2, memory=memory)
    seeds, starts = [1, 2], [4, 9]
    cached.read(*_batch(seeds, [0, 0], starts), lengths=starts)
    for i in range(55):
        at = [start + i for start in starts]
        logits = cached.step(*(part[:, 0] for part in _batch(seeds, at, [1, 1])))
        for row in range(2):
            _close(logits[row], _reference(kind, memory, seeds[row])[at[row]])


@pytest.mark.parametrize("batch", [2, 5])
def test_a_row_does_not_depend_on_its_batch(batch):
    """Alone and among others."""
    kind, memory = "as the shipped model", 8
    together = Cached(NETWORKS[kind], batch=batch, memory=memory)
    lines = torch.stack([_line(seed) for seed in range(batch)], 1)
    together.read(*lines[:, :, :20])
    found = torch.stack([together.step(*lines[:, :, i]) for i in range(20, 50)], 1)
    for seed in range(batch):
        alone = Cached(NETWORKS[kind], batch=1, memory=memory)
        alone.read(*lines[:, seed : seed + 1, :20])
        _close(found[seed], torch.cat([alone.step(*lines[:, seed : seed + 1, i]) for i in range(20, 50)]))


def test_the_weights_are_a_copy_and_logits_may_be_changed_in_place():
    network = _network(activation="relu2")
    line, expected = _line(1), _reference("as the shipped model", 5, 1)
    cached = Cached(network.train(), batch=1, memory=5)  # dropout is off all the same
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    _close(cached.read(*line[:, None, :8])[0], expected[7])
    cached.step(*line[:, 8:9]).fill_(-torch.inf)
    _close(cached.step(*line[:, 9:10])[0], expected[9])


def test_bfloat16_is_near_and_only_on_request():
    line, expected = _line(1), _reference("as the shipped model", 5, 1)
    cached = Cached(NETWORKS["as the shipped model"], batch=1, memory=5, dtype=torch.bfloat16)
    logits = cached.read(*line[:, None], every=True)[0]
    assert logits.dtype == torch.float32
    assert 1e-4 < (logits - expected).std() / expected.std() < 0.1


def test_mistakes_of_the_caller_are_refused():
    network = NETWORKS["as the shipped model"]
    for wrong in ({"batch": 0}, {"batch": 1, "memory": -1}):
        with pytest.raises(ValueError, match="at least"):
            Cached(network, **wrong)
    cached = Cached(network, batch=2, memory=4)
    tokens = torch.zeros(2, 3, dtype=torch.long)
    for lengths in ([1], [1, 4], [-1, 2]):
        with pytest.raises(ValueError, match="do not fit"):
            cached.read(tokens, tokens, tokens, lengths=lengths)
    with pytest.raises(ValueError, match="one for each"):
        cached.step(tokens[0], tokens[0], tokens[0])
    for rows in ([], [2], [-1]):
        with pytest.raises(ValueError, match="rows"):
            cached.select(rows)
