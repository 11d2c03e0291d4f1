"""A CLIP tokenizer learned from captions: transformers' own `CLIPTokenizer` with a vocabulary of one's own.

Byte-level pair encoding (Sennrich et al. 2016) of lower-cased words whose last byte is marked `</w>`. The vocabulary is
laid out as CLIP's was: the 256 bytes, the same at the end of a word, one token a merge, `<|startoftext|>` and
`<|endoftext|>`. So any text can be encoded, and what pads a text is its last token again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["SMALLEST", "build", "learn", "merges", "save"]

START, END = "<|startoftext|>", "<|endoftext|>"
SUFFIX = "</w>"
SMALLEST = 2 * 256 + 2
"""Tokens before the first merge."""


def learn(texts: Iterable[str], size: int, length: int) -> Any:
    """A tokenizer of at most `size` tokens, fewer where the texts have no more pairs; `length`: of a whole text."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    plain = build([], length).backend_tokenizer
    words = Tokenizer(BPE(end_of_word_suffix=SUFFIX))
    words.normalizer, words.pre_tokenizer = plain.normalizer, plain.pre_tokenizer
    trainer = BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[byte + SUFFIX for byte in _bytes()],  # numbered now: else ties between pairs fall by chance
        initial_alphabet=_bytes(),
        end_of_word_suffix=SUFFIX,
    )
    words.train_from_iterator(texts, trainer)
    return build(_merges(words)[: size - SMALLEST], length)


def build(pairs: Sequence[tuple[str, str]], length: int) -> Any:
    """The tokenizer with these merges, in order."""
    from transformers import CLIPTokenizer

    tokens = [*_bytes(), *(byte + SUFFIX for byte in _bytes()), *(a + b for a, b in pairs), START, END]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    given: Any = [tuple(pair) for pair in pairs]
    return CLIPTokenizer(vocab=vocabulary, merges=given, model_max_length=length)


def merges(tokenizer: Any) -> list[tuple[str, str]]:
    """What `build` makes the same tokenizer from."""
    return _merges(tokenizer.backend_tokenizer)


def _merges(tokenizer: Any) -> list[tuple[str, str]]:
    return [(a, b) for a, b in json.loads(tokenizer.to_str())["model"]["merges"]]


def _bytes() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def save(tokenizer: Any, folder: Path) -> None:
    """Writes it as old and new versions of transformers read it."""
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))  # vocab.json, merges.txt
