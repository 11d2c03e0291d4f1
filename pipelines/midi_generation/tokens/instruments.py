"""Instruments by name, and which of them a network has heard."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from miditok.constants import MIDI_INSTRUMENTS

from genkit.errors import ModelError
from pipelines.midi_generation.tokens.vocabulary import Vocabulary

__all__ = ["ANOTHER", "DRUMS", "Instruments", "height_of", "name_of", "program_of"]

DRUMS = -1
ANOTHER = 128  # added to a program: a further part for it, beside one that is there
WORDS = {
    "piano": 0,
    "organ": 19,
    "guitar": 24,
    "bass": 32,
    "strings": 48,
    "choir": 52,
    "voice": 52,
    "sax": 65,
    "horn": 60,
}
"""Plain words, and the General MIDI program that is meant."""
REGISTERS = (61, 72, 61, 55, 40, 65, 62, 58, 66, 76, 70, 62, 60, 62, 60, 60)
"""About the mean pitch of what the sixteen families of General MIDI play, in its order (piano, bells, organ, guitar,
bass, strings, ensemble, brass, reed, pipe, lead, pad, effects, folk, percussive, noises): where one without notes is
taken to lie."""


def program_of(name: str | int) -> int:
    """The program (0..127, -1 for drums) that a name or a number means. Raises ValueError."""
    text = str(name).strip().lower()
    if text in ("drums", "drum", "percussion", "-1"):
        return DRUMS
    if re.fullmatch("[0-9]{1,3}", text) and int(text) < 128:
        return int(text)
    if text in WORDS:
        return WORDS[text]
    names = [str(row["name"]).lower() for row in MIDI_INSTRUMENTS]
    if text in names:
        return names.index(text)
    found = [i for i, full in enumerate(names) if text and re.search(rf"\b{re.escape(text)}\b", full)]
    if found:
        return found[0]
    raise ValueError(
        f"no instrument is called {str(name)[:60]!r}; give a General MIDI name (piano, violin, flute, drums, ...) "
        "or a program from 0 to 127"
    )


def height_of(program: int) -> int:
    """The pitch about which an instrument plays. Drums count as 60."""
    return 60 if program == DRUMS else REGISTERS[program % ANOTHER // 8]


def name_of(program: int) -> str:
    """The name of a program, or drums."""
    return "drums" if program == DRUMS else str(MIDI_INSTRUMENTS[program]["name"]).lower()


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
        count: dict[int, int] = {}
        pitch_sum: dict[int, int] = {}
        note_sum: dict[int, int] = {}
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

    def stand_ins(self, wanted: Mapping[int, float | None], apart: Collection[int] = ()) -> dict[int, int]:
        """For each program wanted, with its mean pitch where it has notes, one that the network knows: itself, or the
        one that lies nearest, a different one for each as far as they go. Drums are only ever drums.

        apart: programs that share theirs with none of the others, so that the network can tell the two groups apart.
        """
        found: dict[int, int] = {}
        first = {program: pitch for program, pitch in wanted.items() if program in apart}
        rest = {program: pitch for program, pitch in wanted.items() if program not in apart}
        among = [p for p in self._pitched if p not in rest or p + ANOTHER in first] or self._pitched
        self._assign(found, first, among[:-1] if rest and len(first) >= len(among) > 1 else among)
        left = [p for p in self._pitched if p not in found.values()] if first else self._pitched
        unheard = [p for p in range(128) if p not in found.values()]
        self._assign(found, rest, left or unheard[:1])
        return {program: found[program] for program in wanted}

    @property
    def _pitched(self) -> list[int]:
        return [program for program in self.known if program != DRUMS] or [0]

    def _assign(self, found: dict[int, int], wanted: Mapping[int, float | None], among: Sequence[int]) -> None:
        """Adds to `found` a stand-in out of `among` for each program wanted; one that is there stands for itself."""
        own = {program: program % ANOTHER for program in wanted if program != DRUMS and program % ANOTHER in among}
        found.update(own | {program: DRUMS for program in wanted if program == DRUMS})
        for program, pitch in wanted.items():
            if program not in found:
                height = height_of(program) if pitch is None else pitch
                free = [p for p in among if p not in found.values()] or among
                found[program] = min(free, key=lambda p: abs(self.known.get(p, 60.0) - height))

    def record(self) -> str:
        """As JSON, for a model's header."""
        rows = sorted(self.heard.items(), key=lambda item: -item[1][0])
        return json.dumps({str(program): [round(share, 4), round(pitch, 1)] for program, (share, pitch) in rows})

    @classmethod
    def from_record(cls, text: str) -> Instruments:
        """What `record` wrote. Raises ModelError."""
        try:
            heard = {int(program): (float(row[0]), float(row[1])) for program, row in json.loads(text).items()}
            if not all(DRUMS <= p < 128 and 0 <= s <= 1 and 0 <= h < 128 for p, (s, h) in heard.items()):
                raise ValueError("a program, a share or a pitch is out of bounds")
        except (ValueError, TypeError, IndexError, KeyError, AttributeError, RecursionError) as error:
            raise ModelError(f"the instruments in the model's header are damaged ({str(error)[:120]})") from error
        return cls(heard)
