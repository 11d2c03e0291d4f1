"""A bar taken apart into its events, and put together again.

    Bar TimeSig_3/4 | Position_0 Tempo_92 | Position_0 Program_0 Pitch_60 Duration_1.0.12 | ...
    -- head --------- -- Event (tempo) ---- -- Event (note) ------------------------------

Only for REMI, whose lines have bars.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.midi_generation.tokens.vocabulary import Vocabulary

__all__ = ["Bar", "Event"]


@dataclass(frozen=True, order=True)
class Event:
    """A note, or a change of tempo."""

    position: int
    """The Position token."""
    program: int
    """The Program token; -1 for a tempo, and where programs are not told apart."""
    tokens: tuple[int, ...]
    """(Pitch, Velocity?, Duration) or (Tempo,)."""


@dataclass(frozen=True)
class Bar:
    """A bar: its head (Bar and TimeSig tokens) and its events in order."""

    head: tuple[int, ...]
    events: tuple[Event, ...]

    @classmethod
    def parse(cls, vocabulary: Vocabulary, tokens: Sequence[int] | np.ndarray) -> Bar:
        """The tokens of one bar, as `Vocabulary.encode` writes them."""
        kinds = vocabulary.kinds
        head: list[int] = []
        events: list[Event] = []
        position, program = -1, -1
        for token in map(int, tokens):
            kind = kinds[token]
            if kind in ("Bar", "TimeSig"):
                head.append(token)
            elif kind == "Position":
                position = token
            elif kind == "Program":
                program = token
            elif kind == "Tempo":
                events.append(Event(position, -1, (token,)))
            elif kind in ("Pitch", "PitchDrum", "Mask"):
                events.append(Event(position, program, (token,)))
            elif kind in ("Velocity", "Duration") and events:
                last = events[-1]
                events[-1] = Event(last.position, last.program, (*last.tokens, token))
        return cls(tuple(head), tuple(events))

    def tokens(self) -> list[int]:
        """The line again: what `parse` was given."""
        return [*self.head, *body(self.events)]


def body(events: Iterable[Event]) -> list[int]:
    """The line of some events, in order: position and program named where they change."""
    line: list[int] = []
    position = program = -1
    for event in events:
        if event.position != position:
            line.append(event.position)
            position = event.position
        if event.program not in (-1, program):
            line.append(event.program)
            program = event.program
        line.extend(event.tokens)
    return line
