"""Instruments by name, and which of them a network has heard."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from miditok.constants import MIDI_INSTRUMENTS

from genkit.errors import InputError, ModelError
from pipelines.midi_generation.vocabulary import Vocabulary

__all__ = ["DRUMS", "Instruments", "program_of"]

DRUMS = -1
WORDS = {"piano": 0, "organ": 19, "guitar": 24, "bass": 32, "strings": 48, "choir": 52, "voice": 52, "sax": 65}
"""Plain words, and the General MIDI program that is meant."""


def program_of(name: str | int) -> int:
    """The program (0..127, -1 for drums) that a name or a number means. Raises InputError."""
    text = str(name).strip().lower()
    if text in ("drums", "drum", "percussion", "-1"):
        return DRUMS
    if text.isdigit() and int(text) < 128:
        return int(text)
    if text in WORDS:
        return WORDS[text]
    names = [str(row["name"]).lower() for row in MIDI_INSTRUMENTS]
    if text in names:
        return names.index(text)
    found = [i for i, full in enumerate(names) if text and text in full]
    if found:
        return found[0]
    raise InputError(
        f"no instrument is called {str(name)[:60]!r}; give a General MIDI name (piano, violin, flute, drums, ...) "
        "or a program from 0 to 127"
    )


@dataclass(frozen=True)
class Instruments:
    """What a network has heard: of each program (-1 for drums) the share of pieces it plays in, and its mean pitch."""

    heard: Mapping[int, tuple[float, float]]
    least: float = 0.1
    """Programs in fewer pieces than this share count as unheard."""

    @classmethod
    def of(cls, vocabulary: Vocabulary, pieces: Iterable[np.ndarray]) -> Instruments:
        """Those of pieces as lines of tokens."""
        is_program, is_note = vocabulary.where("Program"), vocabulary.where("Pitch") | vocabulary.where("PitchDrum")
        count, pitch_sum, note_sum = {}, {}, {}
        total = 0
        for piece in pieces:
            total += 1
            last = np.maximum.accumulate(np.where(is_program[piece], np.arange(len(piece)), 0))
            programs, notes = vocabulary.numbers[piece[last]], is_note[piece]
            for program in np.unique(programs[notes]).tolist():
                own = notes & (programs == program)
                count[program] = count.get(program, 0) + 1
                pitch_sum[program] = pitch_sum.get(program, 0) + int(vocabulary.numbers[piece[own]].sum())
                note_sum[program] = note_sum.get(program, 0) + int(own.sum())
        return cls({p: (count[p] / total, pitch_sum[p] / note_sum[p]) for p in count})

    @cached_property
    def known(self) -> dict[int, float]:
        """The mean pitch of the programs heard often enough, the most heard first."""
        often = sorted(self.heard.items(), key=lambda item: -item[1][0])
        return {program: pitch for program, (share, pitch) in often if share >= self.least} or {0: 60.0}

    def stand_ins(self, wanted: Mapping[int, float | None]) -> dict[int, int]:
        """For each program wanted, with its mean pitch where it has notes, one that the network knows: itself, or the
        one that lies nearest, a different one for each as far as they go. Drums are only ever drums.
        """
        found = {program: program for program in wanted if program in self.known or program == DRUMS}
        pitched = [program for program in self.known if program != DRUMS] or [0]
        for program, pitch in wanted.items():
            if program in found:
                continue
            free = [p for p in pitched if p not in found.values()] or pitched
            near = min(free, key=lambda p: abs(self.known.get(p, 60.0) - pitch)) if pitch is not None else free[0]
            found[program] = near
        return found

    def record(self) -> str:
        """As JSON, for a model's header."""
        rows = sorted(self.heard.items(), key=lambda item: -item[1][0])
        return json.dumps({str(program): [round(share, 4), round(pitch, 1)] for program, (share, pitch) in rows})

    @classmethod
    def from_record(cls, text: str) -> Instruments:
        """What `record` wrote. Raises ModelError."""
        try:
            return cls({int(program): (float(row[0]), float(row[1])) for program, row in json.loads(text).items()})
        except (ValueError, TypeError, IndexError, AttributeError) as error:
            raise ModelError(f"the instruments in the model's header are damaged ({str(error)[:120]})") from error
