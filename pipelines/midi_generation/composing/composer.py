"""Runs writers against the network: many pieces side by side, each at its own place, with a draw of its own.

In each round every piece says what it needs read (a token, or a whole prompt), the network reads it all in one call,
and every piece chooses its next token from what its own logits and its grammar leave.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genkit.errors import Cancelled
from pipelines.midi_generation.composing.sampling import Sampling, choose
from pipelines.midi_generation.composing.writing import Choose, Given, Request, Writer, Written
from pipelines.midi_generation.networks.cached import Cached
from pipelines.midi_generation.tokens.vocabulary import Vocabulary

__all__ = ["Piece", "compose"]

CHUNK = 1024  # tokens of a prompt that are read at once


@dataclass
class Piece:
    """One piece on its way. total: bars that its writer will write."""

    writer: Writer
    sampling: Sampling
    generator: torch.Generator
    total: int
    written: list[Written] = field(default_factory=list)
    tokens: int = 0
    """Tokens chosen so far."""
    _queue: list[tuple[int, int, int]] = field(default_factory=list)  # token, place, bar: to be read
    _wanted: Choose | None = None
    _place: int = 0
    _recent: list[int] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether the writer has ended."""
        return self._wanted is None

    def advance(self, vocabulary: Vocabulary, answer: int | None) -> None:
        """Lets the writer go on until it wants a token, or has ended."""
        self._wanted = None
        try:
            while True:
                request: Request = self.writer.send(answer)
                answer = None
                if isinstance(request, Given):
                    self._queue.extend(self._placed(vocabulary, request))
                elif isinstance(request, Written):
                    self.written.append(request)
                else:
                    self._wanted = request
                    return
        except StopIteration:
            return

    def _placed(self, vocabulary: Vocabulary, given: Given) -> list[tuple[int, int, int]]:
        """With the place in the bar of each, as `Vocabulary.clock` has it."""
        if len(given.tokens) > 1:
            places = vocabulary.clock(np.array(given.tokens, np.int64), place=self._place)[0].tolist()
        else:  # a tenth of the time
            token = given.tokens[0]
            kind = vocabulary.kinds[token]
            places = [int(vocabulary.numbers[token]) if kind == "Position" else 0 if kind == "Bar" else self._place]
        self._place = places[-1]
        return list(zip(given.tokens, places, given.bars, strict=True))

    def take(self, count: int) -> list[tuple[int, int, int]]:
        """The next tokens to be read."""
        taken, self._queue = self._queue[:count], self._queue[count:]
        return taken

    @property
    def waiting(self) -> int:
        """Tokens that have yet to be read."""
        return len(self._queue)

    def choose(self, logits: np.ndarray, pitches: np.ndarray) -> int:
        """Chooses the token that the writer wants. logits: [V]; pitches: bool [V], which tokens are notes."""
        assert self._wanted is not None
        wanted = self._wanted
        token = choose(
            logits, wanted.allowed, self.sampling, self.generator, duration=wanted.duration, recent=self._recent
        )
        self.tokens += 1
        if pitches[token]:
            self._recent.append(token)
        return token


def compose(
    network: Any,
    vocabulary: Vocabulary,
    pieces: Sequence[Piece],
    *,
    memory: int,
    dtype: torch.dtype | None = None,
    heard: Callable[[Sequence[Piece]], None] = lambda pieces: None,
) -> None:
    """Runs all pieces to their end; what they wrote is then in `written`.

    memory: tokens that each token sees back; heard: called when a bar is done in any piece. If that raises Cancelled
    with `keep`, writing stops there and the bars that are done stay.
    """
    pitches = vocabulary.where("Pitch") | vocabulary.where("PitchDrum")
    for piece in pieces:
        piece.advance(vocabulary, None)
    active = [piece for piece in pieces if not piece.done]
    if not active:
        return
    cache = Cached(network, batch=len(active), memory=memory, dtype=dtype)
    try:
        while active:
            logits = _read(cache, active)
            bars = sum(len(piece.written) for piece in active)
            for piece, row in zip(active, logits, strict=True):
                if not piece.waiting:
                    piece.advance(vocabulary, piece.choose(row, pitches))
            if sum(len(piece.written) for piece in active) > bars:
                heard(pieces)
            if any(piece.done for piece in active):
                left = [i for i, piece in enumerate(active) if not piece.done]
                active = [active[i] for i in left]
                if active:
                    cache.select(left)
    except Cancelled as stop:
        if not stop.keep:
            raise


def _read(cache: Cached, pieces: Sequence[Piece]) -> np.ndarray:
    """Lets the network read what each piece has waiting, at most CHUNK tokens. Logits [B, V] after each row's last."""
    rows = [piece.take(CHUNK) for piece in pieces]
    lengths = [len(row) for row in rows]
    longest = max(lengths)
    table = np.zeros((3, len(rows), longest), np.int64)
    for i, row in enumerate(rows):
        table[:, i, : len(row)] = np.array(row, np.int64).T
    tokens, place, bar = (torch.from_numpy(part) for part in table)
    if longest == 1:
        logits: Tensor = cache.step(tokens[:, 0], place[:, 0], bar[:, 0])
    else:
        logits = cache.read(tokens, place, bar, lengths=torch.tensor(lengths))
    return logits.float().cpu().numpy()
