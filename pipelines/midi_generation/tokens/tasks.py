"""The lines that teach, and ask for, infilling, accompaniment and variation: tokens, and which of them are written.

    continue    BOS Key bars... EOS
    infill      BOS Key Infill bars-after... Write bars-before... the bars between EOS
    accompany   BOS Key Accompany (Bar TimeSig given notes Write other notes)... EOS
    pitches     BOS Key Pitches bars-before... (Bar TimeSig notes with Mask for Pitch  Write the bar's notes)... EOS
    rhythms     BOS Key Rhythms bars-before... (Bar TimeSig programs and pitches alone Write the bar's notes)... EOS

What is given in a bar stands before what is written there, so a memory of a few hundred tokens has all it takes however
long the piece. What follows an infill stands first: the bars between then simply carry on what is before them.
The loss is taken on what is written, `weight` 1, and on bars of plain music before it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipelines.midi_generation.tokens.bars import Bar, Event, body
from pipelines.midi_generation.tokens.vocabulary import Vocabulary

__all__ = ["Line", "accompany", "infill", "masked", "plain", "start", "vary"]


@dataclass
class Line:
    """Tokens with the bar each belongs to and whether it is written (1) or given (0)."""

    tokens: list[int] = field(default_factory=list)
    bar: list[int] = field(default_factory=list)
    weight: list[int] = field(default_factory=list)

    def add(self, tokens: Iterable[int], bar: int, weight: int) -> None:
        """Appends tokens that share a bar and a weight."""
        tokens = list(tokens)
        self.tokens += tokens
        self.bar += [bar] * len(tokens)
        self.weight += [weight] * len(tokens)

    def arrays(self, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Tokens as the network reads them (merged, where the vocabulary has merges), place in the bar, bar and weight,
        int64 [T] each."""
        base = np.array(self.tokens, np.int64)
        place, _ = vocabulary.clock(base)
        tokens, last = vocabulary.merge(base)  # no merge crosses a Bar or Write, and so none a change of bar or weight
        return tokens, place[last], np.array(self.bar, np.int64)[last], np.array(self.weight, np.int64)[last]


def start(vocabulary: Vocabulary, key: int | None, task: str | None = None) -> Line:
    """BOS, the key if it is known, and the task."""
    line = Line()
    line.add([vocabulary.special("BOS")], 0, 0)
    if key is not None:
        line.add([vocabulary.key(key)], 0, 1)
    if task is not None:
        line.add([vocabulary.special(task)], 0, 0)
    return line


def plain(line: Line, bars: Sequence[Bar], first: int = 1, weight: int = 1) -> Line:
    """Adds bars as they are. first: the number of the first of them, from 1."""
    for number, bar in enumerate(bars, first):
        line.add(bar.tokens(), number, weight)
    return line


def infill(
    vocabulary: Vocabulary, line: Line, before: Sequence[Bar], after: Sequence[Bar], first: int, gap: int
) -> Line:
    """Adds what surrounds a gap of so many bars; the line then waits for the bars between. first: number of before[0],
    or of the gap where there is nothing before it."""
    plain(line, after, first + len(before) + gap, 0)
    line.add([vocabulary.special("Write")], first, 0)
    return plain(line, before, first)


def accompany(
    vocabulary: Vocabulary, line: Line, bar: Bar, number: int, given: Collection[int], *, written: bool = True
) -> Line:
    """Adds a bar: the notes of the `given` Program tokens (and the tempo), then, if `written`, the others."""
    mine = [event for event in bar.events if event.program in given or event.program == -1]
    line.add(bar.head[:1], number, 1)  # the Bar token ends what was written before it
    line.add([*bar.head[1:], *body(mine), vocabulary.special("Write")], number, 0)
    if written:
        line.add(body(event for event in bar.events if event not in set(mine)), number, 1)
    return line


def masked(vocabulary: Vocabulary, bar: Bar, task: str) -> list[int]:
    """A bar without its pitches (task "Pitches"), or without positions and durations ("Rhythms")."""
    if task == "Pitches":
        mask = vocabulary.special("Mask")
        hidden = [e if e.program == -1 else Event(e.position, e.program, (mask, *e.tokens[1:])) for e in bar.events]
        return [*bar.head, *body(hidden)]
    line, program = list(bar.head), -1
    for event in bar.events:
        if vocabulary.kinds[event.tokens[0]] == "Tempo":
            continue
        if event.program not in (-1, program):
            line.append(event.program)
            program = event.program
        line.append(event.tokens[0])
    return line


def vary(vocabulary: Vocabulary, line: Line, bar: Bar, number: int, task: str, *, written: bool = True) -> Line:
    """Adds a bar whose pitches or rhythm are masked, then, if `written`, the bar's notes."""
    hidden = masked(vocabulary, bar, task)
    line.add(hidden[:1], number, 1)
    line.add([*hidden[1:], vocabulary.special("Write")], number, 0)
    if written:
        line.add(body(bar.events), number, 1)
    return line
