"""The task `vary`: bars whose pitches or rhythm are written anew, note by note, the other kept."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Generator, Sequence

import numpy as np

from pipelines.midi_generation.composing.grammar import BarWriter, Grammar
from pipelines.midi_generation.composing.writing import (
    AFTER,
    BEFORE,
    Choose,
    Given,
    Request,
    Writer,
    Written,
    ask,
    pick,
    read,
    take,
)
from pipelines.midi_generation.tokens import tasks
from pipelines.midi_generation.tokens.bars import Bar, Event

__all__ = ["vary"]


def vary(
    grammar: Grammar,
    before: Sequence[Bar],
    bars: Sequence[Bar],
    after: Sequence[Bar],
    *,
    first: int,
    task: str,
    programs: Collection[int],
    key: int | None,
) -> Writer:
    """Writes some bars with new pitches (task "Pitches") or a new rhythm ("Rhythms") for the parts `programs`; other
    parts stay as they are. first: number of bars[0]. What is Written are the notes of those parts, in their order."""
    v = grammar.vocabulary
    before = before[-BEFORE:]
    yield read(tasks.plain(tasks.start(v, key, task), before, first - len(before)))
    spans = _Spans(grammar, before, bars, after)
    for number, bar in enumerate(bars, first):
        yield read(tasks.vary(v, tasks.Line(), bar, number, task, written=False))
        if task == "Pitches":
            events = yield from _new_pitches(spans, bar, number, programs)
        else:
            events = yield from _new_rhythm(grammar, bar, number, programs)
        yield Written(number, grammar.signature(bar.head), events)


class _Spans:
    """When which pitches sound, so that a new one never meets itself: its note could not keep its length then.

    Times in 1 / (4 positions) of a quarter, from the first bar of `before` on.
    """

    def __init__(self, grammar: Grammar, before: Sequence[Bar], bars: Sequence[Bar], after: Sequence[Bar]) -> None:
        self.grammar, self.start = grammar, 0
        self._spans: dict[int, list[tuple[int, int, int]]] = defaultdict(list)  # program -> begin, end, pitch
        for bar in before:
            self.pass_by(bar, bar.events)
        end = self.start + sum(self._length(bar) for bar in bars)
        self.start, now = end, self.start
        for bar in after[:AFTER]:
            self.pass_by(bar, bar.events)
        self.start = now

    def _unit(self, bar: Bar) -> int:
        """Of a place in the bar."""
        signature = self.grammar.signature(bar.head)
        return 16 // int(self.grammar.vocabulary.values[signature].split("/")[1]) if signature is not None else 4

    def _length(self, bar: Bar) -> int:
        return self.grammar.places(self.grammar.signature(bar.head)) * self._unit(bar)

    def _span(self, bar: Bar, event: Event) -> tuple[int, int]:
        begin = self.start + int(self.grammar.vocabulary.numbers[event.position]) * self._unit(bar)
        return begin, begin + int(self.grammar.lengths[event.tokens[-1]]) * self._unit(bar)

    def pass_by(self, bar: Bar, events: Sequence[Event]) -> None:
        """Notes the events of a bar, and goes on behind it."""
        for event in events:
            self._spans[event.program].append((*self._span(bar, event), event.tokens[0]))
        self.start += self._length(bar)

    def sounding(self, bar: Bar, event: Event, written: Sequence[Event]) -> list[int]:
        """The pitches that sound at any time during a note, of its own program; written: what the bar has so far."""
        begin, end = self._span(bar, event)
        here = [(*self._span(bar, other), other.tokens[0]) for other in written if other.program == event.program]
        return [pitch for start, stop, pitch in (*self._spans[event.program], *here) if start < end and begin < stop]


def _new_pitches(
    spans: _Spans, bar: Bar, number: int, programs: Collection[int]
) -> Generator[Request, int | None, tuple[Event, ...]]:
    """The bar's positions and durations with other pitches for some programs; returns those notes."""
    written: list[Event] = []
    position = program = -1
    for i, event in enumerate(bar.events):
        lead = [event.position] if event.position != position else []
        position = event.position
        if event.program not in (-1, program):
            lead.append(event.program)
            program = event.program
        if lead:
            yield Given(lead, [number] * len(lead))
        if event.program in programs:
            free = _free_pitches(spans, bar, i, written)
            pitch = (yield from ask(Choose(free))) if free.any() else event.tokens[0]
            event = Event(position, program, (pitch, *event.tokens[1:]))
            written.append(event)
        yield Given(event.tokens, [number] * len(event.tokens))
    spans.pass_by(bar, written)
    return tuple(written)


def _free_pitches(spans: _Spans, bar: Bar, place: int, written: Sequence[Event]) -> np.ndarray:
    """Pitches for a bar's event: none that sounds already, above that of the last of its chord that is as long, and low
    enough to leave one for each that follows."""

    def chord(event: Event) -> tuple[int, int, int]:
        return event.position, event.program, event.tokens[-1]

    event = bar.events[place]
    free = spans.grammar.pitches(event.program).copy()
    free[spans.sounding(bar, event, written)] = False
    if written and chord(written[-1]) == chord(event):
        free[: written[-1].tokens[0]] = False
    following = sum(1 for _ in itertools.takewhile(lambda e: chord(e) == chord(event), bar.events[place + 1 :]))
    left = np.flatnonzero(free)
    free[left[max(1, len(left) - following) :]] = False
    return free


def _new_rhythm(
    grammar: Grammar, bar: Bar, number: int, programs: Collection[int]
) -> Generator[Request, int | None, tuple[Event, ...]]:
    """The bar's pitches, in order, at other positions and with other durations, for some programs; returns those
    notes. Parts that stay are left out of the line: the network hears the others against the masked bar."""
    notes = [event for event in bar.events if event.program in programs]
    writer = BarWriter(grammar, grammar.signature(bar.head), programs)
    opening = next(iter(bar.events), None)
    if opening is not None and grammar.of["Tempo"][opening.tokens[0]]:
        for token in (opening.position, *opening.tokens):
            yield take(writer, token, number)
    for i in range(len(notes)):
        yield from _moved(writer, notes[i:], number)
    return tuple(event for event in writer.events if event.program != -1)


def _breaks(grammar: Grammar, notes: Sequence[Event], program: int = -1, played: Collection[int] = ()) -> int:
    """How many positions notes need at least behind this one: one for each that cannot sound with those before it, as
    another's turn is over or its pitch is played. program, played: who plays here, and what it has played."""
    breaks, taken = 0, set(played)
    for note in notes:
        if grammar.order(note.program) < grammar.order(program) or (
            note.program == program and note.tokens[0] in taken
        ):
            breaks, taken = breaks + 1, set()
        elif note.program != program:
            taken = set()
        taken.add(note.tokens[0])
        program = note.program
    return breaks


def _moved(writer: BarWriter, notes: Sequence[Event], number: int) -> Generator[Request, int | None, None]:
    """The first of some notes: at this position or at a later one, as the network likes, with a duration that it likes,
    so that those behind it find their place too."""
    event, grammar = notes[0], writer.grammar
    pitch, numbers = event.tokens[0], grammar.vocabulary.numbers
    left = writer.positions()
    options = left & (numbers < writer.length - _breaks(grammar, notes))
    named = event.program if event.program != writer.program else pitch  # the token it begins with
    here = writer.allowed()[named] and _breaks(grammar, notes, writer.program, writer.played) <= left.sum()
    if not options.any():
        options = left.copy()
    if here or not options.any():
        options[named] = True
    token = yield from ask(Choose(options))
    for chosen in dict.fromkeys([token, named, pitch]):
        yield take(writer, chosen, number)
    while not writer.note_done:
        token = yield from pick(writer)
        yield take(writer, token, number)
