"""How a piece is written, task by task: plain generators that are given what stands and ask for what comes next.

A writer yields `Given` (tokens that the network reads), `Choose` (it is sent the token chosen) and `Written` (a bar is
done). It knows nothing of networks and batches: `composer.py` runs many of them side by side. Its lines are those that
tasks.py makes for training.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.midi_generation import tasks
from pipelines.midi_generation.bars import Bar, Event, body
from pipelines.midi_generation.grammar import BarWriter, Grammar

__all__ = ["Choose", "Given", "Request", "Writer", "Written", "accompany", "carry_on", "infill", "vary"]

BEFORE, AFTER = 16, 8  # bars of context that the tasks were trained with


@dataclass(frozen=True)
class Given:
    """Tokens to read, and the bar of each."""

    tokens: Sequence[int]
    bars: Sequence[int]


@dataclass(frozen=True)
class Choose:
    """A token is wanted. allowed: bool [V]; duration: it will be one."""

    allowed: np.ndarray
    duration: bool = False


@dataclass(frozen=True)
class Written:
    """A bar is done. number: from 1."""

    number: int
    signature: int | None
    """Its TimeSig token."""
    events: tuple[Event, ...]


Request = Given | Choose | Written
Writer = Generator[Request, int | None, None]


def _ask(choice: Choose) -> Generator[Request, int | None, int]:
    token = yield choice
    assert token is not None
    return token


def _read(line: tasks.Line) -> Given:
    return Given(line.tokens, line.bar)


def carry_on(
    grammar: Grammar,
    before: Sequence[Bar],
    *,
    first: int,
    bars: int,
    programs: Collection[int],
    key: int | None,
    signature: int | None,
    tempo: int | None = None,
    free_tempo: bool = False,
) -> Writer:
    """Writes bars behind `before` (which may be empty: a piece from nothing).

    first: number of before[0]; key, signature: None leaves them to the network; tempo: a Tempo token that opens the
    first new bar; free_tempo: the network may write one there.
    """
    line = tasks.start(grammar.vocabulary, key)
    if key is None:
        yield _read(line)
        token = yield from _ask(Choose(grammar.of["Key"]))
        line = tasks.Line([token], [0], [0])
    yield _read(tasks.plain(line, before, first))
    for number in range(first + len(before), first + len(before) + bars):
        opening = number == first
        signature, events = yield from _bar(
            grammar, number, signature, programs, tempo if opening else None, free_tempo and opening
        )
        yield Written(number, signature, events)


def _bar(
    grammar: Grammar, number: int, signature: int | None, programs: Collection[int], tempo: int | None, free: bool
) -> Generator[Request, int | None, tuple[int | None, tuple[Event, ...]]]:
    """A bar of plain music; returns its TimeSig token and its events."""
    yield Given([grammar.bar], [number])
    if grammar.of["TimeSig"].any():
        if signature is None:
            signature = yield from _ask(Choose(grammar.of["TimeSig"]))
        yield Given([signature], [number])
    bar = BarWriter(grammar, signature, programs, tempo=free)
    if tempo is not None:
        opening = [grammar.vocabulary.ids["Position_0"], tempo]
        yield Given(opening, [number, number])
        for token in opening:
            bar.add(token)
    yield from _fill(bar, number)
    return signature, tuple(bar.events)


def _fill(bar: BarWriter, number: int) -> Generator[Request, int | None, None]:
    """Chooses tokens until the bar is closed; the Bar token that closes it is left for the next one to read."""
    durations = bar.grammar.of["Duration"]
    while True:
        allowed = bar.allowed()
        token = yield from _ask(Choose(allowed, duration=bool(durations[allowed.argmax()])))
        bar.add(token)
        if bar.closed:
            return
        yield Given([token], [number])


def infill(
    grammar: Grammar,
    before: Sequence[Bar],
    after: Sequence[Bar],
    signatures: Sequence[int | None],
    *,
    first: int,
    programs: Collection[int],
    key: int | None,
) -> Writer:
    """Writes the bars between two passages. signatures: of each bar between; first: number of the first of those."""
    before, after = before[-BEFORE:], after[:AFTER]
    line = tasks.start(grammar.vocabulary, key, "Infill")
    yield _read(tasks.infill(grammar.vocabulary, line, before, after, first - len(before), len(signatures)))
    for number, signature in enumerate(signatures, first):
        _, events = yield from _bar(grammar, number, signature, programs, None, False)
        yield Written(number, signature, events)


def accompany(
    grammar: Grammar,
    before: Sequence[Bar],
    bars: Sequence[Bar],
    *,
    first: int,
    given: Collection[int],
    programs: Collection[int],
    key: int | None,
) -> Writer:
    """Writes the parts `programs` to the parts `given` of some bars. first: number of bars[0]; before: bars with all
    their parts, to go on from."""
    v = grammar.vocabulary
    before = before[-BEFORE:]
    line = tasks.start(v, key, "Accompany")
    for number, bar in enumerate(before, first - len(before)):
        tasks.accompany(v, line, bar, number, given)
    yield _read(line)
    for number, bar in enumerate(bars, first):
        yield _read(tasks.accompany(v, tasks.Line(), bar, number, given, written=False))
        signature = _signature(grammar, bar)
        writer = BarWriter(grammar, signature, programs)
        yield from _fill(writer, number)
        yield Written(number, signature, tuple(writer.events))


def vary(
    grammar: Grammar,
    before: Sequence[Bar],
    bars: Sequence[Bar],
    *,
    first: int,
    task: str,
    programs: Collection[int],
    key: int | None,
) -> Writer:
    """Writes some bars with new pitches (task "Pitches") or a new rhythm ("Rhythms") for the parts `programs`; other
    parts stay as they are. first: number of bars[0]."""
    v = grammar.vocabulary
    before = before[-BEFORE:]
    yield _read(tasks.plain(tasks.start(v, key, task), before, first - len(before)))
    for number, bar in enumerate(bars, first):
        yield _read(tasks.vary(v, tasks.Line(), bar, number, task, written=False))
        write = _new_pitches if task == "Pitches" else _new_rhythm
        events = yield from write(grammar, bar, number, set(programs))
        yield Written(number, _signature(grammar, bar), tuple(e for e in events if e.program in programs))


def _signature(grammar: Grammar, bar: Bar) -> int | None:
    return next((token for token in bar.head if grammar.of["TimeSig"][token]), None)


def _new_pitches(
    grammar: Grammar, bar: Bar, number: int, programs: set[int]
) -> Generator[Request, int | None, tuple[Event, ...]]:
    """The bar's positions and durations with other pitches."""
    done: list[Event] = []
    taken: dict[tuple[int, int], set[int]] = {}
    for event in bar.events:
        at = (event.position, event.program)
        lead, pitch = body([*done[-1:], event]), event.tokens[0]
        lead = lead[len(body(done[-1:])) : -len(event.tokens)]  # position and program, where they change
        if lead:
            yield Given(lead, [number] * len(lead))
        if event.program in programs and not grammar.of["Tempo"][pitch]:
            kind = "PitchDrum" if grammar.drums(event.program) else "Pitch"
            free = grammar.of[kind].copy()
            free[list(taken.get(at, set()))] = False
            pitch = yield from _ask(Choose(free))
        taken.setdefault(at, set()).add(pitch)
        done.append(Event(event.position, event.program, (pitch, *event.tokens[1:])))
        yield Given(done[-1].tokens, [number] * len(event.tokens))
    return tuple(done)


def _new_rhythm(
    grammar: Grammar, bar: Bar, number: int, programs: set[int]
) -> Generator[Request, int | None, tuple[Event, ...]]:
    """The bar's pitches, in order, at other positions and with other durations. Parts that stay keep both, and are
    left out of the line: the network hears the others against the masked bar."""
    notes = [e for e in bar.events if not grammar.of["Tempo"][e.tokens[0]]]
    kept = [e for e in notes if e.program not in programs]
    writer = BarWriter(grammar, _signature(grammar, bar), sorted({e.program for e in notes if e.program != -1}))
    for event in (e for e in notes if e.program in programs):
        yield from _moved(writer, event, number)
    return tuple(sorted([*kept, *writer.events], key=lambda e: int(grammar.vocabulary.numbers[e.position])))


def _moved(writer: BarWriter, event: Event, number: int) -> Generator[Request, int | None, None]:
    """One note: at this position or at a later one, as the network likes, with a duration that it likes."""
    pitch, of, numbers = event.tokens[0], writer.grammar.of, writer.grammar.vocabulary.numbers
    named = event.program if event.program not in (-1, writer.program) else pitch  # the token it begins with
    options = of["Position"] & (numbers > writer.place) & (numbers < writer.length)
    if not options.any() or (writer.place >= 0 and writer.allowed()[named]):
        options[named] = True  # where the bar has no position left, it sounds with the one before
    token = yield from _ask(Choose(options))
    for chosen in dict.fromkeys([token, named, pitch]):
        yield Given([chosen], [number])
        writer.add(chosen)
    while not writer.note_done:
        allowed = writer.allowed()
        token = yield from _ask(Choose(allowed, duration=bool(of["Duration"][allowed.argmax()])))
        yield Given([token], [number])
        writer.add(token)
