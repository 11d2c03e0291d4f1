"""A piece on the network's grid, and what is written put back into it.

Choices made here:
- The given score is kept as it is, in ticks, and notes are added to it, so that a prompt survives note for note
  whatever the grid; its ticks are only made finer where the grid asks for it.
- An instrument that the network has hardly heard is played to it by one that it knows and that lies as high
  (see `Instruments`), and comes out as itself again.
- What is written takes the loudness of the track it joins. Where it meets a given note of the same pitch it gives way.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import symusic

from genkit.errors import InputError
from pipelines.midi_generation.bars import Bar, Event
from pipelines.midi_generation.instruments import DRUMS, Instruments
from pipelines.midi_generation.vocabulary import Vocabulary

__all__ = ["Sheet"]

FINEST = 48  # ticks of a quarter have to be a multiple of it: a twelfth of a sixteenth's bar is exact
LOUDNESS = 80  # of a part that nothing stands beside
MOST_BARS = 5000


class Sheet:
    """A score, the bars it has as the network reads them, and room for more.

    score: symusic, in ticks, or None to begin from nothing; wanted: programs that will be written besides its own.
    Raises InputError where the piece has no bars or too many of them.
    """

    def __init__(
        self, vocabulary: Vocabulary, instruments: Instruments, score: Any = None, *, wanted: Sequence[int] = ()
    ) -> None:
        self.vocabulary = vocabulary
        self.score = _finer(score) if score is not None else symusic.Score(480)
        self.stand_in = instruments.stand_ins(self._programs(wanted))
        self.bars = self._read() if score is not None else []
        self.given = len(self.bars)
        self._ticks = [0]
        for bar in self.bars:
            self._ticks.append(self._ticks[-1] + self._bar_ticks(self.signature(bar)))

    def _programs(self, wanted: Sequence[int]) -> dict[int, float | None]:
        """The programs of the score by their mean pitch, highest first, then those wanted."""
        pitches: dict[int, list[int]] = {}
        for track in self.score.tracks:
            if len(track.notes):
                pitches.setdefault(_program(track), []).extend(note.pitch for note in track.notes)
        means: dict[int, float | None] = {
            program: float(np.mean(found)) for program, found in sorted(pitches.items(), key=lambda i: -np.mean(i[1]))
        }
        return means | {program: None for program in wanted if program not in means}

    def _read(self) -> list[Bar]:
        played = self.score.copy()
        for track in played.tracks:
            program = self.stand_in.get(_program(track), 0)
            track.program, track.is_drum = max(program, 0), program == DRUMS
        v = self.vocabulary
        bars = [Bar.parse(v, bar) for bar in v.bars(v.encode(played))]
        if not bars:
            raise InputError("the prompt has no notes that can be read; give a piece with some")
        if len(bars) > MOST_BARS:
            raise InputError(f"the prompt has {len(bars):,} bars; at most {MOST_BARS:,}")
        return bars

    # What the writers ask.

    def token(self, program: int) -> int:
        """The Program token that stands for a program of the score."""
        return self.vocabulary.ids[f"Program_{self.stand_in[program]}"]

    def playing(self) -> list[int]:
        """The programs that have notes."""
        return sorted({_program(track) for track in self.score.tracks if len(track.notes)})

    def heard_as(self, programs: Collection[int]) -> list[int]:
        """Some programs, with those that the network cannot tell from them."""
        known = {self.stand_in[program] for program in programs}
        return [program for program, stand_in in self.stand_in.items() if stand_in in known]

    @property
    def programs(self) -> list[int]:
        """The programs that have notes, or were wanted."""
        return list(self.stand_in)

    def signature(self, bar: Bar) -> int | None:
        """A bar's TimeSig token."""
        return next((token for token in bar.head if self.vocabulary.bar_lengths[token]), None)

    def key(self) -> int | None:
        """The key, by the pitches on the page."""
        tokens = [token for bar in self.bars for event in bar.events for token in event.tokens]
        return self.vocabulary.key_of(np.array(tokens, np.int64)) if tokens else None

    # What they write.

    def write(
        self, written: Mapping[int, tuple[int | None, Sequence[Event]]], *, replaced: Collection[int] | None = None
    ) -> Any:
        """The score with some bars written: number (from 1) -> TimeSig token and events; self is left as it is.

        replaced: programs whose notes give way in bars that stood there before (None: all). Bars behind the end are
        added.
        """
        score = self.score.copy()
        spans = {}
        end = len(self._ticks)
        ticks = [*self._ticks]
        signature = self.signature(self.bars[-1]) if self.bars else None
        for number, (own, _) in sorted(written.items()):
            if number >= end:  # a new bar
                if own is not None and own != signature:
                    signature = own
                    numerator, denominator = self._fraction(own)
                    score.time_signatures.append(symusic.TimeSignature(ticks[-1], numerator, denominator))
                ticks.append(ticks[-1] + self._bar_ticks(own))
            spans[number] = (ticks[number - 1], ticks[number])
        for track in score.tracks:
            if replaced is None or _program(track) in replaced:
                inside = [spans[number] for number in written if number < end]
                track.notes = _without(track.notes, inside)
        for number, (own, events) in sorted(written.items()):
            self._add(score, events, spans[number][0], own)
        _untangle(score, self.score)
        return score

    def _add(self, score: Any, events: Iterable[Event], start: int, signature: int | None) -> None:
        v = self.vocabulary
        beat = 4 * score.ticks_per_quarter / (self._fraction(signature)[1])
        for event in events:
            time = start + round(int(v.numbers[event.position]) * beat / v.settings.positions)
            first = event.tokens[0]
            if v.kinds[first] == "Tempo":
                score.tempos.append(symusic.Tempo(time, float(v.values[first])))
                continue
            whole, part, per = map(int, v.values[event.tokens[-1]].split("."))
            duration = max(1, round((whole + part / per) * beat))
            program = int(v.values[event.program]) if event.program >= 0 else 0
            track = self._track(score, program, int(v.numbers[first]))
            loud = int(v.values[event.tokens[1]]) if len(event.tokens) > 2 else _loudness(track, time)
            track.notes.append(symusic.Note(time, duration, int(v.numbers[first]), loud))

    def _track(self, score: Any, program: int, pitch: int) -> Any:
        """The track that a note goes to: of those the network hears as `program`, the one that lies nearest."""
        own = [real for real, stand_in in self.stand_in.items() if stand_in == program] or [program]
        tracks = [track for track in score.tracks if _program(track) in own]
        if not tracks:
            score.tracks.append(symusic.Track(program=max(own[0], 0), is_drum=own[0] == DRUMS, name=""))
            return score.tracks[-1]
        return min(tracks, key=lambda t: abs(_mean(t) - pitch)) if len(tracks) > 1 else tracks[0]

    def _fraction(self, signature: int | None) -> tuple[int, int]:
        if signature is None:
            return 4, 4
        numerator, denominator = map(int, self.vocabulary.values[signature].split("/"))
        return numerator, denominator

    def _bar_ticks(self, signature: int | None) -> int:
        numerator, denominator = self._fraction(signature)
        return 4 * self.score.ticks_per_quarter * numerator // denominator

    def start_of(self, number: int) -> int:
        """The tick at which a bar that stands there begins. number: from 1."""
        return self._ticks[number - 1]


def _program(track: Any) -> int:
    return DRUMS if track.is_drum else int(track.program)


def _mean(track: Any) -> float:
    return float(np.mean([note.pitch for note in track.notes])) if len(track.notes) else 60.0


def _loudness(track: Any, time: int) -> int:
    """The usual one of the track's last notes before a time."""
    before = [note.velocity for note in track.notes if note.time <= time][-32:] or [n.velocity for n in track.notes[:8]]
    return int(np.median(before)) if before else LOUDNESS


def _finer(score: Any) -> Any:
    """A copy whose quarter has a number of ticks that the grid divides."""
    tpq = score.ticks_per_quarter
    factor = FINEST // int(np.gcd(tpq, FINEST))
    return score.resample(tpq * factor, 0) if factor > 1 and tpq * factor < 32_768 else score.copy()


def _without(notes: Any, spans: Sequence[tuple[int, int]]) -> Any:
    """The notes that do not begin within any of the spans."""
    kept = [note for note in notes if not any(start <= note.time < end for start, end in spans)]
    return type(notes)(kept)


def _untangle(score: Any, given: Any) -> None:
    """Written notes give way where one pitch of a track would sound twice at once: MIDI cannot tell the two apart."""
    for i, track in enumerate(score.tracks):
        own = given.tracks[i].notes if i < len(given.tracks) else []
        old = {(note.time, note.pitch, note.duration) for note in own}
        track.notes.sort(key=lambda note: note.time)
        kept: list[Any] = []
        sounding: dict[int, int] = {}  # pitch -> place in `kept` of its last note
        for note in track.notes:
            before = sounding.get(note.pitch)
            is_old = (note.time, note.pitch, note.duration) in old
            if before is not None and kept[before].time + kept[before].duration > note.time:
                last = kept[before]
                last_is_old = (last.time, last.pitch, last.duration) in old
                if not is_old and (last_is_old or last.time == note.time):
                    continue
                if not last_is_old and note.time > last.time:
                    kept[before] = symusic.Note(last.time, note.time - last.time, last.pitch, last.velocity)
            sounding[note.pitch] = len(kept)
            kept.append(note)
        track.notes = type(track.notes)(kept)
