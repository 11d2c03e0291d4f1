"""Which tokens may come next inside a bar, so that every line is one that `Vocabulary.encode` could have written.

    Bar TimeSig ( Position Tempo? ( Program? (Pitch Velocity? Duration)+ )* )*

Positions rise and stay inside the bar; at a position programs come in their order, drums last; a program is named where
it changes, plays a pitch once, and its notes come from short to long, those equally long from low to high.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np

from pipelines.midi_generation.tokens.bars import Event
from pipelines.midi_generation.tokens.vocabulary import Vocabulary

__all__ = ["BarWriter", "Grammar"]

MOST_TOKENS = 1000  # a bar longer than that is closed as soon as it may be
DRUMS = 128  # the order of drums: behind every other program


class Grammar:
    """The kinds of a vocabulary's tokens as masks, and what they mean as numbers."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        kinds = ("Bar", "TimeSig", "Position", "Tempo", "Program", "Pitch", "PitchDrum", "Velocity", "Duration", "Key")
        self.of = {kind: vocabulary.where(kind) for kind in kinds}
        self.bar = vocabulary.ids["Bar_None"]
        self.lengths = self._lengths()
        self.longest = int(self.lengths.max())
        self._orders = np.where(vocabulary.numbers < 0, DRUMS, vocabulary.numbers)

    def _lengths(self) -> np.ndarray:
        """Of Duration tokens their places, of others 0. int64 [V]"""
        lengths, v = np.zeros(len(self.vocabulary), np.int64), self.vocabulary
        for token in np.flatnonzero(self.of["Duration"]).tolist():
            beats, part, parts = map(int, v.values[token].split("."))
            lengths[token] = (beats * parts + part) * v.settings.positions // parts
        return lengths

    def order(self, program: int) -> int:
        """Where a Program token's notes come at a position: by number, drums last; -1 for none."""
        return int(self._orders[program]) if program >= 0 else -1

    def signature(self, head: Iterable[int]) -> int | None:
        """The TimeSig token among those of a bar's head."""
        return next((token for token in head if self.of["TimeSig"][token]), None)

    def places(self, signature: int | None) -> int:
        """Places in a bar of that TimeSig token (None: 4/4)."""
        v = self.vocabulary
        return int(v.bar_lengths[signature]) if signature is not None else 4 * v.settings.positions

    def pitches(self, program: int) -> np.ndarray:
        """The tokens of the notes that a Program token may play. bool [V]"""
        return self.of["PitchDrum" if self.order(program) == DRUMS else "Pitch"]


class BarWriter:
    """A bar on its way: what may come next, and what it has become.

    signature: its TimeSig token (None: 4/4); programs: the Program tokens that may play.
    """

    def __init__(self, grammar: Grammar, signature: int | None, programs: Collection[int]) -> None:
        self.grammar, self.programs = grammar, sorted(programs, key=grammar.order)
        self.length = grammar.places(signature)
        self.position, self.place, self.program = -1, -1, -1
        self.events: list[Event] = []
        self.closed = False
        self._last = "TimeSig"
        self._floor = -1  # the order of the program that plays at this position
        self.played: list[int] = []  # its pitches there
        self._length = 0  # of its last note there
        self._tokens = 0

    def begun(self, events: Iterable[Event]) -> BarWriter:
        """Itself, going on behind events that stand there: at a later position."""
        for event in events:
            self.position, self.place = event.position, int(self.grammar.vocabulary.numbers[event.position])
            self.program = event.program if event.program >= 0 else self.program
        return self

    def allowed(self) -> np.ndarray:
        """bool [V], at least one. Not to be changed."""
        of, last = self.grammar.of, self._last
        if last in ("Pitch", "PitchDrum") and of["Velocity"].any():
            return of["Velocity"]
        if last in ("Pitch", "PitchDrum", "Velocity"):
            return self._durations()
        if last == "Program":
            return self._pitches()
        mask = np.zeros_like(of["Bar"])
        if last in ("Position", "Tempo", "Duration"):
            self._allow_notes(mask)
        if last in ("TimeSig", "Duration", "Tempo"):
            mask[self.grammar.bar] = True
            if self._tokens < MOST_TOKENS:
                mask |= self.positions()
        return mask

    def positions(self) -> np.ndarray:
        """The positions left. bool [V]"""
        numbers = self.grammar.vocabulary.numbers
        return self.grammar.of["Position"] & (numbers > self.place) & (numbers < self.length)

    def _allow_notes(self, mask: np.ndarray) -> None:
        """A note at this position: of the program that plays, or of one that comes after it there."""
        for program in self.programs:
            if program != self.program and self.grammar.order(program) > self._floor:
                mask[program] = True
        if self.program in self.programs and self.grammar.order(self.program) >= self._floor:
            mask |= self._pitches()

    def _pitches(self) -> np.ndarray:
        """Those that the program has not played here, and below the last only where a longer note is left."""
        free = self.grammar.pitches(self.program).copy()
        free[self.played] = False
        if self.played and self._length == self.grammar.longest:
            free[: self.played[-1]] = False
        return free

    def _durations(self) -> np.ndarray:
        """From that of the last note here, or longer where the pitch is lower."""
        if len(self.played) < 2:
            return self.grammar.of["Duration"]
        least = self._length + (self.played[-1] < self.played[-2])
        longer = self.grammar.lengths >= least
        return longer if longer.any() else self.grammar.of["Duration"]

    @property
    def note_done(self) -> bool:
        """Whether the last token ended a note."""
        return self._last == "Duration"

    def add(self, token: int) -> None:
        """Takes a token that `allowed`, or one that is prescribed."""
        v, kind = self.grammar.vocabulary, self.grammar.vocabulary.kinds[token]
        self._tokens += 1
        if kind == "Bar":
            self.closed = True
        elif kind == "Position":
            self.position, self.place = token, int(v.numbers[token])
            self._floor, self.played = -1, []
        elif kind == "Tempo":
            self.events.append(Event(self.position, -1, (token,)))
        elif kind == "Program":
            self.program, self._floor, self.played = token, self.grammar.order(token), []
        elif kind in ("Pitch", "PitchDrum"):
            self._floor = max(self._floor, self.grammar.order(self.program))
            self.played.append(token)
            self.events.append(Event(self.position, self.program, (token,)))
        else:
            last = self.events[-1]
            self.events[-1] = Event(last.position, last.program, (*last.tokens, token))
            self._length = int(self.grammar.lengths[token])
        self._last = kind
