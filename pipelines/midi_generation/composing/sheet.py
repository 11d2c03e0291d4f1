"""A piece on the network's grid, and what is written put back into it.

Choices made here:
- The given score is kept as it is, in ticks, and notes are added to it, so that a prompt survives note for note
  whatever the grid; its ticks are only made finer where the grid asks for it.
- An instrument that the network has hardly heard is played to it by one that it knows and that lies as high
  (see `Instruments`), and comes out as itself again.
- What is written takes the loudness of the track it joins; what is varied takes all of its note but what is redone.
- Where a written note meets a given one of the same pitch it gives way (`parts.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import symusic

from genkit.errors import InputError
from pipelines.midi_generation.composing.grammar import Grammar
from pipelines.midi_generation.composing.parts import Change, Parts, program_of_track
from pipelines.midi_generation.tokens import keys
from pipelines.midi_generation.tokens.bars import Bar, Event
from pipelines.midi_generation.tokens.instruments import ANOTHER, DRUMS, Instruments, height_of

__all__ = ["Sheet"]

TICKS = 480  # of a quarter, where nothing is given
MOST_TICKS = 2**31 - 1
MOST_BARS = 5000

Written = Mapping[int, tuple[int | None, Sequence[Event]]]
"""Of bars, by number from 1, the TimeSig token and the events."""


class Sheet:
    """A score, the bars it has as the network reads them, and room for more.

    score: symusic, in ticks, or None to begin from nothing; wanted: programs that will be written (default: its own);
    apart: programs that the network has to tell from the others. Raises InputError: no bars, or too many of them.
    """

    def __init__(
        self,
        grammar: Grammar,
        instruments: Instruments,
        score: Any = None,
        *,
        wanted: Sequence[int] = (),
        apart: Collection[int] = (),
    ) -> None:
        self.grammar, self.vocabulary = grammar, grammar.vocabulary
        finest = 4 * self.vocabulary.settings.positions  # so that the grid of a sixteenth's bar is exact
        self.score = _finer(score if score is not None else symusic.Score(TICKS), finest)
        self.parts = Parts(self.score)
        self._pitches = self.parts.pitches()
        self.playing = sorted(self._pitches)
        """The programs that have notes."""
        new = dict.fromkeys(program for program in wanted if program not in self._pitches)
        self.stand_in = instruments.stand_ins({**self._pitches, **new}, apart)
        self.writers = list(wanted) or self.playing
        """The programs that will have notes written."""
        self.bars = self._read() if score is not None else []
        self._starts = [0]  # of each bar, in sixteenths, and the end
        for bar in self.bars:
            self._starts.append(self._starts[-1] + self._sixteenths(self.signature(bar)))

    def _read(self) -> list[Bar]:
        played = self.score.copy()
        for track in played.tracks:
            program = self.stand_in.get(program_of_track(track), 0)
            track.program, track.is_drum = max(program, 0), program == DRUMS
        v = self.vocabulary
        bars = [Bar.parse(v, bar) for bar in v.bars(v.encode(played))]
        if not any(v.notes[event.tokens[0]] for bar in bars for event in bar.events):
            raise InputError("the prompt has no notes that the model can read; give a piece with some")
        if len(bars) > MOST_BARS:
            raise InputError(f"the prompt has {len(bars):,} bars; at most {MOST_BARS:,} are taken: cut it")
        return bars

    # What the writers ask.

    def token(self, program: int) -> int:
        """The Program token that stands for a program of the score."""
        return self.vocabulary.ids[f"Program_{self.stand_in[program]}"]

    def signature(self, bar: Bar) -> int | None:
        """A bar's TimeSig token."""
        return self.grammar.signature(bar.head)

    def key(self) -> int | None:
        """The key, by the pitches on the page; where the file states one signature, of its major and minor."""
        tokens = [token for bar in self.bars for event in bar.events for token in event.tokens]
        stated = {signature.key for signature in self.score.key_signatures}
        # C major is what programs write that know of no signatures: it says nothing.
        among = keys.of_signature(stated.pop()) if len(stated) == 1 and 0 not in stated else range(24)
        return self.vocabulary.key_of(np.array(tokens, np.int64), among) if tokens else None

    # What they write. Each makes a new score and leaves the sheet as it is.

    def write(self, written: Written, *, replaced: Collection[int] | None = None) -> Any:
        """The score with some bars written that follow each other; those behind the end are added.

        replaced: programs whose notes give way in bars that stood there (None: all).
        """
        score = self.score.copy()
        if not written:
            return score
        starts = self._extended(score, written)
        span = self._tick(starts[min(written) - 1]), self._tick(starts[min(max(written), len(self.bars))])
        changes = []
        for number, (own, events) in sorted(written.items()):
            for event, change in self._notes(score, events, starts[number - 1], own):
                changes.append(change._replace(track=self._track(score, event, change.pitch)))
        self.parts.apply(score, self.parts.within(span, replaced), changes)
        return score

    def vary(self, written: Written, programs: Collection[int], *, rhythm: bool) -> Any:
        """The score with other pitches, or another rhythm, for the notes of some bars.

        written: one event for each that the bar has of the Program tokens `programs`, in order.
        """
        score = self.score.copy()
        changes = []
        sources = self.parts.sources(self._heard(), self.stand_in)
        for number, (own, events) in written.items():
            old = [i for i, event in enumerate(self.bars[number - 1].events) if event.program in programs]
            for place, (_, new) in zip(old, self._notes(score, events, self._starts[number - 1], own), strict=True):
                for track, index in sources.get((number, place), ()):
                    note = self.parts.note(track, index)
                    change = new._replace(track=track, velocity=note.velocity, instead=index)
                    if not rhythm:
                        change = change._replace(time=note.time, duration=note.duration, fixed=True)
                    changes.append(change)
        self.parts.apply(score, {}, changes)
        return score

    def _heard(self) -> Iterator[tuple[tuple[int, int], int, int, int]]:
        """Of every note as the network heard it: (bar, place in its events), tick, program, pitch."""
        v = self.vocabulary
        for number, bar in enumerate(self.bars, 1):
            own, start = self.signature(bar), self._starts[number - 1]
            for i, event in enumerate(bar.events):
                if v.notes[event.tokens[0]]:
                    pitch = int(v.numbers[event.tokens[0]])
                    yield (number, i), self._time(event, start, own), int(v.values[event.program]), pitch

    def _extended(self, score: Any, written: Written) -> list[int]:
        """`_starts` with those of the bars behind the end, whose signatures the score is given."""
        starts = list(self._starts)
        for number, (own, _) in sorted(written.items()):
            if number >= len(starts):
                if number == len(self.bars) + 1:
                    self._drop_signatures(score)
                self._sign(score, own, starts[-1])
                starts.append(starts[-1] + self._sixteenths(own))
        return starts

    def _drop_signatures(self, score: Any) -> None:
        """Those that came after the last note, where nothing was heard of them."""
        last = self.parts.last
        score.time_signatures = type(score.time_signatures)([s for s in score.time_signatures if s.time <= last])

    def _sign(self, score: Any, signature: int | None, start: int) -> None:
        """Has a bar begin at a sixteenth: by a signature, unless one that is there says as much."""
        numerator, denominator = self._fraction(signature)
        time = self._tick(start)
        now = max((s for s in score.time_signatures if s.time <= time), key=lambda s: s.time, default=None)
        stated = (now.time, now.numerator, now.denominator) if now else (0, 4, 4)
        in_step = (time - stated[0]) % max(1, self._tick(self._sixteenths(signature))) == 0
        if stated[1:] != (numerator, denominator) or not in_step or (start == 0 and now is None):
            score.time_signatures.append(symusic.TimeSignature(time, numerator, denominator))

    def _notes(
        self, score: Any, events: Iterable[Event], start: int, signature: int | None
    ) -> Iterator[tuple[Event, Change]]:
        """The notes of a bar's events, without a track; tempi go to the score. start: of the bar, in sixteenths."""
        v, place = self.vocabulary, self._place(signature)
        for event in events:
            time, first = self._time(event, start, signature), event.tokens[0]
            if v.kinds[first] == "Tempo":
                score.tempos.append(symusic.Tempo(time, float(v.values[first])))
                continue
            duration = max(1, round(int(self.grammar.lengths[event.tokens[-1]]) * place))
            velocity = int(v.values[event.tokens[1]]) if len(event.tokens) > 2 else None
            yield event, Change(-1, time, duration, int(v.numbers[first]), velocity)

    def _track(self, score: Any, event: Event, pitch: int) -> int:
        """The track that a note goes to: of the writers that the network hears as its program, the one that lies
        nearest."""
        program = int(self.vocabulary.values[event.program])
        own = [writer for writer in self.writers if self.stand_in[writer] == program]
        nearest = min(own, key=lambda writer: abs(self._pitches.get(writer, height_of(writer)) - pitch))
        if nearest in self._pitches:
            return self.parts.nearest(nearest, pitch)
        real = nearest if nearest == DRUMS else nearest % ANOTHER
        for i, track in enumerate(score.tracks):
            if program_of_track(track) == real and self.parts.silent(i):
                return i
        score.tracks.append(symusic.Track(program=max(real, 0), is_drum=real == DRUMS, name=""))
        return len(score.tracks) - 1

    # Time.

    def _fraction(self, signature: int | None) -> tuple[int, int]:
        if signature is None:
            return 4, 4
        numerator, denominator = map(int, self.vocabulary.values[signature].split("/"))
        return numerator, denominator

    def _sixteenths(self, signature: int | None) -> int:
        """The length of a bar."""
        numerator, denominator = self._fraction(signature)
        return 16 * numerator // denominator

    def _place(self, signature: int | None) -> float:
        """Ticks of a place in a bar."""
        return 4 * self.score.ticks_per_quarter / (self._fraction(signature)[1] * self.vocabulary.settings.positions)

    def _time(self, event: Event, start: int, signature: int | None) -> int:
        """The tick of an event. start: of its bar, in sixteenths."""
        return self._tick(start) + round(int(self.vocabulary.numbers[event.position]) * self._place(signature))

    def _tick(self, sixteenths: int) -> int:
        return round(sixteenths * self.score.ticks_per_quarter / 4)


def _finer(score: Any, finest: int) -> Any:
    """A copy whose quarter has a number of ticks that the grid divides, where a file can hold so many."""
    quarter = score.ticks_per_quarter
    factor = finest // int(np.gcd(quarter, finest))
    fits = quarter * factor < 32_768 and (score.end() + 1) * factor < MOST_TICKS
    return score.resample(quarter * factor, 0) if factor > 1 and fits else score.copy()
