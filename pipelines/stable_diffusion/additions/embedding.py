"""Textual inversion: words that stand for learned vectors (Gal et al. 2022).

A word is written in a prompt like any other: the file's name without its suffix, as in A1111, or the token that the
file states (that alone, where the file has diffusers' usual name, `learned_embeds`). In front of the tokenizer each
becomes its vectors' own tokens, one for each vector.

Choices made here:
- Nothing is changed: while a request runs, the pipeline has a copy of its tokenizer with the tokens added, and a table
  of embeddings with rows added behind its own; afterwards the originals are back. A prompt without the word has the
  same numbers either way.
- CLIP of old configurations finds a prompt's end as the largest number in it, which added tokens are above: meanwhile
  it looks for the end token itself.

n: vectors of a word; D: width of a text encoder.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from genkit import weights
from genkit.errors import ModelError
from pipelines.stable_diffusion.additions.kinds import own, stamp

if TYPE_CHECKING:
    from pipelines.stable_diffusion.loading import Model

__all__ = ["Embeddings", "Word", "read"]

SUFFIXES = (".safetensors", ".pt", ".bin")
LONGEST = 75  # vectors: what one prompt of CLIP's holds
ENCODERS = {
    "sd1": {"text_encoder": "clip_l"},
    "sd2": {"text_encoder": "clip_h"},
    "sdxl": {"text_encoder": "clip_l", "text_encoder_2": "clip_g"},
    "sd3": {"text_encoder": "clip_l", "text_encoder_2": "clip_g"},
    "flux": {"text_encoder": "clip_l"},
}
"""The CLIP text encoders of a family, and what a file of several encoders calls them."""


@dataclass(frozen=True)
class Word:
    """What a file holds: names to write in a prompt, in small letters, and by text encoder their vectors [n, D]."""

    names: tuple[str, ...]
    vectors: Mapping[str, Tensor]

    @property
    def count(self) -> int:
        return max(len(vectors) for vectors in self.vectors.values())


def read(ref: str, model: Model) -> Word:
    """The word of a file, a folder or a hub repository, fitting the model. Raises ModelError."""
    path = _file_of(ref)
    tensors = weights.read(path)
    names = [] if path.stem == "learned_embeds" else [path.stem]
    encoders = ENCODERS[model.family]
    if any(name in tensors for name in ("clip_l", "clip_g")):
        found = {name: tensors[of] for name, of in encoders.items() if of in tensors}
    elif len(tensors) == 1 or "emb_params" in tensors:
        stated, vectors = next(iter(tensors.items()))
        vectors = tensors.get("emb_params", vectors)
        names += [stated] if len(tensors) == 1 and stated not in ("emb_params", "*") else []
        found = {"text_encoder": vectors}
    else:
        seen = weights.looks_like(tensors)
        raise ModelError(f"{path} is no textual inversion" + (f": it looks like {seen}" if seen else ""))
    noted = weights.metadata(path).get("token")  # by `genkit train`
    names += [noted] if noted else []
    shaped = {name: tensor[None] if tensor.ndim == 1 else tensor for name, tensor in found.items()}
    _check(path, shaped, model)
    return Word(tuple(dict.fromkeys(name.lower() for name in names or [path.stem])), shaped)


def _file_of(ref: str) -> Path:
    path = weights.locate(ref, patterns=[f"*{suffix}" for suffix in SUFFIXES])
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        files = [file for file in files if file.stem == "learned_embeds"] or files
        files = [file for file in files if file.suffix.lower() == ".safetensors"] or files
        if len(files) != 1:
            names = ", ".join(file.name for file in files[:5])
            held = f"{len(files)} files ({names}); name one" if files else f"no {' or '.join(SUFFIXES)} file"
            raise ModelError(f"embedding folder {path} holds {held}")
        path = files[0]
    return path


def _check(path: Path, found: Mapping[str, Tensor], model: Model) -> None:
    if any(t.ndim != 2 or not 0 < len(t) <= LONGEST or not t.is_floating_point() for t in found.values()):
        raise ModelError(f"{path} is no textual inversion: it needs 1 to {LONGEST} vectors, [n, width]")
    widths = {name: getattr(model.pipe, name).get_input_embeddings().weight.shape[1] for name in ENCODERS[model.family]}
    if {name: t.shape[1] for name, t in found.items()} != widths:
        theirs = " and ".join(str(t.shape[1]) for t in found.values()) or "no numbers that this model knows"
        ours = " and ".join(map(str, widths.values())) + " (clip_l and clip_g in one file)" * (len(widths) > 1)
        raise ModelError(
            f"embedding {path} is for another model: its vectors have {theirs}, those of {own(model)} {ours}"
        )


class Embeddings:
    """The words of one model, read once."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.words: dict[str, Word] = {}

    @contextlib.contextmanager
    def inserted(self, refs: Sequence[str]) -> Iterator[Mapping[str, str]]:
        """While it lasts the model's tokenizers and text encoders know the words.

        Gives what to put into a prompt for each name, see `spelled`. Raises ModelError.
        """
        if not refs:
            yield {}
            return
        words = [self._word(ref) for ref in dict.fromkeys(refs)]
        spelling: dict[str, str] = {}
        tokens: list[list[str]] = []
        for i, word in enumerate(words):
            tokens.append([f"<genkit-{i}-{k}>" for k in range(word.count)])
            for name in word.names:
                if name in spelling:
                    raise ModelError(f"two embeddings have the name {name[:80]!r}: rename one of the files")
                spelling[name] = " ".join(tokens[-1])
        with contextlib.ExitStack() as undo:
            for encoder in ENCODERS[self.model.family]:
                self._insert(encoder, words, tokens, undo)
            yield spelling

    def stamps(self, refs: Sequence[str]) -> tuple[str, ...]:
        """What the files are known by as they are now. Raises ModelError."""
        return tuple(stamp(_file_of(ref)) for ref in refs)

    def _word(self, ref: str) -> Word:
        key = stamp(_file_of(ref))
        if key not in self.words:
            self.words[key] = read(ref, self.model)
        return self.words[key]

    def _insert(self, encoder: str, words: list[Word], tokens: list[list[str]], undo: contextlib.ExitStack) -> None:
        from tokenizers import AddedToken

        pipe, name = self.model.pipe, encoder.replace("text_encoder", "tokenizer")
        module, tokenizer = getattr(pipe, encoder), getattr(pipe, name)
        longer = copy.deepcopy(tokenizer)
        longer.add_tokens([AddedToken(token, normalized=False) for of in tokens for token in of])
        table = module.get_input_embeddings()
        rows = [
            *table.weight.detach(),
            *table.weight.new_zeros(max(0, len(longer) - len(table.weight)), table.weight.shape[1]),
        ]
        for word, of in zip(words, tokens, strict=True):
            vectors = word.vectors[encoder]
            for k, token in enumerate(of):  # an encoder with fewer vectors than the other says the last one again
                rows[longer.convert_tokens_to_ids(token)] = vectors[min(k, len(vectors) - 1)].to(table.weight)
        # On the device though the encoder be offloaded: nothing would bring a layer there that came later.
        longer_table = nn.Embedding.from_pretrained(torch.stack(rows).to(self.model.runtime.device))
        module.set_input_embeddings(longer_table)
        undo.callback(module.set_input_embeddings, table)
        setattr(pipe, name, longer)
        undo.callback(setattr, pipe, name, tokenizer)
        for part in module.modules():
            if getattr(part, "eos_token_id", None) == 2:
                part.eos_token_id = tokenizer.eos_token_id
                undo.callback(setattr, part, "eos_token_id", 2)


def spelled(text: str, spelling: Mapping[str, str]) -> str:
    """A prompt with each name, in capitals or not, replaced by its tokens."""
    if not spelling:
        return text

    def sign(name: str) -> str:
        plain = "".join(rf"\\?{re.escape(c)}" if c in "()[]" else re.escape(c) for c in name)  # may be escaped
        return (r"(?<!\w)" if name[0].isalnum() else "") + plain + (r"(?!\w)" if name[-1].isalnum() else "")

    longest_first = sorted(spelling, key=len, reverse=True)
    pattern = re.compile("|".join(f"({sign(name)})" for name in longest_first), re.IGNORECASE)
    return pattern.sub(
        lambda match: spelling[longest_first[match.lastindex - 1]] if match.lastindex else match[0], text
    )
