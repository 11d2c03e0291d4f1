"""Pieces of several recordings through their networks together, each handed back in its turn.

A device works best on many rows at once, and a recording hands over few. So pieces are taken from the queue ahead of
the one that is asked for, as many as there is room for, and those of the same network and length go through together:
the next pieces of a long recording, or the clips of a batch. A piece does not see its neighbours in a batch, so what
comes out does not depend on them.

C: channels; T: samples.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.audio_super_resolution.chunks import Part
from pipelines.audio_super_resolution.loading import Network

__all__ = ["Ahead", "Queued"]


@dataclass
class Queued:
    """A piece in the queue. item: of which recording; made: [C, T], what the network gave, once it did."""

    item: int
    network: Network
    part: Part
    made: Tensor | None = None

    @property
    def size(self) -> int:
        return self.part.samples.numel()


class Ahead:
    """queue: the pieces of all recordings, one recording after the other; through: a network and rows [B, T] -> [B, T];
    room: samples, all rows together, that are taken ahead."""

    def __init__(self, queue: Iterable[Queued], through: Callable[[Network, Tensor], Tensor], room: int) -> None:
        self._queue = iter(queue)
        self._through = through
        self._room = room
        self._taken: deque[Queued] = deque()

    def of(self, item: int) -> Iterator[tuple[Part, Tensor]]:
        """The pieces of a recording in order, with what was made of them; recordings are asked for in order too."""
        while self._fill() and self._taken[0].item == item:
            head = self._taken[0]
            if head.made is None:
                self._make(head)
            assert head.made is not None
            self._taken.popleft()
            yield head.part, head.made

    def _fill(self) -> bool:
        """Takes pieces until there is no more room; whether there are any."""
        held = sum(piece.size for piece in self._taken)
        while not self._taken or held < self._room:
            piece = next(self._queue, None)
            if piece is None:
                break
            self._taken.append(piece)
            held += piece.size
        return bool(self._taken)

    def _make(self, head: Queued) -> None:
        length = head.part.samples.shape[1]
        alike = [
            piece
            for piece in self._taken
            if piece.made is None and piece.network is head.network and piece.part.samples.shape[1] == length
        ]
        made = self._through(head.network, torch.cat([piece.part.samples for piece in alike]))
        for piece, own in zip(alike, made.split([len(piece.part.samples) for piece in alike]), strict=True):
            piece.made = own
