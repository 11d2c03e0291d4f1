"""Music to learn from, made of recorded notes: every note of a song is a recording of a key, placed where it is struck.

Recordings of music in full band and free of rights are rare. Songs as MIDI are not, and have what single notes lack:
chords, phrases and dynamics. Both together give any amount of music that is full to half its rate.

Names of recordings: `FF_As2.flac` is a dynamic mark (ppp to fff, in any case), a letter, `s` or `#` for sharp or `b`
for flat, and an octave, which may be negative; `v100_60.flac` is a MIDI velocity and a MIDI key; without the first
part a recording counts as mf. The octave of middle C is 3, as with many samplers: A3 is 440 Hz. So it is for
SplendidGrandPiano (measured: A3 441 Hz, C4 525 Hz, B-1 has partials every 30.8 Hz); `middle_c=4` is for names in
scientific pitch.

Choices made here:
- A note takes the recording of the nearest strength within REACH semitones, or else the nearest in pitch, and is raised
  rather than lowered if both are as near: lowered by two semitones, it ends at 19.6 kHz.
- The files are taken to be of one loudness, as sample libraries normalise them: loudness is (velocity / 127)^2, the
  rule of sampler formats (SFZ, DLS), and the mark of a recording is only its colour.
- What is struck when, how hard and how long is told by `keyboard`: one piano plays all parts but drums.
- Nothing limits or normalises: HEADROOM keeps chords below full scale, and a crop is that stretch of the whole.

T: samples.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from genkit.errors import GenkitError, InputError, MediaError
from genkit.media import _sounds, files, sampling
from genkit.media.audio import Audio
from genkit.training.data import list_files, readable
from genkit.training.task import Setup
from pipelines.audio_super_resolution.train.keyboard import MARKS, Events, events

__all__ = ["Notes", "Recording", "Songs"]

REACH = 2  # semitones that a recording is moved for the sake of the right strength
CENT = 2 ** (1 / 1200) - 1
RELEASE = 0.15  # seconds in which a damped string falls silent
END = 0.25  # seconds at the end of a recording, which may stop before the string does
HEADROOM = 0.25

_NAME = re.compile(
    r"(?:(?P<mark>p{1,3}|mp|mf|f{1,3})_|v(?P<velocity>\d{1,3})_)?"
    r"(?:(?P<key>\d{1,3})|(?P<letter>[a-g])(?P<sign>[s#b]?)(?P<octave>-?\d))",
    re.IGNORECASE,
)
_LETTERS = {"c": 0, "d": 2, "e": 4, "f": 5, "g": 7, "a": 9, "b": 11}


class Recording(NamedTuple):
    """One recorded note. pitch: MIDI key, 0 to 127 (69: 440 Hz); velocity: 1 to 127, how hard the key was struck."""

    pitch: int
    velocity: int
    path: Path

    @classmethod
    def named(cls, path: Path, middle_c: int = 3) -> Recording:
        """By its name; see the module's docstring. Raises MediaError."""
        found = _NAME.fullmatch(path.stem)
        if found:
            velocity = int(found["velocity"]) if found["velocity"] else MARKS[(found["mark"] or "mf").lower()]
            pitch = int(found["key"]) if found["key"] else _key(found, middle_c)
            if 0 <= pitch <= 127 and 1 <= velocity <= 127:
                return cls(pitch, velocity, path)
        raise MediaError(f"{path}: the name tells no strength and pitch; name it like FF_As2.flac or v100_60.flac")


def _key(name: re.Match[str], middle_c: int) -> int:
    sign = {"": 0, "s": 1, "#": 1, "b": -1}[name["sign"].lower()]
    return 60 + 12 * (int(name["octave"]) - middle_c) + _LETTERS[name["letter"].lower()] + sign


class Notes:
    """An instrument: the recorded notes of a folder, each decoded and moved in pitch when it is first played.

    memory: bytes of sounds that are kept ready, in 16 bits; the least recently played go first.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rate: int = 44100,
        keep: Callable[[int], bool] | None = None,
        middle_c: int = 3,
        memory: int = 1 << 29,
        setup: Setup | None = None,
    ) -> None:
        """rate: Hz of the music; keep: says of each place in the order of pitch, then strength, whether the recording
        there is used (default: all); middle_c: the octave that names have for it.

        Files with other names, and unreadable ones, are left out by name, or refused if `setup.strict`. Raises
        MediaError, an InputError, where none is left, and for a rate out of bounds.
        """
        _sounds.check_bounds(1, 1, rate, name="the music")
        paths = list_files([folder], files.SUFFIXES["audio"])
        paths = readable(paths, lambda path: Recording.named(path, middle_c), setup)
        named = sorted(Recording.named(path, middle_c) for path in paths)
        kept = {r.path: r for place, r in enumerate(named) if keep is None or keep(place)}
        if not kept:
            raise InputError(f"{folder}: none of its {len(named)} notes is in this part; give more notes")
        self.rate, self.memory = rate, memory
        self.recordings = [kept[path] for path in readable(list(kept), _mono, setup)]
        self._chosen: dict[tuple[int, int], Recording] = {}
        self._ready: OrderedDict[tuple[Path, int], tuple[Tensor, float]] = OrderedDict()
        self.used = 0
        """Bytes of sounds that are ready."""

    @classmethod
    def split(cls, folder: Path, share: float, **options: Any) -> tuple[Notes, Notes]:
        """For training and held out: of the recordings in order of pitch every 1 / share-th is held out, which takes
        from the whole keyboard and from every strength. options: of the class. Raises InputError."""
        if not 0 < share <= 0.5:
            raise InputError(f"a held-out share of {share} is not valid; give one above 0, at most 0.5")
        every = round(1 / share)
        return (
            cls(folder, keep=lambda place: place % every != every // 2, **options),
            cls(folder, keep=lambda place: place % every == every // 2, **options),
        )

    def __len__(self) -> int:
        return len(self.recordings)

    def choose(self, pitch: int, velocity: int) -> Recording:
        """The recording that a key is played with."""
        if (pitch, velocity) not in self._chosen:
            self._chosen[pitch, velocity] = self._nearest(pitch, velocity)
        return self._chosen[pitch, velocity]

    def _nearest(self, pitch: int, velocity: int) -> Recording:
        def cost(recording: Recording) -> tuple[int, int, int, bool]:
            shift = pitch - recording.pitch
            return max(abs(shift), REACH), abs(velocity - recording.velocity), abs(shift), shift < 0

        return min(self.recordings, key=cost)

    def note(self, pitch: int, velocity: int) -> Tensor:
        """What a key sounds like that is held, [T] float32, full scale at velocity 127. pitch, velocity: of MIDI."""
        sound, gain = self.ready(pitch, velocity)
        return sound.float() * gain

    def ready(self, pitch: int, velocity: int) -> tuple[Tensor, float]:
        """The same as int16 [T], and what to multiply it by."""
        recording = self.choose(pitch, velocity)
        key = recording.path, pitch
        if key not in self._ready:
            self._keep(key, self._moved(recording, pitch))
        self._ready.move_to_end(key)
        sound, scale = self._ready[key]
        return sound, scale * (velocity / 127) ** 2

    def _keep(self, key: tuple[Path, int], entry: tuple[Tensor, float]) -> None:
        self._ready[key] = entry
        self.used += entry[0].nbytes
        while self.used > self.memory and len(self._ready) > 1:
            self.used -= self._ready.popitem(last=False)[1][0].nbytes

    def _moved(self, recording: Recording, pitch: int) -> tuple[Tensor, float]:
        """The recording at this pitch and rate, faded at its end, as int16 [T] of full range, and its scale."""
        sound, rate = _mono(recording.path)
        ratio = _ratio(self.rate / rate * 2 ** ((recording.pitch - pitch) / 12))
        sound = sampling.resample(sound, ratio.denominator, ratio.numerator)
        fade = _falling(min(sound.shape[0], round(END * self.rate)))
        sound[sound.shape[0] - fade.shape[0] :] *= fade
        scale = max(float(sound.abs().max()), 1e-9) / 32767
        return (sound / scale).round().to(torch.int16), scale

    def __getstate__(self) -> dict[str, Any]:  # a reading process keeps its own
        return {**self.__dict__, "_ready": OrderedDict(), "used": 0}


def _mono(path: Path) -> tuple[Tensor, int]:
    """[T] and its rate."""
    audio = Audio.open(path)
    return audio.samples.mean(0), audio.sample_rate


def _ratio(value: float) -> Fraction:
    """The simplest fraction within a cent: 84/89 and 49/55 for a semitone and a tone."""
    bound = 100
    while abs((found := Fraction(value).limit_denominator(bound)) / Fraction(value) - 1) > CENT:
        bound *= 2
    return found


def _falling(length: int) -> Tensor:
    """Half a cosine from 1 to 0, [length]."""
    return 0.5 + 0.5 * torch.cos(math.pi * (torch.arange(length, dtype=torch.float64) + 0.5) / length).float()


# ------------------------------------------------------------------------------------------------------------- songs


class Songs:
    """Songs, played on an instrument: any stretch of any of them, the same at every call."""

    def __init__(
        self,
        songs: Sequence[Path],
        notes: Notes,
        rate: int | None = None,
        *,
        bits: int | None = 16,
        setup: Setup | None = None,
    ) -> None:
        """songs: MIDI files; rate: Hz, that of the notes; bits: what the music is rounded to, as a file would hold it
        (None: not at all). Unreadable songs are left out by name, or refused if `setup.strict`.

        Raises InputError for another rate than the notes have and for no songs, MediaError if none can be read.
        """
        if rate not in (None, notes.rate):
            raise InputError(f"the notes are at {notes.rate} Hz; give them `rate={rate}` to play songs at it")
        if not songs:
            raise InputError("no songs are given; name MIDI files")
        self.notes, self.rate, self.bits = notes, notes.rate, bits
        self._release = _falling(round(RELEASE * self.rate))
        found: dict[Path, Events] = {}

        def read(path: Path) -> None:
            found[path] = events(path, self.rate)

        self.paths = readable(songs, read, setup)
        self.events = [found[path] for path in self.paths]

    def __len__(self) -> int:
        return len(self.paths)

    def length(self, song: int) -> int:
        """Samples until the last note has been damped."""
        return int(self.events[song].end.max()) + self._release.shape[0]

    def duration(self, song: int) -> float:
        """Seconds until the last note has been damped."""
        return self.length(song) / self.rate

    def crop(self, song: int, start_seconds: float, samples: int) -> Tensor:
        """The music from a time on, float32 [samples]; silence after the end. It equals that stretch of the whole.

        Raises InputError for a time before the song, or no samples."""
        if not (start_seconds >= 0 and samples > 0):
            raise InputError(
                f"{samples} samples from {start_seconds} s are no stretch of a song; give ones from 0 s on"
            )
        played, begin = self.events[song], round(start_seconds * self.rate)
        out = torch.zeros(samples)
        sounding = (played.start < begin + samples) & (played.end + self._release.shape[0] > begin)
        for i in np.flatnonzero(sounding):
            sound, gain = self.notes.ready(int(played.pitch[i]), int(played.velocity[i]))
            self._add(out, begin, sound, gain * HEADROOM, int(played.start[i]), int(played.end[i]))
        return out if self.bits is None else sampling.quantise(out, self.bits)

    def _add(self, out: Tensor, begin: int, sound: Tensor, gain: float, start: int, end: int) -> None:
        """Adds the part of a note that sounds in `out` [T], which begins at sample `begin` of the song."""
        first = max(start, begin)
        last = min(start + sound.shape[0], end + self._release.shape[0], begin + out.shape[0])
        if last <= first:
            return
        part = sound[first - start : last - start] * gain
        if last > end:
            damped = max(first, end)
            part[damped - first :] *= self._release[damped - end : last - end]
        out[first - begin : last - begin] += part

    def render(self, song: int, seconds: float | None = None) -> Audio:
        """The whole song, or as much of its beginning, as a sound of one channel. Raises MediaError if too long."""
        length = self.length(song) if seconds is None else min(self.length(song), round(seconds * self.rate))
        if length > _sounds.limit(None):
            raise MediaError(f"{self.paths[song]}: {length / self.rate:,.0f} s are too long to render; give `seconds`")
        return Audio(self.crop(song, 0.0, length), self.rate)


# --------------------------------------------------------------------------------------------------- from the console


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes songs as FLAC. Raises InputError, MediaError, DiskFull."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.audio_super_resolution.train.notes",
        description="Renders MIDI songs with recorded notes, to OUT/<song>.flac, 16 bits, mono.",
    )
    parser.add_argument("notes", type=Path, help="folder of recorded notes, named like FF_As2.flac")
    parser.add_argument("songs", type=Path, help="folder of MIDI songs, or one song")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--rate", type=int, default=44100, help="Hz (default: %(default)s)")
    parser.add_argument("--held-out", type=float, default=0.1, help="share of the notes (default: %(default)s)")
    parser.add_argument("--part", choices=["all", "train", "held"], default="all", help="which notes (default: all)")
    parser.add_argument("--limit", type=int, help="at most so many songs")
    parser.add_argument("--seconds", type=float, help="at most so much of each song")
    given = parser.parse_args(arguments)
    if (given.limit is not None and given.limit < 1) or (given.seconds is not None and not given.seconds > 0):
        raise InputError("--limit and --seconds must be above 0; leave them out for everything")
    _write(given)


def _write(given: argparse.Namespace) -> None:
    setup = Setup(device=torch.device("cpu"), say=lambda text: print(text, file=sys.stderr))  # noqa: T201
    options: dict[str, Any] = {"rate": given.rate, "setup": setup}
    if given.part == "all":
        notes = Notes(given.notes, **options)
    else:
        notes = Notes.split(given.notes, given.held_out, **options)[given.part == "held"]
    paths = list_files([given.songs], files.SUFFIXES["midi"]) if given.songs.is_dir() else [given.songs]
    songs = Songs(paths[: given.limit], notes, setup=setup)
    given.out.mkdir(parents=True, exist_ok=True)
    for song in track(range(len(songs)), "songs", console=Console(stderr=True)):
        _save(songs.render(song, given.seconds), given.out / f"{songs.paths[song].stem}.flac")


def _save(sound: Audio, path: Path) -> None:
    """Writes what is not there yet; a file with another sound in it is never replaced."""
    if not path.exists():
        sound.save(path, bits=16)
    elif not _same(Audio.open(path), sound):
        raise InputError(f"{path} holds another sound; remove it, or write to another folder")


def _same(a: Audio, b: Audio) -> bool:
    return a.sample_rate == b.sample_rate and torch.equal(a.samples, b.samples)


if __name__ == "__main__":
    try:
        main()
    except GenkitError as error:
        sys.exit(f"error: {error}")
