"""Pieces of MIDI as lines of tokens, in lanes: row b of one batch goes on where row b of the batch before stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from genkit.errors import MediaError
from genkit.media import files
from genkit.media.midi import Midi
from genkit.training.data import Draw, list_files, readable
from pipelines.midi_generation.tokens import tasks
from pipelines.midi_generation.tokens.bars import Bar
from pipelines.midi_generation.tokens.vocabulary import Vocabulary

if TYPE_CHECKING:
    from genkit.training.task import Setup

__all__ = ["Augment", "LaneSampler", "Lanes", "read_pieces"]

WINDOW = 32  # bars of a line that teaches a task
BEFORE, GAP, AFTER = 16, 8, 8  # at most so many bars before an infill, in it and after it


def read_pieces(folders: Sequence[Path], vocabulary: Vocabulary, setup: Setup | None = None) -> dict[Path, np.ndarray]:
    """The base tokens of every piece under some folders, by file. Unreadable ones are named and counted by `setup.say`.

    Raises InputError or MediaError where there is nothing to learn from.
    """
    pieces: dict[Path, np.ndarray] = {}

    def read(path: Path) -> None:
        tokens = vocabulary.encode(Midi.open(path).score)
        if len(tokens) < 8:
            raise MediaError(f"{path} holds too few notes")
        pieces[path] = tokens

    paths = readable(list_files(folders, files.SUFFIXES["midi"]), read, setup)
    return {path: pieces[path] for path in paths}


class Augment:
    """A piece -> a line, drawn by its generator: key, tempo, loudness, and the task it teaches.

    transpose: semitones at most, down and (but one) up; tempo, velocity: levels at most; shares: of the tasks, by name.
    """

    def __init__(
        self, vocabulary: Vocabulary, *, transpose: int, tempo: int, velocity: int, shares: Mapping[str, float]
    ) -> None:
        self.vocabulary = vocabulary
        self.transpose, self.tempo, self.velocity = transpose, tempo, velocity
        self.shares = dict(shares)

    def __call__(self, piece: np.ndarray, generator: torch.Generator) -> tuple[np.ndarray, ...]:
        """Tokens, place, bar and weight, int64 [T] each."""
        draw = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        v = self.vocabulary
        try:
            moved = v.transpose(piece, int(draw.integers(-self.transpose, max(self.transpose, 1))))
        except ValueError:  # the piece spans nearly all pitches
            moved = piece
        moved = v.shift(moved, "Tempo", int(draw.integers(-self.tempo, self.tempo + 1)))
        moved = v.shift(moved, "Velocity", int(draw.integers(-self.velocity, self.velocity + 1)))
        chance, task = draw.random(), "continue"
        for name, share in self.shares.items():
            if chance < share:
                task = name
                break
            chance -= share
        return self.line(moved, task, draw).arrays(v)

    def line(self, piece: np.ndarray, task: str, draw: np.random.Generator) -> tasks.Line:
        """A line that teaches a task; plain music where the piece is too short for it or has a single part."""
        v = self.vocabulary
        key = v.key_of(piece)
        end = [v.special("EOS")]
        if task == "continue":
            line = tasks.start(v, key)
            _, bar = v.clock(piece)
            line.tokens += piece.tolist()
            line.bar += bar.tolist()
            line.weight += [1] * len(piece)
            line.add(end, line.bar[-1], 1)
            return line
        all_bars = v.bars(piece)
        first = int(draw.integers(0, max(1, len(all_bars) - WINDOW + 1)))
        bars = [Bar.parse(v, bar) for bar in all_bars[first : first + WINDOW]]
        number = first + 1
        programs = sorted({event.program for bar in bars for event in bar.events if event.program != -1})
        if len(bars) < 4 or (task == "accompany" and len(programs) < 2):
            return self.line(piece, "continue", draw)
        if task == "infill":
            gap = int(draw.integers(1, min(GAP, len(bars) - 2) + 1))
            before = int(draw.integers(0, min(BEFORE, len(bars) - gap) + 1))
            line = tasks.start(v, key, "Infill")
            after = bars[before + gap : before + gap + AFTER]
            tasks.infill(v, line, bars[:before], after, number, gap)
            tasks.plain(line, bars[before : before + gap], number + before)
        elif task == "accompany":
            given = draw.permutation(programs)[: int(draw.integers(1, len(programs)))].tolist()
            line = tasks.start(v, key, "Accompany")
            for n, heard in enumerate(bars, number):
                tasks.accompany(v, line, heard, n, given)
        else:
            before = int(draw.integers(0, min(BEFORE, len(bars) - 1) + 1))
            line = tasks.start(v, key, task.capitalize())
            tasks.plain(line, bars[:before], number)
            for n, heard in enumerate(bars[before:], number + before):
                tasks.vary(v, line, heard, n, task.capitalize())
        line.add(end, line.bar[-1], 1)
        return line


class LaneSampler:
    """The segment of every lane at a position: item `lane` of "epoch" `position`."""

    def __init__(self, lanes: int, seed: int) -> None:
        self.lanes, self.seed = lanes, seed

    def batch(self, position: int) -> list[Draw]:
        return [Draw(lane, position, self.seed) for lane in range(self.lanes)]


class Lanes(Dataset[dict[str, Tensor]]):
    """Lanes of lines, cut into segments. Indexed by a Draw of `LaneSampler`: lane, and the segment's number as epoch.

    Each lane has every `lanes`-th piece of a shuffled order, a new order each time round. An item is a dict of int64
    [segment] tensors: tokens, target (what follows each), place, bar, piece (numbered within the lane) and weight (1
    where the target counts). The same Draw always gives the same item: a lane that is asked for what it has passed, or
    not yet reached, is run through from its beginning.
    """

    def __init__(self, pieces: Sequence[np.ndarray], augment: Augment, *, lanes: int, segment: int, seed: int) -> None:
        self.pieces, self.augment = list(pieces), augment
        self.lanes, self.segment, self.seed = lanes, segment, seed
        self._running: dict[int, _Lane] = {}

    def __len__(self) -> int:
        return self.lanes

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        lane = self._running.get(int(draw))
        if lane is None or lane.number > draw.epoch:
            lane = self._running[int(draw)] = _Lane(self, int(draw))
        while lane.number < draw.epoch:
            lane.next()
        return lane.next()

    def line(self, number: int) -> tuple[np.ndarray, ...]:
        """The n-th piece of all lanes together, as a line."""
        epoch, place = divmod(number, len(self.pieces))
        order = torch.randperm(len(self.pieces), generator=Draw(0, epoch, self.seed).generator("order"))
        piece = int(order[place])
        return self.augment(self.pieces[piece], Draw(piece, epoch, self.seed).generator())

    def __getstate__(self) -> dict[str, Any]:  # a reading process runs its own
        return {**self.__dict__, "_running": {}}


class _Lane:
    """One lane on its way."""

    def __init__(self, lanes: Lanes, lane: int) -> None:
        self.all, self.lane = lanes, lane
        self.number = 0
        """The segment that comes next."""
        self._lines = 0
        self._rest = [np.zeros(0, np.int64) for _ in range(5)]  # tokens, place, bar, weight, piece

    def next(self) -> dict[str, Tensor]:
        t = self.all.segment
        while len(self._rest[0]) < t + 1:  # one more: the last target
            line = self.all.line(self._lines * self.all.lanes + self.lane)
            line = (*line, np.full(len(line[0]), self._lines, np.int64))
            self._rest = [np.concatenate(pair) for pair in zip(self._rest, line, strict=True)]
            self._lines += 1
        tokens, place, bar, weight, piece = (torch.from_numpy(part[: t + 1]) for part in self._rest)
        self._rest = [part[t:] for part in self._rest]
        self.number += 1
        follows = piece[1:] == piece[:-1]  # what comes first in a piece does not follow from the one before
        return {
            "tokens": tokens[:-1].clone(),
            "target": tokens[1:].clone(),
            "place": place[:-1].clone(),
            "bar": bar[:-1].clone(),
            "piece": piece[:-1].clone(),
            "weight": weight[1:] * follows,
        }
