"""Prompts -> what diffusers' pipelines take instead of them: embeddings, of any length and with weights.

Choices made here:
- A prompt that fits and has no weights is encoded as `encode_prompt` of diffusers does it, to the bit.
- CLIP reads `model_max_length` tokens. A longer text is read in chunks, each with a beginning and an end of its own,
  laid side by side (as A1111 does). The prompt and the negative one have to be of one length, and here none is filled
  up with empty chunks, which would change the picture: each is said over until they are. Attention over a text said
  twice is attention over it once: softmax gives every token half the weight, twice. Above MOST chunks in common the
  shorter one is said over as far as it goes.
- A weight w moves a token's embedding z along the line that comes from the empty prompt's at the same place, e:
  z' = e + w (z - e), as ComfyUI and Compel do. A1111 multiplies z itself and then restores the mean of all numbers,
  which is no help for encoders whose mean is near 0: its own option "No norm" is there for SDXL. Pooled embeddings are
  of the first chunk, unweighted.
- SD 3 and Flux read with T5, which was not made for either: their prompts are words alone, cut where T5 ends, and the
  notes say so.
- Compel (2.5) fits the versions, but reads another syntax (`word++`, `(word)1.3`); sd_embed has no releases.

n: chunks; L: tokens of a chunk; D: width of the embedding.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from genkit.errors import InputError
from pipelines.stable_diffusion import weighting
from pipelines.stable_diffusion.folders import quiet

if TYPE_CHECKING:
    from pipelines.stable_diffusion.loading import Model

__all__ = ["Encoded", "Prompts"]

MOST = 24
"""Chunks that a prompt and a negative one are said over to at most."""
CACHE = 2**26
"""Bytes of embeddings that are kept."""
T5_LENGTHS = {"sd3": (256, 512), "flux": (512,)}
"""Tokens that T5 reads: diffusers' own length, and a longer one where the text needs it."""

Chunk: TypeAlias = list[tuple[int, float]]
"""Tokens and their weights, without beginning and end."""


@dataclass(frozen=True)
class Encoded:
    """embeds: what a pipeline's call takes, a batch of one; notes: what the reader should know of the prompts."""

    embeds: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Text:
    """One text. hidden: [n, L, D]; pooled: [1, P] or None."""

    hidden: Tensor
    pooled: Tensor | None

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.hidden, self.pooled) if t is not None)


class Prompts:
    """The text encoders of one model, and what they have read lately."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.kept: OrderedDict[Hashable, _Text] = OrderedDict()

    def encode(
        self, prompt: str, negative: str = "", *, clip_skip: int = 0, guided: bool = True, key: Hashable = None
    ) -> Encoded:
        """The embeddings of a prompt, and where it is guided of a negative one, under the names of a pipeline's call.

        negative: "" is none: what diffusers takes then, zeros for SDXL; clip_skip: layers left out at the end, of the
        prompt's encoding alone, as diffusers has it; key: what the encoding depends on beside the text (`Use.key`).
        Raises InputError.
        """
        self._check(clip_skip)
        texts = (prompt, negative) if guided else (prompt,)
        notes = [note for text in texts for note in weighting.remarks(text)]
        if self.model.family in T5_LENGTHS:
            read, more = self._reader(texts)
            notes += more
            notes += ["clip_skip has no effect on Flux"] if clip_skip and self.model.family == "flux" else []
        else:
            read = self._chunked
        found = [self._kept(text, skip, key, read) for text, skip in zip(texts, (clip_skip, 0), strict=False)]
        if guided and not negative and getattr(self.model.pipe.config, "force_zeros_for_empty_prompt", False):
            found[1] = _nothing(found[0])
        return Encoded(_arguments(found), tuple(dict.fromkeys(notes)))

    def _check(self, clip_skip: int) -> None:
        encoders = [encoder for _, encoder in self._clips()]
        most = min(encoder.config.num_hidden_layers for encoder in encoders) - 1
        if clip_skip > most:
            raise InputError(f"clip_skip {clip_skip} is out of range: of this model's text encoder at most {most} fit")

    def _clips(self) -> list[tuple[Any, Any]]:
        """Tokenizer and encoder, for each that reads like CLIP."""
        pipe = self.model.pipe
        pairs = [(getattr(pipe, f"tokenizer{i}", None), getattr(pipe, f"text_encoder{i}", None)) for i in ("", "_2")]
        return [pair for pair in pairs[: 1 if self.model.family == "flux" else 2] if pair[1] is not None]

    def _kept(self, text: str, clip_skip: int, key: Hashable, read: Callable[[str, int], _Text]) -> _Text:
        """Read now, or lately."""
        name = (text, clip_skip, key, getattr(read, "length", None))
        if name in self.kept:
            self.kept.move_to_end(name)
            return self.kept[name]
        with torch.no_grad(), quiet():
            found = self.kept[name] = read(text, clip_skip)
        while sum(one.bytes for one in self.kept.values()) > CACHE and len(self.kept) > 1:
            self.kept.popitem(last=False)
        return found

    def _chunked(self, text: str, clip_skip: int) -> _Text:
        """By CLIP alone: in chunks, with weights."""
        sections = weighting.parse(text)
        read = [(clip, _chunks(sections, clip[0], self.model.pipe)) for clip in self._clips()]
        count = max(len(chunks) for _, chunks in read)
        parts, pooled = [], None
        for clip, chunks in read:
            chunks += [[]] * (count - len(chunks))
            found = self._encoder(*clip, chunks, clip_skip)
            parts.append(found.hidden)
            if weighting.weighted(sections):
                parts[-1] = _weighted(found.hidden, chunks, self._encoder(*clip, [[]], clip_skip).hidden)
            pooled = found.pooled if pooled is None else pooled
        return _Text(torch.cat(parts, dim=-1).to(read[-1][0][1].dtype), pooled)

    def _encoder(self, tokenizer: Any, encoder: Any, chunks: list[Chunk], clip_skip: int) -> _Text:
        """One encoder's reading of chunks, by diffusers' conventions for its family."""
        length = tokenizer.model_max_length
        device = self.model.pipe._execution_device
        ids = [[tokenizer.bos_token_id, *(token for token, _ in chunk), tokenizer.eos_token_id] for chunk in chunks]
        padded = torch.tensor([row + [tokenizer.pad_token_id] * (length - len(row)) for row in ids], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in ids], device=device)
        masked = getattr(encoder.config, "use_attention_mask", False)
        states = self.model.family == "sdxl" or clip_skip > 0
        found = encoder(padded, attention_mask=mask if masked else None, output_hidden_states=states)
        if self.model.family == "sdxl":
            pooled = found[0] if found[0].ndim == 2 else None
            return _Text(found.hidden_states[-(clip_skip + 2)], None if pooled is None else pooled[:1])
        if not clip_skip:
            return _Text(found[0], None)
        return _Text(_norm(encoder)(found.hidden_states[-(clip_skip + 1)]), None)

    def _reader(self, texts: tuple[str, ...]) -> tuple[Callable[[str, int], _Text], list[str]]:
        """How SD 3 and Flux read these texts, and what to say of it."""
        pipe, family = self.model.pipe, self.model.family
        tokenizer = pipe.tokenizer_3 if family == "sd3" else pipe.tokenizer_2
        words = [weighting.plain(text) for text in texts]
        notes = []
        if any(weighting.weighted(weighting.parse(text)) for text in texts):
            notes.append("weights in the prompt have no effect: this model's text encoder T5 knows none")
        lengths = [0 if tokenizer is None else len(tokenizer(text, verbose=False).input_ids) for text in words]
        length = next((one for one in T5_LENGTHS[family] if max(lengths) <= one), T5_LENGTHS[family][-1])
        reads = length
        if tokenizer is None:  # SD 3 without its largest encoder
            tokenizer, reads = pipe.tokenizer, pipe.tokenizer.model_max_length
            lengths = [len(tokenizer(text, verbose=False).input_ids) for text in words]
        for name, count in zip(("prompt", "negative_prompt"), lengths, strict=False):
            if count > reads:
                notes.append(f"{name} is {count} tokens long, of which this model reads the first {reads}")
        return _T5Reader(pipe, family, length), notes


@dataclass(frozen=True)
class _T5Reader:
    """diffusers' own encoding, for families that read with T5 beside CLIP."""

    pipe: Any
    family: str
    length: int

    def __call__(self, text: str, clip_skip: int) -> _Text:
        words = weighting.plain(text)
        if self.family == "flux":
            hidden, pooled, _ = self.pipe.encode_prompt(words, words, max_sequence_length=self.length)
        else:
            hidden, _, pooled, _ = self.pipe.encode_prompt(
                words,
                words,
                words,
                do_classifier_free_guidance=False,
                clip_skip=clip_skip or None,
                max_sequence_length=self.length,
            )
        return _Text(hidden, pooled)


def _chunks(sections: list[list[weighting.Fragment]], tokenizer: Any, pipe: Any) -> list[Chunk]:
    """Tokens with weights, as many to a chunk as fit; a section begins a new one."""
    most = tokenizer.model_max_length - 2
    chunks: list[Chunk] = []
    for section in sections:
        tokens: Chunk = []
        for text, weight in section:
            text = pipe.maybe_convert_prompt(text, tokenizer)  # a word of several vectors becomes their tokens
            ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
            tokens += [(token, weight) for token in ids]
        chunks += [tokens[i : i + most] for i in range(0, len(tokens), most)] or [[]]
    return chunks


def _weighted(hidden: Tensor, chunks: list[Chunk], empty: Tensor) -> Tensor:
    """z' = e + w (z - e) where w is not 1. hidden: [n, L, D]; empty: [1, L, D]."""
    weights = torch.ones(hidden.shape[:2], dtype=hidden.dtype, device=hidden.device)
    for i, chunk in enumerate(chunks):
        weights[i, 1 : len(chunk) + 1] = torch.tensor([weight for _, weight in chunk], dtype=hidden.dtype)
    weights = weights[..., None]
    return torch.where(weights == 1, hidden, empty + weights * (hidden - empty))


def _nothing(like: _Text) -> _Text:
    """SDXL's encoding of no negative prompt."""
    pooled = None if like.pooled is None else torch.zeros_like(like.pooled)
    return _Text(torch.zeros_like(like.hidden[:1]), pooled)


def _arguments(found: list[_Text]) -> dict[str, Tensor]:
    """Of a prompt and perhaps a negative one: [1, n L, D] each, of one length."""
    counts = [len(text.hidden) for text in found]
    together = math.lcm(*counts)
    together = together if together <= MOST else max(counts)
    given: dict[str, Tensor] = {}
    for prefix, text in zip(("", "negative_"), found, strict=False):
        said = text.hidden[torch.arange(together, device=text.hidden.device) % len(text.hidden)]
        given[f"{prefix}prompt_embeds"] = said.reshape(1, -1, said.shape[-1])
        if text.pooled is not None:
            given[f"{prefix}pooled_prompt_embeds"] = text.pooled
    return given


def _norm(encoder: Any) -> Any:
    """The encoder's last norm. diffusers 0.42 looks for it in `text_model` alone, which transformers 5 has no more."""
    return getattr(encoder, "text_model", encoder).final_layer_norm
