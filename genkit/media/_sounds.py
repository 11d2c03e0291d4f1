"""The codecs behind `Audio`, through libsndfile; and the checks that it does not make.

libsndfile takes a WAV's word for its length and its compression, so a WAV's chunks are walked here first. An OGG
stream's serial number is random there; it is set to 1 afterwards, so that the same sound is the same bytes.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
import soundfile

from genkit.errors import InputError, MediaError
from genkit.media import files

__all__ = [
    "BLOCK",
    "MAX_SAMPLES",
    "check_bounds",
    "check_finite",
    "check_whole",
    "coding",
    "encode",
    "fix_serial",
    "limit",
    "not_held",
    "opened",
    "read",
]

MAX_SAMPLES = 400_000_000  # 1.6 GB of float32: 75 minutes of CD stereo
MAX_CHANNELS = 64
RATES = (1_000, 768_000)  # Hz
BLOCK = 1 << 16  # frames read or written at once; libsndfile's Vorbis encoder overflows its stack on very long blocks

_WAV_CODECS = {1: "PCM", 3: "float", 6: "A-law", 7: "mu-law"}
_EXTENSIBLE = 0xFFFE
_OPTIONS = {"WAV": "bits", "FLAC": "bits", "OGG": "quality", "MP3": "quality"}
_SUBTYPE = {"OGG": "VORBIS", "MP3": "MPEG_LAYER_III"}


def limit(max_samples: int | None) -> int:
    """The most samples taken: the argument, GENKIT_MAX_SAMPLES, or MAX_SAMPLES."""
    if max_samples is not None:
        return max_samples
    text = os.environ.get("GENKIT_MAX_SAMPLES") or str(MAX_SAMPLES)
    if not text.isdecimal():
        raise InputError(f"GENKIT_MAX_SAMPLES is {text[:40]!r}; give a number of samples, such as {MAX_SAMPLES}")
    return int(text)


def check_bounds(channels: int, frames: int, rate: int, *, name: str) -> None:
    """Raises MediaError for no samples, too many channels, or a rate that is none."""
    if frames < 1 or channels < 1:
        raise MediaError(f"{name} is empty: it has no samples")
    if channels > MAX_CHANNELS:
        raise MediaError(f"{name} has {channels} channels; at most {MAX_CHANNELS} are taken")
    if not RATES[0] <= rate <= RATES[1]:
        raise MediaError(f"{name} has a rate of {rate} Hz; {RATES[0]} to {RATES[1]} Hz are taken")


@contextlib.contextmanager
def opened(file: BinaryIO, name: str) -> Iterator[soundfile.SoundFile]:
    """A sound file whose header has been checked. Raises MediaError, while it is read too; `name` opens its message."""
    start = file.read(16)
    found = files.sniff(start)
    if found is None or found[0] != "audio":
        what = f"is a file of kind {found[0]}" if found else "is not a sound that is known" if start else "is empty"
        raise MediaError(f"{name} {what}; give a WAV, FLAC, OGG or MP3")
    if found[1] == "WAV":
        _check_wav(file, name)
    file.seek(0)
    try:
        with soundfile.SoundFile(file) as sound:
            check_bounds(sound.channels, sound.frames, sound.samplerate, name=name)
            yield sound
    except soundfile.LibsndfileError as error:
        raise MediaError(f"{name}: the {found[1]} sound is damaged or cut off ({error.error_string})") from error


def read(file: BinaryIO, name: str, limit: int) -> tuple[np.ndarray, int]:
    """Samples float32 [C, T] and the rate. Raises MediaError; `name` opens its message."""
    with opened(file, name) as sound:
        declared, channels, rate = sound.frames, sound.channels, sound.samplerate
        if declared * channels > limit:
            length = f"{declared / rate:.0f} s in {channels} channels"
            raise MediaError(f"{name}: {length} is over the limit of {limit} samples; cut it or set GENKIT_MAX_SAMPLES")
        blocks = list(_blocks(sound, declared))
        check_whole(sound, sum(len(block) for block in blocks), name)
    samples = np.concatenate(blocks).T
    check_finite(samples, rate, name)
    return np.ascontiguousarray(samples), rate


def check_whole(sound: soundfile.SoundFile, frames: int, name: str) -> None:
    """Raises MediaError if fewer frames came out of a file than it declares."""
    # MP3 has no length of its own, only an estimate; in the other formats the number is exact.
    if frames < sound.frames * (0.5 if sound.format == "MP3" else 1):
        held = f"declares {sound.frames / sound.samplerate:.2f} s but holds {frames / sound.samplerate:.2f} s"
        raise MediaError(f"{name} {held}: it is damaged or cut off")


def _blocks(sound: soundfile.SoundFile, declared: int) -> Iterator[np.ndarray]:
    """Blocks [T, C]. Memory grows with what is there, never with what is declared."""
    while declared > 0:
        block = sound.read(min(BLOCK, declared), dtype="float32", always_2d=True)
        if not len(block):
            return
        declared -= len(block)
        yield block


def check_finite(samples: np.ndarray, rate: int, name: str, before: int = 0) -> None:
    """samples: [C, T], `before` frames of the file being before them. Raises MediaError."""
    bad = ~np.isfinite(samples).all(axis=0)
    if bad.any():
        place = (before + bad.argmax()) / rate
        raise MediaError(f"{name} holds NaN or infinity, first at {place:.3f} s; repair it in an editor")


def _check_wav(file: BinaryIO, name: str) -> None:
    """Codec and length from the chunks of a WAV (RIFF, RIFX or RF64), before libsndfile sees it."""
    file.seek(0)
    head = file.read(12)
    order = ">" if head[:4] == b"RIFX" else "<"
    end = file.seek(0, os.SEEK_END)
    place = 12
    while place + 8 <= end:
        file.seek(place)
        chunk, size = struct.unpack(order + "4sI", file.read(8))
        if chunk == b"fmt ":
            _check_codec(file.read(min(size, 40)), order, name)
        if chunk == b"data":
            # A recorder that was writing to a pipe leaves the size at its greatest or at zero: then it is unknown.
            if size < 0xFFFFF000 and place + 8 + size > end + 1:
                held = f"declares {size} bytes of sound but holds {end - place - 8}"
                raise MediaError(f"{name} {held}: it is damaged or cut off")
            return
        place += 8 + size + size % 2
    raise MediaError(f"{name}: the WAV has no sound in it; it is damaged or cut off")


def _check_codec(fmt: bytes, order: str, name: str) -> None:
    if len(fmt) < 16:
        raise MediaError(f"{name}: the WAV's format chunk is cut off")
    (code,) = struct.unpack_from(order + "H", fmt)
    if code == _EXTENSIBLE and len(fmt) >= 26:
        (code,) = struct.unpack_from(order + "H", fmt, 24)  # the first two bytes of the sub-format's GUID
    if code not in _WAV_CODECS:
        known = ", ".join(_WAV_CODECS.values())
        raise MediaError(f"{name}: a WAV of codec 0x{code:04X} is not read (only {known}); convert it to PCM")


def encode(samples: np.ndarray, rate: int, format: str, options: dict[str, Any]) -> bytes:
    """samples: float32 [C, T]."""
    settings, convert = coding(format, options)
    buffer = io.BytesIO()
    try:
        with soundfile.SoundFile(buffer, "w", rate, len(samples), format=format, **settings) as sound:
            for place in range(0, samples.shape[1], BLOCK):
                sound.write(convert(samples[:, place : place + BLOCK]))
    except soundfile.LibsndfileError as error:
        raise not_held(format, len(samples), rate, error) from error
    if format == "OGG":
        fix_serial(buffer)
    return buffer.getvalue()


def not_held(format: str, channels: int, rate: int, error: soundfile.LibsndfileError) -> MediaError:
    what = f"{channels} channels at {rate} Hz"
    return MediaError(f"{format} does not hold {what} ({error.error_string}); use .wav, or resample")


def coding(format: str, options: dict[str, Any]) -> tuple[dict[str, Any], Callable[[np.ndarray], np.ndarray]]:
    """What libsndfile is told of a format and its options (see `Audio.encoded`), and what turns float32 [C, T] into the
    [T, C] that it writes. Raises MediaError."""
    option = _OPTIONS[format]
    unknown = set(options) - {option}
    if unknown:
        raise MediaError(f"{format} has no option {sorted(unknown)[0]!r}; it takes {option}")
    if option == "bits":
        bits = options.get("bits", 24)
        if bits not in (16, 24):
            raise MediaError(f"bits {bits!r} is not valid: {format} is written at 16 or 24")
        return {"subtype": f"PCM_{bits}"}, lambda samples: np.ascontiguousarray(_integers(samples, bits).T)
    quality = options.get("quality", 80)
    if not isinstance(quality, int) or not 1 <= quality <= 100:
        raise MediaError(f"quality {quality!r} is not valid: give a whole number from 1 to 100")
    settings: dict[str, Any] = {"subtype": _SUBTYPE[format], "compression_level": (100 - quality) / 100}
    if format == "MP3":
        settings["bitrate_mode"] = "CONSTANT"
    return settings, lambda samples: np.ascontiguousarray(np.clip(samples, -1, 1).T)


def _integers(samples: np.ndarray, bits: int) -> np.ndarray:
    """Rounded and clipped to `bits`, in the upper bits of an int32, which libsndfile then cuts without loss."""
    top = 2 ** (bits - 1)
    rounded = np.clip(np.rint(samples.astype(np.float64) * top), -top, top - 1)
    return rounded.astype(np.int32) << (32 - bits)


def fix_serial(file: BinaryIO) -> None:
    """Gives every page of an OGG stream the serial number 1, with its checksum, in place."""
    from mutagen.ogg import OggPage

    end = file.seek(0, os.SEEK_END)
    place = file.seek(0)
    while place < end:
        page = OggPage(file)
        page.serial = 1
        following = file.tell()
        file.seek(place)
        file.write(page.write())  # as long as it was
        place = file.seek(following)
