"""Spectrograms: what is loud stands at its frequency, time and level, however long it is and however it is read."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genkit.errors import MediaError
from genkit.media import spectrogram
from genkit.media.audio import Audio
from genkit.media.recording import Recording
from genkit.media.spectrogram import _marks, draw, levels


def sine(frequency: float, rate: int, seconds: float = 1.0, loud: float = 1.0) -> Audio:
    phase = 2 * math.pi * frequency * torch.arange(round(rate * seconds), dtype=torch.float64) / rate
    return Audio((loud * phase.sin()).float()[None], rate)


@settings(max_examples=12, deadline=None)
@given(st.floats(0.05, 0.95), st.sampled_from([8000, 16000, 44100, 96000]), st.integers(-60, 0))
def test_a_tone_stands_at_its_frequency_and_level(share: float, rate: int, loud: int) -> None:
    size = 2 ** round(math.log2(spectrogram.WINDOW * rate))
    frequency = round(share * size / 2) * rate / size  # in the middle of a bin
    found = levels(sine(frequency, rate, 0.3, 10 ** (loud / 20)), 10, size // 2 + 1)
    middle = found[:, 5].flip(0)
    assert int(middle.argmax()) == round(frequency * size / rate)
    assert float(middle.max()) == pytest.approx(loud, abs=0.1), "0 dB is a sine at full scale"


def test_a_click_stands_at_its_time_and_silence_is_ground() -> None:
    samples = torch.zeros(1, 16000)
    samples[0, 12000] = 1
    found = levels(Audio(samples, 8000), 100, 20)
    heard = (found > spectrogram.FLOOR).any(0).nonzero().flatten()
    assert heard.float().mean() == pytest.approx(74.5, abs=1)
    assert len(heard) < 5


def test_channels_out_of_phase_do_not_vanish() -> None:
    one = sine(1000, 8000).samples
    both = levels(Audio(torch.cat((one, -one)), 8000), 5, 64)
    torch.testing.assert_close(both, levels(Audio(one, 8000), 5, 64))


@pytest.mark.parametrize("frames", [1, 2, 100, 4000, 70_001, 200_000])
def test_a_recording_on_disk_is_drawn_as_it_is_in_memory(tmp_path: Path, frames: int) -> None:
    noise = Audio(torch.randn(2, frames, generator=torch.Generator().manual_seed(1)) / 9, 44100)
    on_disk = Recording.open(noise.save(tmp_path / "a.wav"))
    held = Audio.open(tmp_path / "a.wav")
    assert held.spectrogram(width=200, height=160).digest() == on_disk.spectrogram(width=200, height=160).digest()


def test_sounds_share_their_axes() -> None:
    """The tone stands at the same height in both panels, and what a slower sound cannot hold is shaded."""
    slow, fast = sine(1000, 8000), sine(1000, 32000, 2.0)
    picture = draw({"before": slow, "after": fast}, width=400, height=430).pil
    pixels = torch.tensor(list(picture.convert("L").tobytes()))
    column = pixels.reshape(430, 400)[:, 60]
    upper, lower = column[24:200], column[224:400]
    assert abs(int(upper.argmin()) - int(lower.argmin())) <= 1
    shaded = picture.getpixel((300, 30)), picture.getpixel((100, 30))
    assert shaded == (spectrogram._NOTHING, spectrogram._NOTHING)


@pytest.mark.parametrize(
    ("count", "sides", "words"),
    [
        (0, {}, "no sounds"),
        (1, {"width": 100}, "width of 100 px"),
        (1, {"height": 20_000}, "height of 20000 px"),
        (3, {"height": 200}, "do not fit in 200 px"),
    ],
)
def test_a_size_that_does_not_do_is_refused(count: int, sides: dict[str, int], words: str) -> None:
    sounds = {str(i): sine(100, 8000, 0.1) for i in range(count)}
    with pytest.raises(MediaError, match=words):
        draw(sounds, **sides)


@given(st.floats(1e-4, 1e5), st.floats(1, 40))
def test_marks_are_round_and_few(end: float, most: float) -> None:
    marks = _marks(end, most)
    assert marks[0] == 0
    assert len(marks) <= most + 1 + 1e-6
    assert marks[-1] <= end * (1 + 1e-6)
