"""Which tokens may come next inside a bar, so that every line is one that `Vocabulary.encode` could have written.

    Bar TimeSig ( Position Tempo? ( Program? (Pitch Velocity? Duration)+ )* )*

Positions rise and stay inside the bar; at a position programs come in their order, drums last, and each plays a pitch
once; a program is named where it changes.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from pipelines.midi_generation.bars import Event
from pipelines.midi_generation.vocabulary import Vocabulary

__all__ = ["BarWriter", "Grammar"]

MOST_TOKENS = 1000  # a bar longer than that is closed as soon as it may be


class Grammar:
    """The kinds of a vocabulary's tokens, as masks."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        kinds = ("Bar", "TimeSig", "Position", "Tempo", "Program", "Pitch", "PitchDrum", "Velocity", "Duration", "Key")
        self.of = {kind: vocabulary.where(kind) for kind in kinds}
        self.none = np.zeros(len(vocabulary), bool)
        self.bar = vocabulary.ids["Bar_None"]

    def order(self, program: int) -> int:
        """Where a Program token's notes come at a position: by number, drums last; -1 for none."""
        number = int(self.vocabulary.numbers[program]) if program >= 0 else -1
        return 128 if program >= 0 and number < 0 else number

    def drums(self, program: int) -> bool:
        """Whether a Program token is that of drums."""
        return self.order(program) == 128


class BarWriter:
    """A bar on its way: what may come next, and what it has become.

    signature: its TimeSig token (None: 4/4); programs: the Program tokens that may play; tempo: whether a tempo may be
    written.
    """

    def __init__(
        self, grammar: Grammar, signature: int | None, programs: Collection[int], *, tempo: bool = False
    ) -> None:
        self.grammar, self.programs, self.tempo = grammar, sorted(programs, key=grammar.order), tempo
        v = grammar.vocabulary
        self.length = int(v.bar_lengths[signature]) if signature is not None else 4 * v.settings.positions
        self.position, self.place, self.program = -1, -1, -1
        self.events: list[Event] = []
        self.closed = False
        self._last = "TimeSig"
        self._floor = -1  # the order of the program that plays at this position
        self._taken: set[int] = set()  # pitches that it has played there
        self._tokens = 0
        self._starts = self._program_masks()

    def _program_masks(self) -> list[tuple[int, int]]:
        """(order, token) of the programs that may play; where programs are not told apart, none."""
        return [(self.grammar.order(program), program) for program in self.programs]

    def allowed(self) -> np.ndarray:
        """bool [V], at least one."""
        of, last = self.grammar.of, self._last
        if last in ("Pitch", "PitchDrum") and of["Velocity"].any():
            return of["Velocity"]
        if last in ("Pitch", "PitchDrum", "Velocity"):
            return of["Duration"]
        mask = self.grammar.none.copy()
        if last == "Program":
            self._allow_pitches(mask)
            return mask
        if last in ("Position", "Tempo", "Duration"):
            self._allow_notes(mask)
            if last == "Position" and self.tempo:
                mask |= of["Tempo"]
        if last in ("TimeSig", "Duration", "Tempo"):
            mask[self.grammar.bar] = True
            if self._tokens < MOST_TOKENS:
                self._allow_positions(mask)
        return mask

    def _allow_positions(self, mask: np.ndarray) -> None:
        numbers = self.grammar.vocabulary.numbers
        mask |= self.grammar.of["Position"] & (numbers > self.place) & (numbers < self.length)

    def _allow_notes(self, mask: np.ndarray) -> None:
        """A note at this position: of the program that plays, or of one that comes after it there."""
        if not self.programs:
            self._allow_pitches(mask)
            return
        for order, token in self._starts:
            if token != self.program and order > self._floor:
                mask[token] = True
        if self.program >= 0 and self.grammar.order(self.program) >= self._floor:
            self._allow_pitches(mask)

    def _allow_pitches(self, mask: np.ndarray) -> None:
        kind = "PitchDrum" if self.program >= 0 and self.grammar.drums(self.program) else "Pitch"
        free = self.grammar.of[kind].copy()
        free[list(self._taken)] = False
        mask |= free

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
            self._floor, self._taken = -1, set()
        elif kind == "Tempo":
            self.events.append(Event(self.position, -1, (token,)))
        elif kind == "Program":
            self.program, self._floor, self._taken = token, self.grammar.order(token), set()
        elif kind in ("Pitch", "PitchDrum"):
            self._floor = max(self._floor, self.grammar.order(self.program))
            self._taken.add(token)
            self.events.append(Event(self.position, self.program, (token,)))
        else:
            last = self.events[-1]
            self.events[-1] = Event(last.position, last.program, (*last.tokens, token))
        self._last = kind
