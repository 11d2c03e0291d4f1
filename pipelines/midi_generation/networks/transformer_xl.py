"""Transformer-XL (Dai et al. 2019, https://arxiv.org/abs/1901.02860): a causal transformer with relative positions and
a memory of what came before the segment.

    B  pieces in the batch      T  tokens of the segment     M  tokens of memory      K = M + T  keys
    L  layers                   D  width                     H  heads                 E = D / H  width of a head

Attention of query i to key j, at the distance i - j (equation 6 of the paper; here u and v are `content_bias` and
`position_bias`, R the sinusoids, W_r `distance`):

    score(i, j) = [ (q_i + u) . k_j  +  (q_i + v) . (W_r R_{i-j}) ] / sqrt(E)

Choices made here:
- This file is the training forward, written to be read. Generation is `cached.py`, which gives the same logits.
- Memory is what the reference keeps: the detached input of every layer (and of the last, for form's sake: L + 1).
- `same_length` lets every query see exactly the M tokens before it, whatever its place in the segment, which is what
  generation with a cache of M tokens computes. Without it, a query sees all of the memory and the segment before it.
- Beat encoding (musicautobot): embeddings of the place in the bar and of the bar's number, added to the token's.
- `piece` keeps pieces apart that follow each other in a lane: a token sees only its own.
- Layer norm stands before each block unless `pre_norm` is off, as the paper has it.
- No kernel of PyTorch takes the relative term with a gradient: to `scaled_dot_product_attention` it would be a mask
  that needs one. So scores are formed here; `cached.py`, which needs no gradient, does use that kernel.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Config", "TransformerXL", "rel_shift", "sinusoids"]


@dataclass(frozen=True)
class Config:
    """The shape of a network; what a model file's header holds."""

    vocabulary: int
    layers: int = 8
    width: int = 256
    heads: int = 8
    feedforward: int = 1024
    memory: int = 512
    """Tokens of memory, M, in training; generation may take another."""
    clamp_len: int = 0
    """Distances beyond it count as it; 0 for none."""
    same_length: bool = False
    untie_biases: bool = False
    """u and v for each layer rather than for all together."""
    pre_norm: bool = True
    activation: str = "relu"
    """"relu", "gelu" or "relu2" (its square)."""
    dropout: float = 0.1
    places: int = 0
    """Beat encoding: places in a bar that are told apart; 0 for none."""
    bars: int = 0
    """Beat encoding: bar numbers are told apart modulo this; 0 for none."""

    def json(self) -> str:
        """Itself as JSON; `Config(**json.loads(text))` makes it again."""
        return json.dumps(asdict(self))


def sinusoids(distances: Tensor, width: int) -> Tensor:
    """R of the paper: [N] distances -> [N, width] sines, then cosines, of wavelengths from 2 pi to 20,000 pi."""
    frequencies = 1 / (10_000 ** (torch.arange(0, width, 2, device=distances.device).float() / width))
    angles = distances.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)


class _Shift(torch.autograd.Function):
    """`rel_shift` by strides: element (i, j) of the result lies at (K - 1) i + j + T - 1 of the argument."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        t, k = x.shape[-2:]
        x = x.contiguous()
        return x.as_strided(x.shape, (*x.stride()[:-2], k - 1, 1), x.storage_offset() + t - 1).clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        *batch, t, k = gradient.shape
        padded = gradient.new_empty(*batch, t * (k + 1))
        padded[..., :t].zero_()
        padded[..., t:] = gradient.flatten(-2)
        return padded.view(*batch, t, k + 1)[..., 1:]


def rel_shift(x: Tensor) -> Tensor:
    """[..., T, K] by distance -> by key (appendix B of the paper).

    Column c of x holds the term of distance K - 1 - c. Row i is moved left by T - 1 - i, so that column j then holds
    that of the distance between query i (key K - T + i) and key j. What lies right of the query is of no meaning, and
    its gradient must be zero.
    """
    return _Shift.apply(x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "relu2": lambda x: F.relu(x).square(),
}


class Layer(nn.Module):
    """Relative attention and feed-forward, each with a residual."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        d = config.width
        self.config = config
        self.query = nn.Linear(d, d, bias=False)
        self.key_value = nn.Linear(d, 2 * d, bias=False)
        self.distance = nn.Linear(d, d, bias=False)  # W_r
        self.out = nn.Linear(d, d, bias=False)
        self.attention_norm = nn.LayerNorm(d)
        self.widen = nn.Linear(d, config.feedforward)
        self.narrow = nn.Linear(config.feedforward, d)
        self.feedforward_norm = nn.LayerNorm(d)
        self.drop = nn.Dropout(config.dropout)
        if config.untie_biases:
            self.content_bias = nn.Parameter(torch.zeros(config.heads, d // config.heads))  # u
            self.position_bias = nn.Parameter(torch.zeros(config.heads, d // config.heads))  # v

    def forward(self, x: Tensor, memory: Tensor, sines: Tensor, biases: tuple[Tensor, Tensor], seen: Tensor) -> Tensor:
        """x [B, T, D]; memory [B, M, D]; sines [K, D]; seen: bool [B or 1, 1, T, K], where a query may look."""
        x = x + self.drop(self.attend(x, memory, sines, biases, seen))
        if not self.config.pre_norm:
            x = self.attention_norm(x)
        hidden = self.feedforward_norm(x) if self.config.pre_norm else x
        hidden = self.drop(ACTIVATIONS[self.config.activation](self.widen(hidden)))
        x = x + self.drop(self.narrow(hidden))
        return x if self.config.pre_norm else self.feedforward_norm(x)

    def attend(self, x: Tensor, memory: Tensor, sines: Tensor, biases: tuple[Tensor, Tensor], seen: Tensor) -> Tensor:
        """The attention alone. [B, T, D] -> [B, T, D]."""
        b, t, d = x.shape
        heads, e = self.config.heads, d // self.config.heads
        u, v = (self.content_bias, self.position_bias) if self.config.untie_biases else biases
        context = torch.cat([memory, x], 1)  # [B, K, D]
        if self.config.pre_norm:
            context = self.attention_norm(context)
        q = self.query(context[:, -t:]).view(b, t, heads, e)
        k, value = self.key_value(context).view(b, -1, 2, heads, e).unbind(2)  # [B, K, H, E] each
        r = self.distance(sines.to(x.dtype)).view(-1, heads, e)  # [K, H, E]
        scale = e**-0.5
        content = ((q + u) * scale).transpose(1, 2) @ k.permute(0, 2, 3, 1)  # [B, H, T, K]
        position = rel_shift(((q + v) * scale).transpose(1, 2) @ r.permute(1, 2, 0))  # [B, H, T, K]
        with torch.autocast(x.device.type, enabled=False):  # a softmax computes in float32 whatever it is given
            weight = (content + position).add_(seen.to(content.dtype)).softmax(-1)
        return self.out((weight @ value.transpose(1, 2)).transpose(1, 2).reshape(b, t, d))


class TransformerXL(nn.Module):
    """The network. See the module's docstring; `Config` says what it is made of."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.width % config.heads or config.width % 2:
            raise ValueError(f"width {config.width} is not an even multiple of {config.heads} heads")
        d = config.width
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, d)  # also the output's weights
        self.place_embedding = nn.Embedding(config.places, d) if config.places else None
        self.bar_embedding = nn.Embedding(config.bars, d) if config.bars else None
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.last_norm = nn.LayerNorm(d) if config.pre_norm else nn.Identity()
        self.output_bias = nn.Parameter(torch.zeros(config.vocabulary))
        self.drop = nn.Dropout(config.dropout)
        if not config.untie_biases:
            self.content_bias = nn.Parameter(torch.zeros(config.heads, d // config.heads))  # u
            self.position_bias = nn.Parameter(torch.zeros(config.heads, d // config.heads))  # v
        self.apply(_initialise)

    @property
    def biases(self) -> tuple[Tensor, Tensor]:
        """u and v where all layers share them; unused tensors otherwise."""
        if self.config.untie_biases:
            return self.output_bias, self.output_bias
        return self.content_bias, self.position_bias

    def embed(self, tokens: Tensor, place: Tensor | None = None, bar: Tensor | None = None) -> Tensor:
        """Tokens with their beat. [B, T] each -> [B, T, D].

        place, bar: of the token in the music, needed where the network has beat encoding; bar is taken modulo.
        """
        x = self.embedding(tokens) * self.config.width**0.5
        if self.place_embedding is not None and place is not None:
            x = x + self.place_embedding(place.clamp(max=self.config.places - 1)) * self.config.width**0.5
        if self.bar_embedding is not None and bar is not None:
            x = x + self.bar_embedding(bar % self.config.bars) * self.config.width**0.5
        return x

    def logits(self, x: Tensor) -> Tensor:
        """[B, T, D] of the last layer -> [B, T, V]."""
        return F.linear(self.last_norm(x), self.embedding.weight.to(x.dtype), self.output_bias.to(x.dtype))

    def forward(
        self,
        tokens: Tensor,
        memory: Sequence[Tensor] | None = None,
        *,
        place: Tensor | None = None,
        bar: Tensor | None = None,
        piece: Tensor | None = None,
        memory_piece: Tensor | None = None,
        memory_len: int | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits of the token after each, and the memory for the next segment.

        tokens, place, bar, piece: int64 [B, T]; memory: what the call before returned, L + 1 tensors [B, M, D];
        piece, memory_piece [B, M]: which piece a token is of, needed where several follow each other;
        memory_len: tokens of memory to return (default: the config's).
        Returns logits [B, T, V] and the memory, detached, at most `memory_len` long.
        """
        b, t = tokens.shape
        x = self.drop(self.embed(tokens, place, bar))
        if memory is None:
            memory = [x.new_zeros(b, 0, self.config.width)] * (self.config.layers + 1)
        m = memory[0].shape[1]
        length = self.config.memory if memory_len is None else memory_len
        seen = self._seen(t, m, length, tokens.device)
        if piece is not None:
            of_keys = piece if memory_piece is None else torch.cat([memory_piece, piece], 1)
            seen = seen & (piece[:, None, :, None] == of_keys[:, None, None, :])
        seen = torch.zeros(seen.shape, device=tokens.device).masked_fill(~seen, -1e4)
        sines = self.drop(sinusoids(self.distances(m + t, tokens.device), self.config.width))
        kept = [_newest(memory[0], x, length)]
        for layer, remembered in zip(self.layers, memory[:-1], strict=True):
            x = layer(x, remembered.to(x.dtype), sines, self.biases, seen)
            kept.append(_newest(memory[len(kept)], x, length))
        return self.logits(self.drop(x)), kept

    def distances(self, k: int, device: torch.device) -> Tensor:
        """k - 1 down to 0, clamped. [K]"""
        distances = torch.arange(k - 1, -1, -1, device=device)
        return distances.clamp(max=self.config.clamp_len) if self.config.clamp_len else distances

    def _seen(self, t: int, m: int, span: int, device: torch.device) -> Tensor:
        """Which keys a query looks at: none to its right and, with `same_length`, the `span` before it. [1, 1, T, K]"""
        distance = torch.arange(t, device=device)[:, None] + m - torch.arange(m + t, device=device)
        seen = distance >= 0
        return (seen & (distance <= span) if self.config.same_length else seen)[None, None]


def _newest(memory: Tensor, x: Tensor, length: int) -> Tensor:
    """The last `length` tokens of memory and segment, detached."""
    if length <= 0:
        return x.detach()[:, :0]
    return torch.cat([memory.to(x.dtype), x.detach()], 1)[:, -length:]


def _initialise(module: nn.Module) -> None:
    """Normal with deviation 0.02, as the reference does."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
