"""What the network reads and writes: MidiTok's tokens, with genkit's own at the front.

A piece is a line of tokens, `BOS Key (Task) bars... EOS`; a bar (REMI, the default) is

    Bar TimeSig_3/4 | Position_0 Tempo_92 Program_0 Pitch_60 Duration_1.0.12 Pitch_64 Duration_1.0.12 | Position_12 ...

Choices made here:
- MidiTok turns scores into tokens and back. Its line names the program before every note; here a program is named only
  where it changes within a bar (`_shorter`, undone by `_longer`), which saves a fifth of the tokens and leaves each bar
  whole in itself, so that bars can be moved about (see tasks.py).
- Velocities are not part of the default line: what is written takes its loudness from what surrounds it.
- The grid is a twelfth of a beat: triplets and sixteenths are exact, thirty-seconds are not. Times go to the nearest
  place of the grid, durations to the nearest there is a token for: a note ends after twelve beats at the latest.
- What MidiTok would shift is put right beforehand (fitting.py, signatures.py).
- MidiTok's other tokenisations with one vocabulary (TSD, MIDILike, Structured) are supported too; those with several
  (CPWord, Octuple, MuMIDI) are not supported, as a token is one number here. Structured knows neither signatures nor
  tempos, tells rests of more than four beats by half beats, and shortens those of more than twelve.
- `clock` gives the place of each token in the music, for the network's beat encoding.
- Byte-pair encoding (merges.py) is laid on top: `encode` gives base tokens, which tasks and augmentation work on;
  `merge` makes of them what a network with merges reads, and `decode` takes either.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import miditok
import numpy as np
from miditok import TokSequence

from genkit.errors import ModelError
from pipelines.midi_generation.tokens import keys, merges
from pipelines.midi_generation.tokens.clock import clock, passing
from pipelines.midi_generation.tokens.fitting import fitted

__all__ = ["TASKS", "Settings", "Vocabulary"]

TASKS = ("Infill", "Accompany", "Pitches", "Rhythms")
SPECIALS = ("PAD", "BOS", "EOS", "Write", "Mask", *TASKS, *(f"Key_{key}" for key in keys.KEYS))
TOKENIZATIONS = ("REMI", "TSD", "MIDILike", "Structured")
PITCHED = ("Pitch", "NoteOn", "NoteOff")  # what transposition moves
DRUMS = ("PitchDrum", "DrumOn", "DrumOff")
SIGNATURES = {2: [1, 2, 3, 4], 4: [*range(1, 10), 12], 8: [*range(1, 10), 12, 15], 16: [3, 4, 6, 9, 12]}


@dataclass(frozen=True)
class Settings:
    """How scores become tokens."""

    tokenization: str = "REMI"
    """A class of MidiTok with one vocabulary: REMI, TSD, MIDILike or Structured."""
    positions: int = 12
    """Places in a beat (an even number), up to four beats; longer notes are told apart by half beats, up to twelve."""
    velocities: int = 0
    """Levels of loudness; 0 leaves it out."""
    tempos: int = 32
    """Levels of tempo between 30 and 240 quarters a minute; 0 leaves it out."""
    time_signatures: bool = True
    programs: bool = True
    specials: Sequence[str] = field(default=SPECIALS)

    def tokenizer(self) -> miditok.MusicTokenizer:
        """MidiTok's tokeniser."""
        config = miditok.TokenizerConfig(
            pitch_range=(0, 127),
            beat_res={(0, 4): self.positions, (4, 12): 2},
            num_velocities=self.velocities or 1,
            special_tokens=list(self.specials),
            use_velocities=bool(self.velocities),
            use_tempos=bool(self.tempos),
            num_tempos=self.tempos or 1,
            tempo_range=(30, 240),
            log_tempos=True,
            use_time_signatures=self.time_signatures,
            time_signature_range=SIGNATURES,
            use_programs=self.programs,
            one_token_stream_for_programs=True,
            use_pitchdrum_tokens=True,
            delete_equal_successive_tempo_changes=True,
            delete_equal_successive_time_sig_changes=True,
        )
        return getattr(miditok, self.tokenization)(config)


class Vocabulary:
    """Tokens by number, and what each means."""

    def __init__(self, tokenizer: miditok.MusicTokenizer, settings: Settings) -> None:
        self.tokenizer, self.settings = tokenizer, settings
        self.names: list[str] = [name for name, _ in sorted(tokenizer.vocab.items(), key=lambda item: item[1])]
        self.kinds = [name.partition("_")[0] for name in self.names]
        self.values = [name.partition("_")[2] for name in self.names]
        self.merges = self._merges() if tokenizer.is_trained else None
        for parts in self.merges.expansions[len(self.names) :] if self.merges else ():
            self.names.append("+".join(self.names[part] for part in parts))
            self.kinds.append("Merged")
            self.values.append("")
        self.ids = {name: i for i, name in enumerate(self.names)}

    def _merges(self) -> merges.Merges:
        return merges.Merges(self.tokenizer, *self._edges())

    def _edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Which base tokens are never merged, and which only begin what is merged. bool [V] each"""
        kinds = self.kinds[: len(self.tokenizer.vocab)]
        single = {"Bar", "TimeSig", *(name.partition("_")[0] for name in SPECIALS)}
        return np.array([kind in single for kind in kinds]), np.array([kind in merges.BEGIN for kind in kinds])

    @classmethod
    def build(cls, settings: Settings | None = None) -> Vocabulary:
        """A new one."""
        settings = settings or Settings()
        return cls(settings.tokenizer(), settings)

    def with_merges(self, lines: Iterable[np.ndarray], size: int) -> Vocabulary:
        """One of up to `size` tokens, merges learned on lines of base tokens. Raises InputError: nothing to merge."""
        tokenizer = self.settings.tokenizer()
        merges.learn(tokenizer, lines, size, *self._edges())
        return Vocabulary(tokenizer, self.settings)

    def __len__(self) -> int:
        return len(self.names)

    def special(self, name: str) -> int:
        """The number of BOS, EOS, Write, Mask or a task."""
        return self.ids[f"{name}_None"]

    def key(self, key: int) -> int:
        """The token of a key (index into keys.KEYS)."""
        return self.ids[f"Key_{keys.KEYS[key]}"]

    def where(self, kind: str) -> np.ndarray:
        """Which tokens are of a kind. bool [V]"""
        return np.array([k == kind for k in self.kinds])

    @cached_property
    def numbers(self) -> np.ndarray:
        """Of positions, pitches, drums and programs their value, of others -1 (a program of drums too). [V]"""
        whole = {"Position", "Program", *PITCHED, *DRUMS}
        return np.array([int(v) if k in whole else -1 for k, v in zip(self.kinds, self.values, strict=True)], np.int64)

    @cached_property
    def notes(self) -> np.ndarray:
        """Which base tokens begin a note. bool [V]"""
        return self.where("Pitch") | self.where("PitchDrum") | self.where("NoteOn") | self.where("DrumOn")

    @cached_property
    def note_counts(self) -> np.ndarray:
        """How many notes begin in each token, merged ones too. int64 [V]"""
        counts = self.notes.astype(np.int64)
        for token, parts in enumerate(self.merges.expansions if self.merges else ()):
            counts[token] = self.notes[list(parts)].sum()
        return counts

    @cached_property
    def bar_lengths(self) -> np.ndarray:
        """Of TimeSig tokens the places in their bar, of others 0. [V]"""
        lengths = np.zeros(len(self), np.int64)
        for i, (kind, value) in enumerate(zip(self.kinds, self.values, strict=True)):
            if kind == "TimeSig":
                lengths[i] = int(value.split("/")[0]) * self.settings.positions
        return lengths

    @cached_property
    def places(self) -> int:
        """Places in the longest bar."""
        positions = int(self.numbers[self.where("Position")].max(initial=-1)) + 1
        return positions or max(int(self.bar_lengths.max(initial=0)), 4 * self.settings.positions)

    # Scores and tokens.

    def encode(self, score: Any) -> np.ndarray:
        """A symusic Score in ticks -> the base tokens of its bars, int64 [T]; without BOS, key and EOS.

        Raises MediaError: more bars than signatures.MAX_BARS.
        """
        sequence = self.tokenizer.encode(fitted(score, self.tokenizer), encode_ids=False)
        return self._shorter(np.asarray(sequence.ids, np.int64))

    def decode(self, tokens: np.ndarray | Sequence[int]) -> Any:
        """Tokens -> a symusic Score in ticks. What is not music (BOS, keys, tasks) is passed over."""
        ids = self._longer(self.expand(np.asarray(tokens, np.int64)))
        return self.tokenizer.decode(TokSequence(ids=ids.tolist()))

    def merge(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Base tokens -> what the network reads, and of each the index of its (last) base token. int64 each."""
        return self.merges.apply(tokens) if self.merges else (tokens, np.arange(len(tokens)))

    def expand(self, tokens: np.ndarray) -> np.ndarray:
        """The base tokens of what the network reads."""
        return self.merges.expand(tokens) if self.merges else tokens

    def _shorter(self, ids: np.ndarray) -> np.ndarray:
        """Without the programs that are those of the note before in the same bar."""
        if not self.settings.programs or self.settings.tokenization != "REMI":
            return ids
        program, keep = -1, np.ones(len(ids), bool)
        is_program, bar = self._is_program, self.ids["Bar_None"]
        for i, token in enumerate(ids.tolist()):
            if token == bar:
                program = -1
            elif is_program[token]:
                keep[i] = token != program
                program = token
        return ids[keep]

    def _longer(self, ids: np.ndarray) -> np.ndarray:
        """Undoes `_shorter`, and drops what MidiTok does not know to be music."""
        ids = ids[~self._is_special[ids]]
        if not self.settings.programs or self.settings.tokenization != "REMI":
            return ids
        full: list[int] = []
        program = None
        for token in ids.tolist():
            if self._is_program[token]:
                program = token
            elif self._is_pitch[token] and program is not None and not self._is_program[full[-1]]:
                full.append(program)
            full.append(token)
        return np.array(full, np.int64)

    @cached_property
    def _is_program(self) -> np.ndarray:
        return self.where("Program")

    @cached_property
    def _is_pitch(self) -> np.ndarray:
        return self.where("Pitch") | self.where("PitchDrum")

    @cached_property
    def _is_special(self) -> np.ndarray:
        kinds = {name.partition("_")[0] for name in SPECIALS}
        return np.array([kind in kinds for kind in self.kinds])

    # Places.

    def bars(self, tokens: np.ndarray) -> list[np.ndarray]:
        """The bars of a line, each with its Bar token; what stands before the first is left out."""
        starts = np.flatnonzero(tokens == self.ids["Bar_None"])
        return np.split(tokens, starts)[1:] if len(starts) else []

    def clock(self, tokens: np.ndarray, bar: int = 0, place: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Where in the music each token is: its place in the bar, and the bar's number. int64 [T] each.

        bar, place: where the line goes on from. A Bar token begins the next bar, counted from 1. Tokenisations without
        bars count from 0, and their time goes on by TimeShift tokens (in bars of 4/4 up to the first TimeSig).
        """
        if self.merges:
            base = clock(self, self.expand(tokens), bar, place)
            last = np.cumsum(self.merges.lengths[tokens]) - 1
            return base[0][last], base[1][last]
        return clock(self, tokens, bar, place)

    @cached_property
    def positions(self) -> np.ndarray:
        """Which tokens are positions. bool [V]"""
        return self.where("Position")

    @cached_property
    def shifts(self) -> np.ndarray:
        """Of TimeShift and Rest tokens the places that pass, of others 0. int64 [V]"""
        timed = ("TimeShift", "Rest")
        passed = [
            passing(v, self.settings.positions) if k in timed else 0
            for k, v in zip(self.kinds, self.values, strict=True)
        ]
        return np.array(passed, np.int64)

    # Augmentation, of base tokens.

    @cached_property
    def _pitched(self) -> np.ndarray:
        return np.isin(np.array(self.kinds), PITCHED)

    def transpose(self, tokens: np.ndarray, semitones: int) -> np.ndarray:
        """Pitches and keys moved; drums are left alone. Raises ValueError where a pitch would leave 0..127."""
        pitched = self._pitched[tokens]
        pitches = self.numbers[tokens[pitched]] + semitones
        if len(pitches) and (pitches.min() < 0 or pitches.max() > 127):
            raise ValueError(f"{semitones} semitones move a pitch out of 0..127")
        moved = tokens + np.where(pitched, semitones, 0)
        first = self.key(0)
        keyed = (tokens >= first) & (tokens < first + len(keys.KEYS))
        index = tokens - first
        return np.where(keyed, first + index // 12 * 12 + (index + semitones) % 12, moved)

    def shift(self, tokens: np.ndarray, kind: str, steps: int) -> np.ndarray:
        """Tempo or Velocity tokens moved by so many levels, stopping at the ends."""
        found = np.flatnonzero(self.where(kind))
        if not len(found):
            return tokens
        of_kind = (tokens >= found[0]) & (tokens <= found[-1])
        return np.where(of_kind, np.clip(tokens + steps, found[0], found[-1]), tokens)

    def key_of(self, tokens: np.ndarray, among: Sequence[int] = range(24)) -> int | None:
        """The key of a line of tokens, by its pitches (drums do not count), or None. among: the keys in question."""
        sounding = self._pitched & self.notes
        return keys.estimate(self.numbers[tokens[sounding[tokens]]], among=among)

    # In a model's header.

    def record(self) -> str:
        """Everything it takes to make it again, as JSON."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tokenizer.json"
            self.tokenizer.save(path)
            return json.dumps({"settings": asdict(self.settings), "miditok": json.loads(path.read_text("utf-8"))})

    @classmethod
    def from_record(cls, text: str) -> Vocabulary:
        """What `record` wrote. Raises ModelError."""
        try:
            record: Mapping[str, Any] = json.loads(text)
            settings = Settings(**record["settings"])
            if settings.tokenization not in TOKENIZATIONS:
                raise ValueError(f"tokenisation {settings.tokenization!r} is none of {', '.join(TOKENIZATIONS)}")
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "tokenizer.json"
                path.write_text(json.dumps(record["miditok"]), "utf-8")
                return cls(getattr(miditok, settings.tokenization)(params=path), settings)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"the vocabulary in the model's header is damaged ({str(error)[:120]})") from error
