"""Pairs of a sound and what is left of it after bad converters: crops from files of any length, or from music that is
made of single notes (`notes`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from genkit.errors import InputError, MediaError
from genkit.media import files
from genkit.media.sampling import degrade, random_filter, resample
from genkit.media.streaming import Reader
from genkit.training.data import Draw, list_files, readable
from genkit.training.task import Setup
from pipelines.audio_super_resolution.train.notes import Notes, Songs

__all__ = ["Degradation", "Files", "Music", "Pairs", "Source", "split", "whole"]

QUIET = 1e-3  # root mean square of a crop that teaches little: such crops are drawn again
TRIES = 4


class Source(Protocol):
    """Where crops come from."""

    seconds: float
    """Of sound in all."""

    def crop(self, generator: torch.Generator, samples: int) -> Tensor:
        """[T], `samples` of them, from a place that the generator draws."""


def split(folder: Path, share: float) -> tuple[list[Path], list[Path]]:
    """The sounds under a folder, sorted by name: (to learn from, held out); of every 1 / share the last is held out.

    Raises InputError where there is none.
    """
    paths = list_files([folder], files.SUFFIXES["audio"])
    held = [math.floor((n + 1) * share + 1e-9) > math.floor(n * share + 1e-9) for n in range(len(paths))]
    return [p for p, out in zip(paths, held, strict=True) if not out], [
        p for p, out in zip(paths, held, strict=True) if out
    ]


class Files:
    """Sound files, each read only where a crop lies; every second of them is as likely. One channel, drawn."""

    def __init__(self, paths: Sequence[Path], rate: int, setup: Setup | None = None) -> None:
        """rate: Hz; files below it hold no treble to learn and are left out by name. Raises MediaError."""
        self.rate = rate
        self._lengths: dict[Path, float] = {}
        self.paths = readable(paths, self._measure, setup)
        self.seconds = sum(self._lengths[path] for path in self.paths)
        self._ends = torch.tensor([self._lengths[path] for path in self.paths], dtype=torch.float64).cumsum(0)

    def _measure(self, path: Path) -> None:
        with Reader(path) as sound:
            if sound.sample_rate < self.rate:
                raise MediaError(f"{path} has {sound.sample_rate} Hz, less than the {self.rate} to be learnt")
            self._lengths[path] = sound.frames / sound.sample_rate

    def crop(self, generator: torch.Generator, samples: int) -> Tensor:
        place = float(torch.rand((), generator=generator, dtype=torch.float64)) * self.seconds
        number = min(int(torch.searchsorted(self._ends, place, right=True)), len(self.paths) - 1)
        path = self.paths[number]
        share = float(torch.rand((), generator=generator, dtype=torch.float64))
        with Reader(path) as sound:
            count = math.ceil(samples * sound.sample_rate / self.rate)
            start = int(share * max(0, sound.frames - count + 1))
            channel = int(torch.randint(sound.channels, (), generator=generator))
            found = resample(sound.read(start, count)[channel], sound.sample_rate, self.rate)[:samples]
        return torch.nn.functional.pad(found, (0, samples - len(found)))


class Music:
    """Songs played with single recorded notes, all through a random song and a random place in it."""

    def __init__(self, songs: Songs) -> None:
        self.songs = songs
        self._lengths = [songs.duration(number) for number in range(len(songs))]
        self.seconds = sum(self._lengths)

    @classmethod
    def of(cls, folders: Sequence[Path], notes: Notes, setup: Setup | None = None) -> Music:
        """Raises InputError or MediaError where there is no song to play."""
        return cls(Songs(list_files(folders, files.SUFFIXES["midi"]), notes, setup=setup))

    def crop(self, generator: torch.Generator, samples: int) -> Tensor:
        song = int(torch.randint(len(self._lengths), (), generator=generator))
        share = float(torch.rand((), generator=generator, dtype=torch.float64))
        latest = max(0.0, self._lengths[song] - samples / self.songs.rate)
        return self.songs.crop(song, share * latest, samples)


class Degradation:
    """How crops become dull: sampled at one of some rates through one of many filters, or cut where chance has it.

    rates: Hz; cuts: share of crops that keep their rate and are only cut off somewhere between half the lowest rate and
    nine tenths of the full band, as lossy encoders do; plain: share of the others that are filtered as `resample` does,
    which is how most files in the world were made.
    """

    def __init__(self, rate: int, rates: Sequence[int], *, cuts: float = 0.2, plain: float = 0.4) -> None:
        if not rates or not 0 < min(rates) <= max(rates) < rate:
            raise InputError(f"from_rates {list(rates)} must be above 0 and below the rate {rate}")
        self.rate, self.rates, self.cuts, self.plain = rate, list(rates), cuts, plain

    def __call__(self, true: Tensor, generator: torch.Generator) -> Tensor:
        """[T] -> [T]"""
        kind, choice, place = torch.rand(3, generator=generator).tolist()
        filter = random_filter(generator)
        if kind < self.cuts:
            low, high = min(self.rates) / 2, 0.45 * self.rate
            how = {"new": self.rate, "cutoff": low * (high / low) ** place}
        else:
            how = {"new": self.rates[int(place * len(self.rates))], "restore": "sinc"}
            filter = filter if choice >= self.plain else {"filter": "sinc"}
        try:
            return degrade(true, self.rate, **how, **filter)
        except InputError:  # a recursive filter so steep that it rings for longer than `degrade` allows
            return degrade(true, self.rate, **how, filter="fir")


class Pairs(Dataset[dict[str, Tensor]]):
    """{"true": [T], "dull": [T]}, each pair a pure function of its `Draw`; as many an epoch as the source has crops.

    crop: T; gain: decibels by which crops are made louder or softer at most, never so loud that they clip.
    """

    def __init__(self, source: Source, degradation: Degradation, crop: int, gain: float) -> None:
        self.source, self.degradation, self.crop, self.gain = source, degradation, crop, gain

    def __len__(self) -> int:
        return max(1, int(self.source.seconds * self.degradation.rate / self.crop))

    def __getitem__(self, draw: int) -> dict[str, Tensor]:
        generator = (draw if isinstance(draw, Draw) else Draw(draw)).generator()
        for _ in range(TRIES):
            true = self.source.crop(generator, self.crop)
            if true.square().mean().sqrt() > QUIET:
                break
        decibels = self.gain * (2 * float(torch.rand((), generator=generator)) - 1)
        true = true * min(10 ** (decibels / 20), 1 / max(float(true.abs().max()), 1e-3))
        return {"true": true, "dull": self.degradation(true, generator)}


def whole(path: Path, rate: int, seconds: float) -> Tensor:
    """The beginning of a file, [T] at `rate` Hz, all channels mixed: what validation hears."""
    with Reader(path) as sound:
        found = sound.read(0, int(seconds * sound.sample_rate))
        return resample(found.mean(0), sound.sample_rate, rate)
