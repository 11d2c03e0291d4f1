"""Byte-pair encoding (Fradet et al. 2023): tokens that stand for several, learned by MidiTok on training pieces.

What is merged lies within one moment of the music: a Position or TimeShift may begin a merged token but never follows
in it, and bars, signatures and genkit's own tokens (BOS, keys, tasks, Write, Mask) always stay single. So the place of
a merged token in the bar is one place, bars can still be counted, and the parts of a task's line keep their edges.
Base tokens keep their numbers; merged ones come after them.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator

import miditok
import numpy as np
from miditok import TokSequence
from miditok.constants import CHR_ID_START

from genkit.errors import InputError

__all__ = ["Merges", "learn"]

BEGIN = ("Position", "TimeShift", "Rest")
REMEMBERED = 200_000  # words


class Merges:
    """What a trained tokeniser merges. single: bool [V], base tokens that are never merged; begins: that only begin."""

    def __init__(self, tokenizer: miditok.MusicTokenizer, single: np.ndarray, begins: np.ndarray) -> None:
        self.tokenizer, self.base = tokenizer, len(single)
        self._single, self._begins = single, begins
        self.expansions: list[tuple[int, ...]] = [self._expansion(i) for i in range(len(tokenizer))]
        """Of every token, the base tokens that it stands for."""
        if any(self.expansions[i] != (i,) for i in range(self.base)):
            raise ValueError("the merges have numbered the base tokens anew")
        self.lengths = np.array([len(parts) for parts in self.expansions], np.int64)
        """Base tokens in each token. [V]"""
        self._known: dict[tuple[int, ...], list[int]] = {}

    def _expansion(self, token: int) -> tuple[int, ...]:
        sequence = TokSequence(ids=[token], are_ids_encoded=True)
        self.tokenizer.decode_token_ids(sequence)
        return tuple(sequence.ids)

    def apply(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Base tokens -> tokens with merges, and of each the place of its last base token in the line. int64."""
        words = split(tokens, self._single, self._begins)
        new = [word for word in {*words} if word not in self._known]
        if new:
            if len(self._known) > REMEMBERED:
                self._known.clear()
                new = list({*words})
            sequences = [TokSequence(ids=list(word)) for word in new]
            self.tokenizer.encode_token_ids(sequences)
            self._known.update(zip(new, (sequence.ids for sequence in sequences), strict=True))
        merged = np.array([token for word in words for token in self._known[word]], np.int64)
        return merged, np.cumsum(self.lengths[merged]) - 1 if len(merged) else merged

    def expand(self, tokens: np.ndarray) -> np.ndarray:
        """The base tokens of a line."""
        return np.array([base for token in tokens.tolist() for base in self.expansions[token]], np.int64)


def split(tokens: np.ndarray, single: np.ndarray, begins: np.ndarray) -> list[tuple[int, ...]]:
    """A line of base tokens in words, within which tokens may be merged."""
    if not len(tokens):
        return []
    alone = single[tokens]
    cuts = np.flatnonzero(alone[1:] | alone[:-1] | begins[tokens[1:]]) + 1
    return [tuple(word.tolist()) for word in np.split(tokens, cuts)]


def learn(
    tokenizer: miditok.MusicTokenizer, lines: Iterable[np.ndarray], size: int, single: np.ndarray, begins: np.ndarray
) -> None:
    """Trains a tokeniser, in place, on lines of base tokens, to `size` tokens at most (fewer where the lines are few).

    Raises InputError where `size` leaves no room for merges, or there is nothing to merge.
    """
    if size <= len(single):
        raise InputError(f"bpe {size} leaves nothing to merge: {len(single)} tokens are there before; give more, or 0")
    tokenizer.config.encode_ids_split = "no"  # the words are ours
    words = [_letters(word) for line in lines for word in split(line, single, begins)]
    with _silence():
        tokenizer.train(vocab_size=size, model="BPE", iterator=words)
    if len(tokenizer) <= len(single):
        raise InputError("the pieces hold nothing to merge; give more of them, or set bpe to 0")


def _letters(word: tuple[int, ...]) -> str:
    """A word as MidiTok gives it to its trainer: a letter for each token."""
    return "".join(chr(CHR_ID_START + token) for token in word)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Nothing on standard output: the trainer, which is not Python, ends its lines there and has no switch for it."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a device, not a path
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
