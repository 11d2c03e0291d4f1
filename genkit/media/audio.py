"""Sound: WAV, FLAC, OGG and MP3 in, float32 samples and a rate out.

Choices made here:
- Samples are float32 in -1..1, [C, T]; a float WAV that is louder keeps its values until it is written, which clips.
- WAV and FLAC are written at 24 bits, all that a float32 in -1..1 holds; `bits=16` for players that want it. OGG
  (Vorbis) and MP3 (constant rate) take `quality` 1..100, 80 by default (about 180 and 256 kbit/s in stereo).
- The header is believed only as far as the file bears it out: its length is checked against the file's, samples are
  read in blocks, and what they take is capped (MAX_SAMPLES, raised by GENKIT_MAX_SAMPLES) before memory is taken.
- NaN and infinity are refused: the next filter would spread them over everything.
- Of WAV only PCM, float and G.711 are decoded; the IMA ADPCM decoder of libsndfile 1.2.2 has a hole (CVE-2026-37555).

C: channels; T: samples per channel.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

import numpy as np
import torch
from torch import Tensor

from genkit.errors import MediaError
from genkit.media import _sounds, files, sampling

if TYPE_CHECKING:
    from genkit.media.image import Image
    from genkit.media.provenance import Provenance

__all__ = ["MAX_SAMPLES", "Audio", "degrade"]

MAX_SAMPLES = _sounds.MAX_SAMPLES


class Audio:
    """A sound: `.samples` float32 [C, T] on the CPU, `.sample_rate` in Hz."""

    __genkit_media__: ClassVar[str] = "audio"

    def __init__(self, samples: Tensor | np.ndarray, sample_rate: int) -> None:
        """samples: [C, T] or [T], floats; 1 to 64 channels, at least one sample, none of them NaN or infinite."""
        tensor = torch.as_tensor(samples).detach().to("cpu", torch.float32)
        if tensor.ndim == 1:
            tensor = tensor[None]
        if tensor.ndim != 2:
            raise MediaError(f"a sound needs samples [C, T], not {list(tensor.shape)}")
        _sounds.check_bounds(tensor.shape[0], tensor.shape[1], sample_rate, name="the sound")
        if not torch.isfinite(tensor).all():
            raise MediaError("the sound holds NaN or infinity; its samples must be numbers in -1..1")
        self.samples = tensor.contiguous()
        self.sample_rate = int(sample_rate)

    @classmethod
    def open(cls, source: Any, *, max_samples: int | None = None) -> Audio:
        """A sound from a path, an Audio, or a file object.

        max_samples: the most samples taken, all channels together (default: GENKIT_MAX_SAMPLES, else MAX_SAMPLES).
        Raises MediaError: not there, not a sound, damaged, of a refused kind, or too large.
        """
        if isinstance(source, Audio):
            return source
        if isinstance(source, str | os.PathLike):
            with files.open_regular(source) as file:
                return cls._read(file, repr(str(source)), max_samples)
        if hasattr(source, "read"):
            return cls._read(source, "the sound", max_samples)
        raise MediaError(f"a {type(source).__name__} is not a sound; give a path, or Audio(samples, sample_rate)")

    @classmethod
    def _read(cls, file: BinaryIO, name: str, max_samples: int | None) -> Audio:
        array, rate = _sounds.read(file, name, _sounds.limit(max_samples))
        return cls(array, rate)

    @property
    def channels(self) -> int:
        return self.samples.shape[0]

    @property
    def frames(self) -> int:
        """Samples per channel."""
        return self.samples.shape[1]

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return self.frames / self.sample_rate

    def blocks(self, size: int = _sounds.BLOCK) -> Iterator[Tensor]:
        """The whole in blocks float32 [C, T], T = size but in the last: what a long sound is read by."""
        yield from self.samples.split(size, dim=1)

    def resample(self, sample_rate: int) -> Audio:
        """At another rate in Hz: windowed-sinc interpolation, band-limited to the lower of the two rates.

        The Kaiser window and its numbers are those of resampy's "kaiser_best". Raises MediaError for a pair of rates so
        odd that the filter would not fit in memory.
        """
        if sample_rate == self.sample_rate:
            return self
        _sounds.check_bounds(self.channels, 1, sample_rate, name="the resampled sound")
        return Audio(sampling.resample(self.samples, self.sample_rate, sample_rate), sample_rate)

    def spectrogram(self, *, width: int = 1024, height: int = 384) -> Image:
        """A picture of how loud each frequency is at each time; size in px. See `genkit.media.spectrogram`, which also
        draws several sounds one above the other. Raises MediaError for a size out of bounds."""
        from genkit.media import spectrogram

        return spectrogram.draw({"": self}, width=width, height=height)

    def digest(self) -> str:
        """sha256 (hex) of the decoded sound: rate, shape and float32 samples."""
        header = f"genkit audio {self.sample_rate} {self.channels}x{self.samples.shape[1]}\n".encode()
        return hashlib.sha256(header + self.samples.numpy().astype("<f4").tobytes()).hexdigest()

    def encoded(self, format: str, **options: Any) -> bytes:
        """The bytes of a file, without provenance; the same sound gives the same bytes. Beyond -1..1 it is clipped.

        format: "WAV", "FLAC", "OGG" or "MP3"; options: `bits` 16 or 24 (WAV, FLAC; default 24), `quality` 1..100 (OGG,
        MP3; default 80). Raises MediaError: an option that the format has not, or a rate or number of channels.
        """
        return _sounds.encode(self.samples.numpy(), self.sample_rate, format, options)

    def save(self, path: str | Path, provenance: Provenance | None = None, **options: Any) -> Path:
        """Writes the file atomically, with its provenance in it. The suffix is the format; options as in `encoded`.

        Returns the path. Raises MediaError (suffix, place, option), DiskFull.
        """
        from genkit.media import saving

        return saving.save(self, path, provenance, options)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """A player in a notebook, of the first five minutes in at most two channels."""
        start = Audio(self.samples[:2, : 300 * self.sample_rate], self.sample_rate)
        # MP3 plays in every browser and is small, but knows few rates.
        data = base64.b64encode(start.resample(44100).encoded("MP3", quality=60)).decode()
        player = f'<audio controls src="data:audio/mpeg;base64,{data}"></audio>'
        return {"text/html": player, "text/plain": repr(self)}

    def __repr__(self) -> str:
        return f"<genkit.Audio {self.duration:.2f} s, {self.channels} ch, {self.sample_rate} Hz>"


def degrade(
    audio: Audio,
    rate: int,
    *,
    bits: int | None = None,
    dither: int | None = None,
    filter: str = "chebyshev",
    order: int | None = None,
    cutoff: float | None = None,
    ripple: float = 0.05,
    attenuation: float = 60.0,
    antialias: bool = True,
    restore: str | None = None,
) -> Audio:
    """A sound as a worse converter would have made it; a training pair in one call is
    `degrade(sound, 8000, restore="spline"), sound`.

    rate: Hz, at most the sound's own; dither: a seed; the others, and what comes out: `genkit.media.sampling.degrade`.
    Raises InputError.
    """
    _sounds.check_bounds(audio.channels, 1, rate, name="the degraded sound")
    samples = sampling.degrade(
        audio.samples,
        audio.sample_rate,
        rate,
        bits=bits,
        dither=dither,
        filter=filter,
        order=order,
        cutoff=cutoff,
        ripple=ripple,
        attenuation=attenuation,
        antialias=antialias,
        restore=restore,
    )
    return Audio(samples, rate if restore is None else audio.sample_rate)
