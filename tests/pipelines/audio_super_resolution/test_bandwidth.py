"""The real cutoff: cuts of every kind and height within 3 %, and dull sounds that were never cut."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from genkit.media import sampling
from genkit.media.audio import Audio
from pipelines.audio_super_resolution.bandwidth import Bandwidth, _edge, _quantile, detect, measure

RATE = 44100


def noise(seconds: float = 1.5, seed: int = 0, rate: int = RATE) -> Tensor:
    return 0.05 * torch.randn(1, int(seconds * rate), generator=torch.Generator().manual_seed(seed))


def pink(seconds: float = 1.5, slope: float = 1.0, rate: int = RATE) -> Tensor:
    """Noise whose amplitude falls with frequency: 6 dB an octave for each unit of slope."""
    spectrum = torch.fft.rfft(noise(seconds, 3, rate))
    spectrum /= torch.arange(1, spectrum.shape[1] + 1).float().clamp(200) ** slope
    sound = torch.fft.irfft(spectrum)
    return 0.3 * sound / sound.abs().max()


def cut(sound: Tensor, cutoff: float, rate: int = RATE) -> Tensor:
    """Down by 6 dB at the cutoff, and by 100 dB 1.5 % further up; in 16 bits."""
    edge = 2 * cutoff / 0.985 / rate
    return sampling.quantise(sampling.lowpass(sound, edge, family="brickwall"), 16, dither=0)


def seen(sound: Tensor, rate: int = RATE) -> Bandwidth:
    return detect([sound], rate)


@pytest.mark.parametrize("cutoff", [1500, 2000, 3400, 5512, 8000, 11025, 16000, 20000])
def test_a_cut_is_found_within_three_percent(cutoff: int) -> None:
    for sound in (noise(), pink()):
        found = seen(cut(sound, cutoff))
        assert found.kind == "cut"
        assert found.cutoff == pytest.approx(cutoff, rel=0.03)
        assert found.sure > 0.8
        assert found.depth > 20


@pytest.mark.parametrize("rate", [16000, 48000])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.7])
def test_at_other_rates(rate: int, share: float) -> None:
    found = seen(cut(pink(rate=rate), share * rate / 2, rate), rate)
    assert (found.kind, found.cutoff) == ("cut", pytest.approx(share * rate / 2, rel=0.03))


@pytest.mark.parametrize("low", [8000, 11025, 16000, 22050])
def test_resampled_material(low: int) -> None:
    """The sinc's roll-off is at 0.948 of half the lower rate; the papers' Chebyshev is 10 dB down at 0.868."""
    click = torch.zeros(8193, dtype=torch.float64)
    click[4096] = 1
    response = torch.fft.rfft(sampling.lowpass(click, 0.8 / 4)).abs()
    assert int((response > 10**-0.5).sum()) / len(response) == pytest.approx(0.868 / 4, rel=0.02)
    for filter, share in (("sinc", 0.948), ("chebyshev", 0.868)):
        found = seen(sampling.degrade(pink(), RATE, low, filter=filter, restore="sinc"))
        assert found.kind == "cut"
        assert found.cutoff == pytest.approx(share * low / 2, rel=0.03)


def test_mp3(tmp_path: Path) -> None:
    """A real encoder: what it cuts off is found in the file, and the whole sound is not mistaken."""
    path = Audio(cut(noise(), 9000), RATE).save(tmp_path / "a.mp3", quality=60)
    assert measure(path).cutoff == pytest.approx(9000, rel=0.03)
    assert measure(path).kind == "cut"


def test_dull_sounds_that_were_never_cut() -> None:
    time = torch.arange(2 * RATE) / RATE
    partials = sum(0.3 / k * torch.sin(2 * math.pi * 440 * k * time) for k in range(1, 12))
    floor = 1e-4 * noise(2.0)
    sounds = {
        "white noise": noise(),
        "falls by 6 dB an octave": pink(),
        "falls by 24 dB an octave": pink(2.0, slope=4.0) + floor,
        "a sine": 0.5 * torch.sin(2 * math.pi * 1000 * time)[None],
        "a note of eleven partials": torch.as_tensor(partials)[None] + floor,
        "fades gently": sampling.lowpass(pink(2.0), 0.15, family="butterworth", order=1) + floor,
    }
    for name, sound in sounds.items():
        found = seen(sound)
        assert found.kind in ("full", "faded"), (name, found)
        assert found.cutoff == RATE / 2, name
        assert found.sure >= 0.5, name
    assert seen(sounds["white noise"]).kind == "full"
    assert seen(sounds["a sine"]).kind == "faded"


@pytest.mark.parametrize("frames", [1, 2, 1000, 16_383, 16_384, 16_385])
def test_silence_and_short_sounds_pass(frames: int) -> None:
    assert seen(torch.zeros(1, frames)).kind == "silent"
    assert seen(torch.full((2, frames), 0.5)).kind == "silent", "a constant is no sound"
    assert 0 < seen(noise()[:, :frames]).cutoff <= RATE / 2


def test_blocks_and_silence_around_change_nothing() -> None:
    sound = cut(pink(), 5000)
    whole = seen(sound)
    assert detect(sound.split(777, 1), RATE) == whole
    padded = torch.cat((torch.zeros(1, 16_384 * 20), sound), 1)
    assert seen(padded) == whole
    assert seen(sound.expand(2, -1)).cutoff == whole.cutoff


def test_it_says_so_in_a_line() -> None:
    assert str(Bandwidth(3987.4, "cut", 1.0, 81.2)) == "cut off at 3,987 Hz (81 dB), 100% sure"
    assert str(seen(torch.zeros(1, 5))) == "silent, 0% sure"


def test_real_recordings(shared: Path) -> None:
    """Speech that is full to 8 kHz, a piano that fades, strings; each again after a cut, a resampling, in 16 bits."""
    speech = Audio.open(sorted((shared / "data/audio/speech16k").glob("*.flac"))[0])
    piano = Audio.open(shared / "data/audio/piano44k/FF_A3.flac")
    for sound in (speech, piano):
        rate, samples = sound.sample_rate, sound.samples[:, : 4 * sound.sample_rate]
        assert seen(samples, rate).cutoff == rate / 2
        for cutoff in (2000, 4000):
            if sound is speech:  # above 4 kHz a single note has little but the noise of 16 bits
                assert seen(cut(samples, cutoff, rate), rate).cutoff == pytest.approx(cutoff, rel=0.03)
            again = sampling.degrade(samples, rate, 2 * cutoff, filter="sinc", restore="sinc")
            assert seen(again, rate).cutoff == pytest.approx(0.948 * cutoff, rel=0.03)


@given(st.lists(st.floats(-200, 200), min_size=1, max_size=60), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
def test_the_quantile_is_numpys(values: list[float], share: float) -> None:
    assert _quantile(np.array(values), share) == pytest.approx(np.quantile(values, share), abs=1e-9)


def everywhere(decibel: np.ndarray, least: int) -> tuple[int, float]:
    """The edge, by looking at every place as the module's docstring has it."""
    best, depth = 0, 0.0
    for place in np.unique(np.geomspace(least, len(decibel) - 1, 600).astype(int)):
        below = decibel[int(0.80 * place) : int(0.97 * place)]
        above, rest = decibel[int(1.03 * place) + 1 : int(1.25 * place) + 2], decibel[int(1.03 * place) + 1 :]
        if min(len(below), len(above)) >= 4:
            low = np.quantile(below, 0.1)
            fall = low - np.quantile(above, 0.9)
            if fall > depth and low - np.quantile(rest, 0.9) >= min(fall, 12.0):
                best, depth = int(place), fall
    return best, depth


@pytest.mark.parametrize("spread", [0.0, 3.0, 20.0])
@pytest.mark.parametrize("fall", [0, 5, 40])
def test_what_is_spared_is_not_missed(spread: float, fall: int) -> None:
    """Most places are passed over by a bound; the edge is the one that a look at all of them finds."""
    random = np.random.default_rng(int(spread) + fall)
    for least, cut_at in ((240, 500), (240, 4000), (1000, 8000)):
        decibel = random.normal(-60, spread, 8193)
        decibel[cut_at:] -= fall
        place, depth = _edge(decibel, least)
        assert (place, pytest.approx(depth, abs=1e-9)) == everywhere(decibel, least)
    steps = np.round(decibel / 6) * 6  # many levels alike, some of them silent
    assert _edge(np.maximum(steps, -72), least) == pytest.approx(everywhere(np.maximum(steps, -72), least))
