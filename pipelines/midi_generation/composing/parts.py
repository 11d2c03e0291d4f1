"""The notes of a score by track, and how they are changed: some go, some are altered, some come in.

What is written is settled against what is given, as MIDI cannot tell two notes of one pitch apart that sound at once on
one track: a written note that begins while a given one sounds is left out, and one that a given one (or the next
written one) follows ends there. Given notes are never touched, and a note that took the place of one is never left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np
import symusic

from pipelines.midi_generation.tokens.instruments import DRUMS

__all__ = ["Change", "Parts", "program_of_track"]

LOUDNESS = 80  # of a part that nothing stands beside
RECENT = 32  # notes whose loudness counts


def program_of_track(track: Any) -> int:
    """Its program, -1 for drums."""
    return DRUMS if track.is_drum else int(track.program)


class Change(NamedTuple):
    """A note that comes in, or takes the place of one. Times in ticks."""

    track: int
    time: int
    duration: int
    pitch: int
    velocity: int | None = None
    """None: as the notes around it."""
    instead: int | None = None
    """The index of the note whose place it takes."""
    fixed: bool = False
    """Its duration has to stay."""


class Parts:
    """The notes of a score's tracks, to be looked up; the score is not changed."""

    def __init__(self, score: Any) -> None:
        self.programs = [program_of_track(track) for track in score.tracks]
        self._notes = [list(track.notes) for track in score.tracks]
        arrays = [track.notes.numpy() for track in score.tracks]
        self._arrays = [
            {name: part[name].astype(np.int64) for name in ("time", "pitch", "velocity")} for part in arrays
        ]
        self._means = [float(part["pitch"].mean()) if len(part["pitch"]) else None for part in self._arrays]
        self._order = [np.argsort(part["time"], kind="stable") for part in self._arrays]
        self.last = max((int(part["time"].max()) for part in self._arrays if len(part["time"])), default=-1)
        """The tick at which the last note begins."""

    def note(self, track: int, index: int) -> Any:
        """One note, symusic's."""
        return self._notes[track][index]

    def pitches(self) -> dict[int, float]:
        """The programs with notes, by their mean pitch, highest first."""
        found: dict[int, list[np.ndarray]] = defaultdict(list)
        for program, part in zip(self.programs, self._arrays, strict=True):
            if len(part["pitch"]):
                found[program].append(part["pitch"])
        means = {program: float(np.concatenate(pitches).mean()) for program, pitches in found.items()}
        return dict(sorted(means.items(), key=lambda item: -item[1]))

    def nearest(self, program: int, pitch: int) -> int:
        """Of the tracks of a program that have notes the one whose mean lies nearest to a pitch."""
        means = {i: mean for i, mean in enumerate(self._means) if mean is not None and self.programs[i] == program}
        return min(means, key=lambda i: abs(means[i] - pitch))

    def silent(self, track: int) -> bool:
        """Whether a track has no notes, or is one that came later."""
        return track >= len(self._means) or self._means[track] is None

    def within(self, span: tuple[int, int], programs: Collection[int] | None) -> dict[int, set[int]]:
        """By track, the notes of some programs (None: all) that begin from span[0] on and before span[1]."""
        return {
            i: set(np.flatnonzero((part["time"] >= span[0]) & (part["time"] < span[1])).tolist())
            for i, part in enumerate(self._arrays)
            if programs is None or self.programs[i] in programs
        }

    def sources(
        self, heard: Iterable[tuple[Any, int, int, int]], stand_in: Mapping[int, int]
    ) -> dict[Any, list[tuple[int, int]]]:
        """Which notes (track and index) each event is of, by its name.

        heard: of each event its name, tick, program and pitch; stand_in: the program that a track was heard as. Of one
        pitch, notes and events follow each other in the same order; where their numbers differ, a note goes to the
        event nearest in time.
        """
        events: dict[tuple[int, int], list[tuple[int, Any]]] = defaultdict(list)
        for name, tick, program, pitch in heard:
            events[program, pitch].append((tick, name))
        notes: dict[tuple[int, int], list[tuple[int, int, int, int]]] = defaultdict(list)
        for track, own in enumerate(self._notes):
            for index, note in enumerate(own):
                notes[stand_in[self.programs[track]], note.pitch].append((note.time, note.duration, track, index))
        found: dict[Any, list[tuple[int, int]]] = defaultdict(list)
        for key, named in events.items():
            of_key = sorted(notes[key])
            for i, (time, _, track, index) in enumerate(of_key):
                pair = named[i] if len(of_key) == len(named) else min(named, key=lambda event: abs(event[0] - time))
                found[pair[1]].append((track, index))
        return found

    def apply(self, score: Any, gone: Mapping[int, Set[int]], changes: Sequence[Change]) -> None:
        """Writes tracks anew, in order of time. score: that of these parts, or it with more tracks; gone: notes that
        go, by track."""
        for track in sorted({*(i for i, own in gone.items() if own), *(change.track for change in changes)}):
            given = self._notes[track] if track < len(self._notes) else []
            new = [change for change in changes if change.track == track]
            replaced = {change.instead for change in new} | set(gone.get(track, ()))
            kept = [note for i, note in enumerate(given) if i not in replaced]
            notes = score.tracks[track].notes
            written = [
                symusic.Note(c.time, c.duration, c.pitch, self._loudness(c) if c.velocity is None else c.velocity)
                for c in _settled(new, kept)
            ]
            score.tracks[track].notes = type(notes)(sorted([*kept, *written], key=lambda note: note.time))

    def _loudness(self, change: Change) -> int:
        """The usual one of the track's last notes before it, or of its first."""
        if change.track >= len(self._notes) or not self._notes[change.track]:
            return LOUDNESS
        part, order = self._arrays[change.track], self._order[change.track]
        place = int(np.searchsorted(part["time"], change.time, side="right", sorter=order))
        near = order[max(0, place - RECENT) : place] if place else order[:8]
        return int(np.median(part["velocity"][near]))


def _settled(new: Sequence[Change], kept: Sequence[Any]) -> list[Change]:
    """The written notes of a track, settled against those that stay. See the module's docstring."""
    pitches = {change.pitch for change in new}
    given: dict[int, list[tuple[int, int]]] = {pitch: [] for pitch in pitches}
    for note in kept:
        if note.pitch in pitches:
            given[note.pitch].append((note.time, note.time + note.duration))
    settled = []
    for pitch in sorted(pitches):
        spans, begun = given[pitch], set[int]()
        written = []
        for change in sorted((c for c in new if c.pitch == pitch), key=lambda c: c.time):
            sounding = [end for start, end in spans if start == change.time or start <= change.time < end]
            if change.instead is None and (sounding or change.time in begun):
                continue
            begun.add(change.time)
            if not change.fixed:  # a note inside another would end with it, or the other with this one
                change = change._replace(duration=max([change.duration, *(end - change.time for end in sounding)]))
            written.append(change)
        starts = np.array(sorted({*begun, *(start for start, _ in spans)}), np.int64)
        for change in written:
            later = starts[np.searchsorted(starts, change.time, side="right") :]
            cut = min([change.duration, *(later[:1] - change.time).tolist()])
            settled.append(change if change.fixed else change._replace(duration=cut))
    return settled
