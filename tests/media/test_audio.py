"""Sound: what is written is heard again; a header is not believed."""

from __future__ import annotations

import io
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from genkit.errors import MediaError
from genkit.media.audio import Audio

FORMATS = ("WAV", "FLAC", "OGG", "MP3")


def tone(seconds: float = 0.5, rate: int = 22050, channels: int = 2, pitch: float = 440.0) -> Audio:
    time = torch.arange(int(seconds * rate), dtype=torch.float64) / rate
    return Audio((0.5 * torch.sin(2 * math.pi * pitch * time)).expand(channels, -1), rate)


def wav(samples: np.ndarray, rate: int = 8000, subtype: str = "FLOAT") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype=subtype)
    return buffer.getvalue()


def riff(code: int, data: bytes, *, declared: int | None = None, channels: int = 1, bits: int = 16) -> bytes:
    """A WAV with any codec and any declared length of its sound."""
    fmt = struct.pack("<HHIIHH", code, channels, 8000, 8000 * channels * bits // 8, channels * bits // 8, bits)
    body = b"WAVEfmt " + struct.pack("<I", len(fmt)) + fmt
    body += b"data" + struct.pack("<I", len(data) if declared is None else declared) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("format", FORMATS)
def test_a_sound_comes_back_from_every_format(format: str) -> None:
    sound = tone()
    data = sound.encoded(format)
    assert data == sound.encoded(format), "the same sound is the same bytes"
    back = Audio.open(io.BytesIO(data))
    assert back.samples.shape == sound.samples.shape
    apart = (back.samples - sound.samples).abs().max()
    assert apart <= 2**-23 if format in ("WAV", "FLAC") else apart < 0.05
    if format in ("WAV", "FLAC"):
        assert Audio.open(io.BytesIO(back.encoded(format))).digest() == back.digest(), (
            "24 bits are written without loss"
        )


def test_sixteen_bits_and_clipping() -> None:
    loud = Audio(torch.tensor([[0.0, 1.0, -1.0, 3.0, -3.0]]), 8000)
    for bits in (16, 24):
        back = Audio.open(io.BytesIO(loud.encoded("WAV", bits=bits))).samples[0]
        top = 1 - 2.0 ** (1 - bits)
        assert back.tolist() == [0.0, top, -1.0, top, -1.0]


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"])
def test_ordinary_wavs_are_read(subtype: str) -> None:
    ramp = np.linspace(-0.9, 0.9, 2000)
    sound = Audio.open(io.BytesIO(wav(ramp, subtype=subtype)))
    assert np.abs(sound.samples[0].numpy() - ramp).max() < 0.03


@pytest.mark.parametrize("frames", [1, 2, 65536, 65537])
def test_any_length_survives(frames: int) -> None:
    sound = Audio(torch.rand(1, frames, generator=torch.Generator().manual_seed(0)) - 0.5, 8000)
    assert Audio.open(io.BytesIO(sound.encoded("FLAC"))).samples.shape == (1, frames)


def bad() -> dict[str, bytes]:
    flac = tone().encoded("FLAC")
    long_flac = bytearray(flac)
    long_flac[21:26] = bytes([flac[21] | 0x0F, 255, 255, 255, 255])  # STREAMINFO: 2^36 - 1 samples
    return {
        "empty file": b"",
        "no samples": riff(1, b""),
        "no data chunk": riff(1, b"")[:36],
        "IMA ADPCM": riff(0x11, bytes(512), bits=4),
        "MP3 in WAV": riff(0x55, bytes(512)),
        "ten hours declared": riff(1, bytes(1000), declared=8000 * 2 * 36000),
        "cut WAV": tone().encoded("WAV")[:-500],
        "cut FLAC": flac[: len(flac) // 2],
        "FLAC that declares 2^36 samples": bytes(long_flac),
        "NaN": wav(np.array([0.0, np.nan, 0.0])),
        "infinity": wav(np.array([0.0, np.inf, 0.0])),
        "1,024 channels": riff(1, bytes(1024 * 4), channels=1024),
        "a picture": b"\x89PNG\r\n\x1a\n" + bytes(50),
        "text": b"hello, this is no sound",
        "head of an OGG": tone().encoded("OGG")[:40],
    }


@pytest.mark.parametrize("what", sorted(bad()))
def test_a_bad_sound_is_one_line(what: str, tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    path.write_bytes(bad()[what])
    with pytest.raises(MediaError) as error:
        Audio.open(path)
    assert "\n" not in str(error.value)
    assert "sound" in str(error.value)


def test_a_wav_of_unknown_length_is_read() -> None:
    """A recorder that writes to a pipe cannot go back to fill in the length."""
    sound = Audio.open(io.BytesIO(riff(1, bytes(1000), declared=0xFFFFFFFF)))
    assert sound.samples.shape[1] == 500


def test_the_limit_is_checked_before_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENKIT_MAX_SAMPLES", "1000")
    with pytest.raises(MediaError, match="GENKIT_MAX_SAMPLES"):
        Audio.open(io.BytesIO(tone().encoded("FLAC")))


@pytest.mark.parametrize(
    ("samples", "rate"),
    [
        (torch.zeros(1, 0), 8000),
        (torch.zeros(65, 4), 8000),
        (torch.zeros(1, 4), 0),
        (torch.zeros(1, 4), 10**9),
        (torch.tensor([float("nan")]), 8000),
        (torch.zeros(2, 2, 2), 8000),
    ],
)
def test_samples_that_are_no_sound_are_refused(samples: torch.Tensor, rate: int) -> None:
    with pytest.raises(MediaError):
        Audio(samples, rate)


def test_a_format_that_cannot_hold_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="wav"):
        tone(channels=3).save(tmp_path / "a.mp3")
    with pytest.raises(MediaError, match="bits"):
        tone().save(tmp_path / "a.flac", bits=8)
    with pytest.raises(MediaError, match="option"):
        tone().save(tmp_path / "a.wav", quality=8)
    assert not list(tmp_path.iterdir())


def test_resampling_keeps_a_tone_and_removes_what_does_not_fit() -> None:
    low = tone(1.0, 44100, 1, pitch=1000).resample(16000)
    again = tone(1.0, 16000, 1, pitch=1000)
    assert low.sample_rate == 16000
    inner = slice(1000, 15000)
    assert (low.samples[0, inner] - again.samples[0, inner]).abs().max() < 1e-3
    high = tone(1.0, 44100, 1, pitch=12000).resample(16000)
    assert high.samples[0, inner].abs().max() < 1e-3, "above half the new rate nothing is left, and nothing folds back"
    with pytest.raises(MediaError, match="rounder"):
        tone(0.1, 44100).resample(767_999)


def test_a_notebook_plays_it() -> None:
    assert "<audio" in tone()._repr_mimebundle_()["text/html"]
    assert "<audio" in tone(0.1, 96000)._repr_mimebundle_()["text/html"]
