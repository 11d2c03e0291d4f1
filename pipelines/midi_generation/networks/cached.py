"""Generation with a Transformer-XL: the logits of `transformer_xl.py`, each token computed once.

    B  rows, a piece each       M  tokens of memory            S  slots of the ring, M + 1 (on CUDA a multiple of 64)
    T  tokens of a read         H  heads, E wide each          D  width = H E

What the reference recomputes at every token is kept: of each layer the keys and values of the last M tokens, and the
distances projected, W_r R, which are the same for all tokens and all pieces. A token sees itself and exactly the M
before it (`same_length`), in whatever portions a piece is read, so a token takes the same time and memory at the ten
thousandth as at the first after M.

Choices made here:
- A ring, not a buffer twice as long that is compacted: keys never move, addresses never change, no token waits for a
  compaction. Its price is that the relative term, formed by distance, is put in the order of the slots: one `cat` of
  513 numbers a head, a few microseconds. (W_r R kept twice over, so that any order is a slice of it, was no faster.)
- u is the bias of the query's projection, and the scale is in its weights. What is left of v, (v - u) . W_r R, depends
  on the distance alone and is kept beside W_r R. Queries, keys and values are one product.
- Attention is torch's `scaled_dot_product_attention`, the relative term its mask. Measured against explicit products
  on two cores (float32, 513 keys, H x E = 8 x 64): 58 and 58 microseconds a layer at batch 1, 0.77 and 1.3 ms at 8.
- Weights lie as [in, out], which a product with one row reads at 13.7 GB/s on one core and [out, in] at 11.8: at batch
  1 reading them is most of a token.
- Rows whose newest token lies at the same slot go the short way, `_Aligned`, whatever their lengths; a row left out of
  a step (`active`) falls behind, and the batch goes the other, `_Scattered`, until the next `read` aligns it again.
  A row that is left out still writes one slot, the one its next token will write again: nothing looks at it meanwhile.
- bfloat16 is the caller's choice (`dtype`), never the default: logits are then those of rounded weights. On a processor
  with AMX it was slower at batch 1 (4.6 ms a step against 3.0, 8 layers x 256), a seventh faster at 8, and read a
  prompt for 8 rows in less than half the time. Batch 32 was not measured.
- On CUDA a step is a CUDA graph of the scattered way. It is compared with the plain step when it is captured and given
  up with a warning where the two differ. THIS HAS NOT BEEN RUN: no such device was at hand.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.midi_generation.networks.transformer_xl import (
    ACTIVATIONS,
    Layer,
    TransformerXL,
    rel_shift,
    sinusoids,
)

__all__ = ["Cached"]

READ_AT_ONCE = 2048  # tokens of all rows together; bounds what a read takes, whatever its length


class _Weights(NamedTuple):
    """A layer's, as its step wants them."""

    attention_norm: tuple[Tensor, Tensor, float]
    qkv: Tensor  # [D, 3 D]
    qkv_bias: Tensor  # [3 D]: u, scaled, and zeros
    distances: Tensor  # [H, E, S], W_r R; column c is of the distance S - 1 - c
    distance_bias: Tensor  # [H, 1, S], (v - u) . W_r R, scaled
    out: Tensor  # [D, D]
    feedforward_norm: tuple[Tensor, Tensor, float]
    widen: Tensor
    widen_bias: Tensor
    narrow: Tensor
    narrow_bias: Tensor


@dataclass(frozen=True)
class _Aligned:
    """Every row's newest token is at `slot`; the first `high` slots are in use.

    mask: [1, B, high], nought or minus infinity by distance, as the columns of `_Weights.distances`; or none.
    """

    slot: int
    high: int
    mask: Tensor | None

    def __call__(self, ring: Tensor, kv: Tensor, q: Tensor, w: _Weights) -> tuple[Tensor, Tensor]:
        """Writes keys and values [B, 2, H, E]; the ring as it is seen, and the relative term [B, H, 1, high]."""
        ring.select(3, self.slot).copy_(kv)
        bias = _relative(q, w, self.high)
        if self.mask is not None:
            bias += self.mask
        older = self.high - 1 - self.slot  # slots after the newest hold what is further back
        if older:
            bias = torch.cat([bias[..., older:], bias[..., :older]], -1)
        return ring.narrow(3, 0, self.high), bias.transpose(0, 1).unsqueeze(2)


@dataclass(frozen=True)
class _Scattered:
    """Every row has its own newest slot. slot, rows: int64 [B]; column: int64 [1, B, S], that of
    `_Weights.distances` for each slot; hidden: bool [1, B, S]."""

    slot: Tensor
    rows: Tensor
    column: Tensor
    hidden: Tensor

    @classmethod
    def of(cls, slot: Tensor, count: Tensor, slots: int) -> _Scattered:
        """slot, count: int64 [B], the newest token's slot and how many tokens a row has with it."""
        distance = (slot[:, None] - torch.arange(slots, device=slot.device)) % slots
        rows = torch.arange(len(slot), device=slot.device)
        return cls(slot, rows, (slots - 1 - distance)[None], (distance >= count[:, None])[None])

    def __call__(self, ring: Tensor, kv: Tensor, q: Tensor, w: _Weights) -> tuple[Tensor, Tensor]:
        """As `_Aligned`'s; all slots are seen."""
        ring[self.rows, :, :, self.slot] = kv
        bias = _relative(q, w, ring.shape[3])
        bias = bias.gather(2, self.column.expand_as(bias)).masked_fill_(self.hidden, -torch.inf)
        return ring, bias.transpose(0, 1).unsqueeze(2)


def _relative(q: Tensor, w: _Weights, slots: int) -> Tensor:
    """The relative term of the scores at the distances slots - 1 down to 0; q + u [H, B, E] -> [H, B, slots]."""
    if slots == w.distances.shape[-1]:
        return torch.bmm(q, w.distances).add_(w.distance_bias)
    return torch.bmm(q, w.distances[..., -slots:]).add_(w.distance_bias[..., -slots:])


def _slots(span: int, device: torch.device) -> int:
    """Of a ring for a token and the memory before it. CUDA's kernels take masks whose rows are aligned."""
    return -(-span // 64) * 64 if device.type == "cuda" else span


class Cached:
    """A trained network and what it remembers of B pieces, for generation.

        cached = Cached(network, batch=2)
        logits = cached.read(tokens, place, bar)       # [B, T] -> [B, V], after the last token
        logits = cached.step(token, place, bar)        # [B] -> [B, V]

    The weights are copied: training the network further does not change it. Dropout is off. Not for several threads.
    """

    def __init__(
        self, network: TransformerXL, *, batch: int, memory: int = 512, dtype: torch.dtype | None = None
    ) -> None:
        """batch: rows, at least 1; memory: M, at least 0; dtype: of weights and cache (default: the network's)."""
        if batch < 1 or memory < 0:
            raise ValueError(f"batch {batch} must be at least 1 and memory {memory} at least 0")
        weight = network.embedding.weight
        self.config, self.memory = network.config, memory
        self.device, self.dtype = weight.device, dtype or weight.dtype
        self._span = memory + 1
        self._slots = _slots(self._span, self.device)
        self._at_once = max(1, min(256, READ_AT_ONCE // batch))
        self._graph: _Graph | None = None
        self._graphs = self.device.type == "cuda"
        with torch.no_grad():
            self._copy(network)
        heads = self.config.heads
        shape = (batch, 2, heads, self._slots, self.config.width // heads)
        # Zeros, because slots that are hidden still take part: with a weight of nought.
        self._rings = [torch.zeros(shape, device=self.device, dtype=self.dtype) for _ in self._layers]
        self._count, self._newest = [0] * batch, [-1] * batch

    # ------------------------------------------------------------------------------------------------------ rows

    @property
    def batch(self) -> int:
        """Rows."""
        return len(self._count)

    @property
    def counts(self) -> list[int]:
        """Tokens that each row remembers and its next token will see, at most M."""
        return [min(count, self.memory) for count in self._count]

    def reset(self, rows: Sequence[int] | None = None) -> None:
        """Rows (default: all) forget what they have read and begin a new piece."""
        for row in range(self.batch) if rows is None else rows:
            self._count[row] = 0
        if not any(self._count):
            self._newest = [-1] * self.batch

    def select(self, rows: Sequence[int]) -> None:
        """Keeps these rows in this order; what was row rows[i] is row i. A row may come twice, and the others go."""
        if not rows or min(rows) < 0 or max(rows) >= self.batch:
            raise ValueError(f"rows {list(rows)}: at least one, each from 0 to {self.batch - 1}")
        index = torch.tensor(list(rows), device=self.device)
        with torch.no_grad():
            kept = [ring[index] for ring in self._rings]
        if len(rows) == self.batch:  # the same addresses, for the graph's sake
            for ring, new in zip(self._rings, kept, strict=True):
                ring.copy_(new)
        else:
            self._rings, self._graph = kept, None
        self._count = [self._count[row] for row in rows]
        self._newest = [self._newest[row] for row in rows]

    # ---------------------------------------------------------------------------------------------------- reading

    def read(
        self,
        tokens: Tensor,
        place: Tensor | None = None,
        bar: Tensor | None = None,
        lengths: Sequence[int] | Tensor | None = None,
        *,
        every: bool = False,
    ) -> Tensor:
        """Logits after the last token of each row, float32 [B, V]; with `every` after every token, [B, T, V].

        tokens, place, bar: int64 [B, T], padded at the right where a row's length is less than T; lengths: [B], from 0
        to T (default: T). A row of length 0 stays as it was; its logits, like those after padding, mean nothing.
        """
        b, t = tokens.shape
        sizes = [t] * b if lengths is None else [int(n) for n in lengths]
        if b != self.batch or len(sizes) != b or t < 1 or min(sizes) < 0 or max(sizes) > t:
            raise ValueError(f"tokens {[b, t]} of lengths {sizes} do not fit a cache of {self.batch} rows")
        with torch.inference_mode():
            last = torch.zeros(b, self.config.width, device=self.device, dtype=self.dtype)
            logits = []
            for begin in range(0, t if every else max(sizes), self._at_once):
                cut = slice(begin, begin + self._at_once)
                part = tokens[:, cut]
                here = [min(max(n - begin, 0), part.shape[1]) for n in sizes]
                x = self._embed(part, place if place is None else place[:, cut], bar if bar is None else bar[:, cut])
                x = self._portion(x, here)
                if every:
                    logits.append(self._logits(x))
                ends = torch.tensor(here, device=self.device)
                newest = x[torch.arange(b, device=self.device), (ends - 1).clamp(min=0)]
                last = torch.where((ends > 0)[:, None], newest, last)
            result = torch.cat(logits, 1) if every else self._logits(last)
        return result.clone()  # outside of inference mode: the caller may change it in place

    def step(
        self,
        tokens: Tensor,
        place: Tensor | None = None,
        bar: Tensor | None = None,
        active: Sequence[bool] | Tensor | None = None,
    ) -> Tensor:
        """Logits after one more token of each row, float32 [B, V].

        tokens, place, bar: int64 [B]; active: bool [B], the rows that read it (default: all). The others stay as they
        were, and their logits mean nothing.
        """
        if tokens.shape != (self.batch,):
            raise ValueError(f"tokens {list(tokens.shape)} are not one for each of {self.batch} rows")
        reads = [True] * self.batch if active is None else [bool(flag) for flag in active]
        newest = [(slot + 1) % self._slots for slot in self._newest]
        count = [min(count + 1, self._span) for count in self._count]
        with torch.inference_mode():
            if self._graphs:
                logits = self._replay(tokens, place, bar, newest, count)
            else:
                logits = self._step(tokens, place, bar, self._way(newest, count))
        self._newest = [new if read else old for read, new, old in zip(reads, newest, self._newest, strict=True)]
        self._count = [new if read else old for read, new, old in zip(reads, count, self._count, strict=True)]
        return logits.clone()

    # ----------------------------------------------------------------------------------------------- a single token

    def _way(self, newest: list[int], count: list[int]) -> _Aligned | _Scattered:
        slot = newest[0]
        if any(other != slot for other in newest):
            places, counts = (torch.tensor(numbers, device=self.device) for numbers in (newest, count))
            return _Scattered.of(places, counts, self._slots)
        high = slot + 1 if max(count) <= slot + 1 else self._slots
        mask = None
        if any(n != high for n in count):
            distance = torch.arange(high - 1, -1, -1, device=self.device)
            mask = torch.zeros(1, self.batch, high, device=self.device, dtype=self.dtype)
            mask.masked_fill_(distance >= torch.tensor(count, device=self.device)[:, None], -torch.inf)
        return _Aligned(slot, high, mask)

    def _step(self, tokens: Tensor, place: Tensor | None, bar: Tensor | None, way: _Aligned | _Scattered) -> Tensor:
        """tokens [B] -> logits [B, V]."""
        b, heads = len(tokens), self.config.heads
        x = self._embed(tokens, place, bar)
        for w, ring in zip(self._layers, self._rings, strict=True):
            qkv = torch.addmm(w.qkv_bias, self._before(x, w.attention_norm), w.qkv).view(b, 3, heads, -1)
            q = qkv.select(1, 0)  # [B, H, E]
            seen, bias = way(ring, qkv.narrow(1, 1, 2), q.transpose(0, 1), w)
            k, v = seen.unbind(1)
            heard = F.scaled_dot_product_attention(q.unsqueeze(2), k, v, attn_mask=bias, scale=1.0)
            x = self._rest(x, heard.reshape(b, -1), w)
        return self._logits(x)

    def _replay(
        self, tokens: Tensor, place: Tensor | None, bar: Tensor | None, newest: list[int], count: list[int]
    ) -> Tensor:
        """The step through a CUDA graph; without one, with a warning, where it cannot be captured or is not exact."""
        zeros = torch.zeros_like(tokens)
        values = (
            tokens,
            zeros if place is None else place,
            zeros if bar is None else bar,
            torch.tensor(newest, device=self.device),
            torch.tensor(count, device=self.device),
        )
        beat = (place is not None, bar is not None)
        with torch.cuda.device(self.device):
            if self._graph is None or self._graph.beat != beat:
                try:
                    self._graph = _Graph(self, values, beat)
                except RuntimeError as error:
                    self._graphs, self._graph = False, None
                    warnings.warn(f"generation goes on without a CUDA graph: {error}", RuntimeWarning, stacklevel=3)
                    return self._step(tokens, place, bar, self._way(newest, count))
            return self._graph(values)

    # ---------------------------------------------------------------------------------------------- several tokens

    def _portion(self, x: Tensor, lengths: list[int]) -> Tensor:
        """x [B, T, D], embedded -> the last layer's [B, T, D]; rows are aligned afterwards."""
        b, t, _ = x.shape
        held = self.counts
        m = max(held)
        count = [min(old + new, self._span) for old, new in zip(held, lengths, strict=True)]
        top = max(count)
        rows = torch.arange(b, device=self.device)[:, None]
        newest, ends, started = (torch.tensor(n, device=self.device)[:, None] for n in (self._newest, lengths, held))
        back = torch.arange(m - 1, -1, -1, device=self.device)
        before = (newest - back) % self._slots  # [B, m]: the slots in the order they were read
        after = (m + ends - top + torch.arange(top, device=self.device)).clamp(min=0)  # [B, top]: what stays
        hidden = self._hidden(t, m, started)
        x = x.flatten(0, 1)
        for w, ring in zip(self._layers, self._rings, strict=True):
            qkv = torch.addmm(w.qkv_bias, self._before(x, w.attention_norm), w.qkv)
            qkv = qkv.view(b, t, 3, self.config.heads, -1)
            kv = torch.cat([ring[rows, :, :, before], qkv[:, :, 1:]], 1)  # [B, m + T, 2, H, E]
            x = self._rest(x, self._attend(qkv[:, :, 0].transpose(1, 2), kv, hidden, w), w)
            ring[:, :, :, :top] = kv[rows, after].permute(0, 2, 3, 1, 4)
        self._count, self._newest = count, [top - 1] * b
        return x.view(b, t, -1)

    def _hidden(self, t: int, m: int, started: Tensor) -> Tensor:
        """What a query must not see: what follows, what is further back than M, and what a row has not read. started:
        int64 [B, 1], how many of the m tokens of memory a row has. bool [B, 1, T, m + T]"""
        key = torch.arange(m + t, device=self.device)
        distance = torch.arange(t, device=self.device)[:, None] + m - key
        return ((distance < 0) | (distance > self.memory)) | (key < m - started)[:, None, None]

    def _attend(self, q: Tensor, kv: Tensor, hidden: Tensor, w: _Weights) -> Tensor:
        """q [B, H, T, E], kv [B, K, 2, H, E] -> [B T, D]."""
        k, v = kv.permute(2, 0, 3, 1, 4)
        further = k.shape[2] - self._slots  # distances that nothing is seen at: noughts do
        distances, distance_bias = (F.pad(r, (further, 0)) for r in (w.distances, w.distance_bias))
        bias = rel_shift(q @ distances + distance_bias).masked_fill_(hidden, -torch.inf)
        return (
            F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0).transpose(1, 2).flatten(2).flatten(0, 1)
        )

    # ------------------------------------------------------------------------------------------- common to the two

    def _embed(self, tokens: Tensor, place: Tensor | None, bar: Tensor | None) -> Tensor:
        """As `TransformerXL.embed`; the tables hold its factor."""
        x = F.embedding(tokens, self._tokens)
        if self._places is not None and place is not None:
            x = x + F.embedding(place.clamp(max=self.config.places - 1), self._places)
        if self._bars is not None and bar is not None:
            x = x + F.embedding(bar % self.config.bars, self._bars)
        return x

    def _before(self, x: Tensor, norm: tuple[Tensor, Tensor, float]) -> Tensor:
        return _normed(x, norm) if self.config.pre_norm else x

    def _rest(self, x: Tensor, heard: Tensor, w: _Weights) -> Tensor:
        """All of a layer after its attention. [N, D] each -> [N, D]."""
        pre_norm = self.config.pre_norm
        x = torch.addmm(x, heard, w.out)
        if not pre_norm:
            x = _normed(x, w.attention_norm)
        hidden = torch.addmm(w.widen_bias, self._before(x, w.feedforward_norm), w.widen)
        hidden = ACTIVATIONS[self.config.activation](hidden)
        x = torch.addmm(x, hidden, w.narrow).add_(w.narrow_bias)
        return x if pre_norm else _normed(x, w.feedforward_norm)

    def _logits(self, x: Tensor) -> Tensor:
        if self._last_norm is not None:
            x = _normed(x, self._last_norm)
        return F.linear(x, self._output, self._output_bias).float()

    # ------------------------------------------------------------------------------------------------- preparation

    def _copy(self, network: TransformerXL) -> None:
        """The weights, rearranged."""
        factor = self.config.width**0.5

        def table(module: torch.nn.Module | None) -> Tensor | None:
            return (module.weight * factor).to(self.dtype) if isinstance(module, torch.nn.Embedding) else None

        self._tokens = (network.embedding.weight * factor).to(self.dtype)
        self._places, self._bars = table(network.place_embedding), table(network.bar_embedding)
        self._last_norm = self._norm(network.last_norm) if isinstance(network.last_norm, torch.nn.LayerNorm) else None
        self._output = network.embedding.weight.to(self.dtype, copy=True)
        self._output_bias = network.output_bias.to(self.dtype, copy=True)
        distances = torch.arange(self._slots - 1, -1, -1, device=self.device)
        if self.config.clamp_len:
            distances = distances.clamp(max=self.config.clamp_len)
        sines = sinusoids(distances, self.config.width)
        self._layers = [
            self._weights(layer, network.biases, sines) for layer in network.layers if isinstance(layer, Layer)
        ]

    def _weights(self, layer: Layer, biases: tuple[Tensor, Tensor], sines: Tensor) -> _Weights:
        u, v = (layer.content_bias, layer.position_bias) if self.config.untie_biases else biases
        heads, e = u.shape
        scale = e**-0.5
        r = (sines.to(layer.distance.weight.dtype) @ layer.distance.weight.T).view(-1, heads, e).permute(1, 2, 0)
        qkv = torch.cat([layer.query.weight * scale, layer.key_value.weight])
        zeros = u.new_zeros(2 * u.numel())

        def matrix(weight: Tensor) -> Tensor:
            """[out, in] -> [in, out], contiguous."""
            return weight.T.to(self.dtype, copy=True).contiguous()

        return _Weights(
            attention_norm=self._norm(layer.attention_norm),
            qkv=matrix(qkv),
            qkv_bias=torch.cat([u.flatten() * scale, zeros]).to(self.dtype),
            distances=r.contiguous().to(self.dtype),
            distance_bias=(((v - u) * scale)[:, None] @ r).to(self.dtype),
            out=matrix(layer.out.weight),
            feedforward_norm=self._norm(layer.feedforward_norm),
            widen=matrix(layer.widen.weight),
            widen_bias=layer.widen.bias.to(self.dtype, copy=True),
            narrow=matrix(layer.narrow.weight),
            narrow_bias=layer.narrow.bias.to(self.dtype, copy=True),
        )

    def _norm(self, norm: torch.nn.LayerNorm) -> tuple[Tensor, Tensor, float]:
        return norm.weight.to(self.dtype, copy=True), norm.bias.to(self.dtype, copy=True), norm.eps


def _normed(x: Tensor, norm: tuple[Tensor, Tensor, float]) -> Tensor:
    weight, bias, eps = norm
    return torch.layer_norm(x, weight.shape, weight, bias, eps)


class _Graph:
    """A step captured once and replayed at fixed addresses. Not yet run on a device."""

    def __init__(self, cached: Cached, values: tuple[Tensor, ...], beat: tuple[bool, bool]) -> None:
        """values: tokens, place, bar, newest slot and count, [B] each. Raises RuntimeError where it is not exact."""
        self.beat = beat
        self.values = tuple(value.clone() for value in values)
        tokens, place, bar, newest, count = self.values

        def step() -> Tensor:
            way = _Scattered.of(newest, count, cached._slots)
            return cached._step(tokens, place if beat[0] else None, bar if beat[1] else None, way)

        # A step may be repeated: it writes the same slot with the same values.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                plain = step()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = step()
        tolerance = 1e-3 if cached.dtype == torch.float32 else 5e-2
        if not torch.allclose(self(values), plain, rtol=tolerance, atol=tolerance):
            raise RuntimeError("the captured step gives other logits than the plain one")

    def __call__(self, values: tuple[Tensor, ...]) -> Tensor:
        for static, value in zip(self.values, values, strict=True):
            static.copy_(value)
        self.graph.replay()
        return self.logits
