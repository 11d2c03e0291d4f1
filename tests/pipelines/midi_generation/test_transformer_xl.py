"""The training forward is the paper's: against its equations written as loops, and against what they imply."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.midi_generation.networks.transformer_xl import Config, TransformerXL, rel_shift, sinusoids

TINY = Config(13, layers=2, width=8, heads=2, feedforward=12, memory=4, places=5, bars=3, dropout=0.3)
KINDS = {
    "pre-norm": {},
    "as the paper": {"pre_norm": False, "places": 0, "bars": 0},
    "untied biases": {"untie_biases": True, "activation": "relu2"},
    "untied, post-norm": {"untie_biases": True, "pre_norm": False, "activation": "gelu"},
    "same length": {"same_length": True},
    "clamped": {"clamp_len": 2},
    "same length, clamped": {"same_length": True, "clamp_len": 3, "pre_norm": False},
}


def _network(**changes: object) -> TransformerXL:
    """Every weight drawn, so that no part is without effect."""
    network = TransformerXL(dataclasses.replace(TINY, **changes))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    return network.eval()


def _tokens(t: int, b: int = 2, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randint(0, n, (b, t), generator=generator)
        for name, n in (("tokens", 13), ("place", 7), ("bar", 20))
    }


def _cut(batch: dict[str, Tensor], begin: int, end: int) -> dict[str, Tensor]:
    return {name: value[:, begin:end] for name, value in batch.items()}


def _close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------- the paper's equations


def _encoding(distance: int, width: int) -> Tensor:
    """R_distance, number by number (section 3.3 of the paper; Vaswani et al. 2017, 3.5)."""
    waves = [distance / 10_000 ** (2 * i / width) for i in range(width // 2)]
    return torch.tensor([math.sin(wave) for wave in waves] + [math.cos(wave) for wave in waves])


def _literal_layer(
    network: TransformerXL, index: int, h: Tensor, memory: Tensor, piece: Sequence[int], span: int
) -> Tensor:
    """A layer on one row, by loops over heads, queries and keys (equations of section 3.3). h [T, D], memory [M, D]."""
    config, w = network.config, network.get_submodule(f"layers.{index}")
    e = config.width // config.heads
    holder = w if config.untie_biases else network
    u, v = holder.content_bias, holder.position_bias
    m = len(memory)
    context = torch.cat([memory, h])
    if config.pre_norm:
        context = w.attention_norm(context)
    w_k, w_v = w.key_value.weight[: config.width], w.key_value.weight[config.width :]
    heard = torch.zeros_like(h)
    for head in range(config.heads):
        own = slice(head * e, (head + 1) * e)
        for i in range(m, m + len(h)):  # places in the context
            q = w.query.weight[own] @ context[i]
            scores, values = [], []
            for j in range(i + 1):
                if piece[i] != piece[j] or (config.same_length and i - j > span):
                    continue
                distance = min(i - j, config.clamp_len) if config.clamp_len else i - j
                k = w_k[own] @ context[j]
                r = w.distance.weight[own] @ _encoding(distance, config.width)
                scores.append((q @ k + q @ r + u[head] @ k + v[head] @ r) / math.sqrt(e))  # (a) + (b) + (c) + (d)
                values.append(w_v[own] @ context[j])
            heard[i - m, own] = torch.stack(scores).softmax(0) @ torch.stack(values)
    h = h + heard @ w.out.weight.T
    if not config.pre_norm:
        h = w.attention_norm(h)
    activation = {"relu": F.relu, "gelu": F.gelu, "relu2": lambda x: F.relu(x) ** 2}[config.activation]
    hidden = activation(w.widen(w.feedforward_norm(h) if config.pre_norm else h))
    h = h + w.narrow(hidden)
    return h if config.pre_norm else w.feedforward_norm(h)


def _literal(
    network: TransformerXL,
    batch: dict[str, Tensor],
    row: int,
    memory: Sequence[Tensor] | None = None,
    piece: Sequence[int] | None = None,
    span: int | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Logits [T, V] of one row, and the input of every layer with the memory before it. memory: L tensors [M, D]."""
    config = network.config
    tokens, place, bar = (batch[name][row].tolist() for name in ("tokens", "place", "bar"))
    h = torch.stack([network.embedding.weight[token] for token in tokens])
    if config.places:
        h = h + torch.stack([network.place_embedding.weight[min(p, config.places - 1)] for p in place])
    if config.bars:
        h = h + torch.stack([network.bar_embedding.weight[n % config.bars] for n in bar])
    h = h * math.sqrt(config.width)
    inputs = []
    for index in range(config.layers):
        before = torch.zeros(0, config.width) if memory is None else memory[index]
        inputs.append(torch.cat([before, h]))
        h = _literal_layer(
            network,
            index,
            h,
            before,
            piece if piece is not None else [0] * len(inputs[-1]),
            config.memory if span is None else span,
        )
    h = network.last_norm(h) if config.pre_norm else h
    return h @ network.embedding.weight.T + network.output_bias, inputs


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_forward_is_the_papers_equations(kind):
    """Three segments, the memory of each the literal code's own."""
    network = _network(**KINDS[kind])
    batch = _tokens(14)
    memory = None
    literal: list[list[Tensor] | None] = [None, None]
    for begin, end in ((0, 5), (5, 11), (11, 14)):
        part = _cut(batch, begin, end)
        logits, memory = network(**part, memory=memory)
        for row in range(2):
            expected, inputs = _literal(network, part, row, literal[row])
            _close(logits[row], expected)
            literal[row] = [layer[-network.config.memory :] for layer in inputs]
            for kept, found in zip(literal[row], memory, strict=False):
                _close(found[row], kept)
        assert len(memory) == network.config.layers + 1
        assert {tuple(m.shape) for m in memory} == {(2, min(end, 4), 8)}


@torch.no_grad()
def test_pieces_in_a_lane_do_not_see_each_other():
    network = _network()
    batch = _tokens(12)
    piece = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2], [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]])
    _, memory = network(**_cut(batch, 0, 4), piece=piece[:, :4])
    logits, _ = network(**_cut(batch, 4, 12), memory=memory, piece=piece[:, 4:], memory_piece=piece[:, :4])
    for row in range(2):
        kept = _literal(network, _cut(batch, 0, 4), row, piece=piece[row, :4].tolist())[1]
        expected, _ = _literal(network, _cut(batch, 4, 12), row, kept, piece=piece[row].tolist())
        _close(logits[row], expected)
    alone, _ = network(**{name: value[:1, 5:9] for name, value in batch.items()})  # the middle piece of the first lane
    _close(logits[0, 1:5], alone[0])


@pytest.mark.parametrize("width", [2, 8, 64])
def test_sinusoids_are_the_encoding_of_the_paper(width):
    distances = torch.tensor([0, 1, 2, 17, 500])
    _close(sinusoids(distances, width), torch.stack([_encoding(int(n), width) for n in distances]))


# ------------------------------------------------------------------------------------------------------- rel_shift

SHAPES = [(1, 1), (1, 6), (4, 4), (3, 7), (5, 6), (2, 9)]


def _legal(t: int, k: int) -> Tensor:
    """Where a key is not to the right of its query. bool [T, K]"""
    return torch.ones(t, k, dtype=torch.bool).tril(k - t)


@pytest.mark.parametrize(("t", "k"), SHAPES)
def test_rel_shift_is_an_explicit_loop(t, k):
    x = torch.randn(2, 3, t, k, generator=torch.Generator().manual_seed(0))
    for layout in (x, x.transpose(0, 1).contiguous().transpose(0, 1)):  # contiguous or not
        shifted = rel_shift(layout)
        for i in range(t):
            for j in range(k - t + i + 1):
                distance = k - t + i - j
                assert torch.equal(shifted[..., i, j], x[..., i, k - 1 - distance])


def _padded_shift(x: Tensor) -> Tensor:
    """The reference's: a column of zeros, the matrix read with rows one shorter (appendix B)."""
    *batch, t, k = x.shape
    return F.pad(x, (1, 0)).reshape(*batch, k + 1, t)[..., 1:, :].reshape(x.shape)


@pytest.mark.parametrize(("t", "k"), SHAPES)
def test_rel_shift_has_the_gradient_of_the_padded_form(t, k):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 2, t, k, generator=generator, dtype=torch.float64)
    weight = torch.randn(2, 2, t, k, generator=generator, dtype=torch.float64) * _legal(t, k)
    gradients = []
    for shift in (rel_shift, _padded_shift):
        leaf = x.clone().requires_grad_()
        ((shift(leaf).sin() * weight).sum()).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)
    assert torch.autograd.gradcheck(lambda x: rel_shift(x) * _legal(t, k), x.requires_grad_())


def test_gradients_reach_every_weight_and_no_memory():
    """The memory is a constant: backward does not enter the segment before, and it holds no graph."""
    network = _network(untie_biases=True)
    batch = _tokens(9)
    batch["place"][:, :4], batch["place"][:, 4:] = 0, batch["place"][:, 4:] % 4 + 1  # place 0 is in the memory alone
    _, memory = network(**_cut(batch, 0, 4))
    logits, kept = network(**_cut(batch, 4, 9), memory=memory)
    assert not any(m.requires_grad for m in [*memory, *kept])
    F.cross_entropy(logits.flatten(0, 1), batch["tokens"][:, 4:].flatten()).backward()
    assert not network.place_embedding.weight.grad[0].any()
    assert network.place_embedding.weight.grad[1:].any()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_the_whole_networks_gradient_is_that_of_its_differences():
    """Through masks, pieces, memory and the shift of one's own, in float64."""
    network = _network(same_length=True, activation="gelu").double()
    batch = _tokens(6, b=1)
    with torch.no_grad():
        _, memory = network(**_cut(batch, 0, 2))
    piece = torch.tensor([[0, 1, 1, 1]])

    def loss(weight: Tensor, v: Tensor) -> Tensor:
        swapped = {"layers.0.distance.weight": weight, "position_bias": v}
        inputs = {**_cut(batch, 2, 6), "memory": memory, "piece": piece, "memory_piece": torch.zeros(1, 2).long()}
        return torch.func.functional_call(network, swapped, (), inputs)[0].sin().sum()

    weights = (network.get_parameter("layers.0.distance.weight"), network.position_bias)
    assert torch.autograd.gradcheck(loss, tuple(weight.detach().clone().requires_grad_() for weight in weights))


# ------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cuts", [[1] * 12, [5, 7], [2, 1, 6, 3]])
@torch.no_grad()
def test_memory_that_holds_everything_is_the_whole_piece(kind, cuts):
    """With memory enough, segments give what one pass over all of it gives."""
    network = _network(**{**KINDS[kind], "memory": 50})
    batch = _tokens(12)
    expected, _ = network(**batch)
    memory, found, begin = None, [], 0
    for n in cuts:
        logits, memory = network(**_cut(batch, begin, begin + n), memory=memory)
        found.append(logits)
        begin += n
    _close(torch.cat(found, 1), expected)


@pytest.mark.parametrize("memory_len", [0, 1, 3])
@torch.no_grad()
def test_same_length_is_a_window_whatever_the_segments(memory_len):
    """Every token sees exactly the M before it: one pass, single tokens, and anything between."""
    network = _network(same_length=True)
    batch = _tokens(15)
    expected, _ = network(**batch, memory_len=memory_len)
    for n in (1, 4, 7):
        memory, found = None, []
        for begin in range(0, 15, n):
            logits, memory = network(**_cut(batch, begin, begin + n), memory=memory, memory_len=memory_len)
            assert memory[0].shape[1] == min(memory_len, begin + logits.shape[1])
            found.append(logits)
        _close(torch.cat(found, 1), expected)
    # ... and what lies beyond the window of every layer has no say: L layers see L M tokens back.
    changed = {name: value.clone() for name, value in batch.items()}
    changed["tokens"][:, 0] = (changed["tokens"][:, 0] + 1) % 13
    other, _ = network(**changed, memory_len=memory_len)
    reach = network.config.layers * memory_len
    _close(other[:, reach + 1 :], expected[:, reach + 1 :])
    assert (other[:, reach] - expected[:, reach]).abs().max() > 1e-4


@torch.no_grad()
def test_without_same_length_one_token_at_a_time_is_the_window_too():
    """Why generation may take `same_length` for granted: single tokens with M of memory see M tokens before them."""
    network, window = _network(), _network(same_length=True)
    batch = _tokens(12)
    expected, _ = window(**batch, memory_len=3)
    memory = None
    for i in range(12):
        logits, memory = network(**_cut(batch, i, i + 1), memory=memory, memory_len=3)
        _close(logits[:, 0], expected[:, i])


@torch.no_grad()
def test_clamped_distances_are_all_the_same():
    """Beyond `clamp_len` only the content counts: two distant tokens may change places."""
    batch = _tokens(8, b=1)
    batch["place"][:, 0] = batch["place"][:, 1]
    batch["bar"][:, 0] = batch["bar"][:, 1]
    swapped = {name: value.clone() for name, value in batch.items()}
    swapped["tokens"][:, [0, 1]] = batch["tokens"][:, [1, 0]]
    assert batch["tokens"][0, 0] != batch["tokens"][0, 1]
    differences = {}
    for clamp in (0, 2):
        network = _network(layers=1, clamp_len=clamp)  # with one layer no token between them passes it on
        differences[clamp] = (network(**batch)[0] - network(**swapped)[0])[:, 4:].abs().max()
    assert differences[2] < 1e-5 < 1e-3 < differences[0]


@torch.no_grad()
def test_a_token_is_not_seen_by_those_before_it():
    network = _network()
    batch = _tokens(10)
    changed = {name: value.clone() for name, value in batch.items()}
    changed["tokens"][:, 6] = (changed["tokens"][:, 6] + 1) % 13
    one, two = network(**batch)[0], network(**changed)[0]
    assert torch.equal(one[:, :6], two[:, :6])
    assert ((one - two)[:, 6:].abs().amax(-1) > 1e-4).all()


# --------------------------------------------------------------------------------------------------- the shape of it


def test_a_config_is_its_json_and_bad_widths_are_refused():
    config = dataclasses.replace(TINY, clamp_len=7, pre_norm=False)
    assert Config(**json.loads(config.json())) == config
    for width, heads in ((10, 4), (9, 3)):
        with pytest.raises(ValueError, match="heads"):
            TransformerXL(dataclasses.replace(TINY, width=width, heads=heads))


def test_dropout_is_for_training_alone():
    network, batch = _network(), _tokens(6)
    assert torch.equal(network(**batch)[0], network(**batch)[0])
    network.train()
    assert not torch.equal(network(**batch)[0], network(**batch)[0])
