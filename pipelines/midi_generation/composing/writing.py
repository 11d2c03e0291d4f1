"""How a piece is written, task by task: plain generators that are given what stands and ask for what comes next.

A writer yields `Given` (tokens that the network reads), `Choose` (it is sent the token chosen) and `Written` (a bar is
done). It knows nothing of networks and batches: `composer.py` runs many of them side by side. Its lines are those that
tasks.py makes for training. `vary` is in varying.py.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.midi_generation.composing.grammar import BarWriter, Grammar
from pipelines.midi_generation.tokens import tasks
from pipelines.midi_generation.tokens.bars import Bar, Event

__all__ = [
    "Choose",
    "Given",
    "Request",
    "Writer",
    "Written",
    "accompany",
    "ask",
    "carry_on",
    "infill",
    "pick",
    "read",
    "take",
    "unfinished",
]

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
    """What was written: without what stood there and stays. Of a bar that is varied, one for each event of the parts
    that change, in their order."""


Request = Given | Choose | Written
Writer = Generator[Request, int | None, None]


def ask(choice: Choose) -> Generator[Request, int | None, int]:
    """The token chosen."""
    token = yield choice
    assert token is not None
    return token


def read(line: tasks.Line) -> Given:
    """A line to be read."""
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
) -> Writer:
    """Writes bars behind `before` (which may be empty: a piece from nothing), the last of which is finished first
    where its notes end before it does.

    first: number of before[0]; key, signature: None leaves them to the network; tempo: the Tempo token that opens a
    piece from nothing, None likewise.
    """
    line = tasks.start(grammar.vocabulary, key)
    if key is None:
        yield read(line)
        token = yield from ask(Choose(grammar.of["Key"]))
        line = tasks.Line([token], [0], [0])
    yield read(tasks.plain(line, before, first))
    after = first + len(before)
    if before and unfinished(grammar, before[-1]):
        own = grammar.signature(before[-1].head)
        writer = BarWriter(grammar, own, programs).begun(before[-1].events)
        yield from _fill(writer, after - 1)
        yield Written(after - 1, own, tuple(writer.events))
    for number in range(after, after + bars):
        opening = _tempo(grammar, tempo) if number == 1 else None
        signature, events = yield from _bar(grammar, number, signature, programs, opening)
        yield Written(number, signature, events)


def unfinished(grammar: Grammar, bar: Bar) -> bool:
    """Whether the notes of a bar end before it does."""
    numbers, lengths = grammar.vocabulary.numbers, grammar.lengths
    ends = (int(numbers[event.position] + lengths[event.tokens[-1]]) for event in bar.events)
    return max(ends, default=0) < grammar.places(grammar.signature(bar.head))


def _tempo(grammar: Grammar, token: int | None) -> np.ndarray | None:
    """The Tempo tokens that a piece may open with; None where the vocabulary has none."""
    allowed = grammar.of["Tempo"]
    if token is not None:
        allowed = np.zeros_like(allowed)
        allowed[token] = True
    return allowed if allowed.any() else None


def _bar(
    grammar: Grammar,
    number: int,
    signature: int | None,
    programs: Collection[int],
    tempo: np.ndarray | None = None,
) -> Generator[Request, int | None, tuple[int | None, tuple[Event, ...]]]:
    """A bar of plain music; returns its TimeSig token and its events. tempo: bool [V], of which one opens it."""
    yield Given([grammar.bar], [number])
    if grammar.of["TimeSig"].any():
        if signature is None:
            signature = yield from ask(Choose(grammar.of["TimeSig"]))
        yield Given([signature], [number])
    writer = BarWriter(grammar, signature, programs)
    if tempo is not None:
        yield take(writer, grammar.vocabulary.ids["Position_0"], number)
        token = yield from ask(Choose(tempo))
        yield take(writer, token, number)
    yield from _fill(writer, number)
    return signature, tuple(writer.events)


def take(writer: BarWriter, token: int, number: int) -> Given:
    """A token added to a bar, to be read."""
    writer.add(token)
    return Given([token], [number])


def pick(writer: BarWriter) -> Generator[Request, int | None, int]:
    """The token chosen among those that a bar allows."""
    allowed = writer.allowed()
    return (yield from ask(Choose(allowed, duration=bool(writer.grammar.of["Duration"][allowed.argmax()]))))


def _fill(writer: BarWriter, number: int) -> Generator[Request, int | None, None]:
    """Chooses tokens until the bar is closed; the Bar token that closes it is left for the next one to read."""
    while True:
        token = yield from pick(writer)
        if token == writer.grammar.bar:
            writer.closed = True
            return
        yield take(writer, token, number)


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
    yield read(tasks.infill(grammar.vocabulary, line, before, after, first - len(before), len(signatures)))
    for number, signature in enumerate(signatures, first):
        _, events = yield from _bar(grammar, number, signature, programs)
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
    yield read(line)
    for number, bar in enumerate(bars, first):
        yield read(tasks.accompany(v, tasks.Line(), bar, number, given, written=False))
        signature = grammar.signature(bar.head)
        writer = BarWriter(grammar, signature, programs)
        yield from _fill(writer, number)
        yield Written(number, signature, tuple(writer.events))
