"""What sampling does: decimation as the papers', aliases where the formula has them, noise as Bennett has it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from genkit.errors import InputError
from genkit.media import _lowpass, sampling
from genkit.media.audio import Audio, degrade

# Made with scipy 1.17.1 from the signal below: decimate(x, 4); sosfiltfilt at samples 0, 1, 20, 38, 39 with
# cheby1(8, 0.05, 0.4), butter(3, 0.4), ellip(5, 0.05, 60, 0.4), bessel(4, 0.4, norm="mag"); splev at 1, 2, 19, 37, 39
# of x[::4].
DECIMATED = [0.9997767132, 0.5038744531, 0.6122772148, 0.5991266287, 0.5607811999]
DECIMATED += [0.6301460768, 0.5459052363, 0.6249107962, 0.5878776062, 0.5230189679]
FILTERED = {
    ("chebyshev", 8): [0.9835004034, 0.1885592155, 0.7937368924, 0.5594407622, 0.9081138379],
    ("butterworth", 3): [1.0000714917, 0.3303020457, 0.7916742529, 0.5607137291, 0.9045226643],
    ("elliptic", 5): [0.999917145, 0.1941885583, 0.7982746065, 0.5957493481, 0.9126600567],
    ("bessel", 4): [0.9999987756, 0.4779932106, 0.7695898909, 0.62101696, 0.9045018143],
}
SPLINE = [1.3082307755, 1.4743693705, 1.8207322792, -0.0376093174, -3.5219602008]


def known() -> Tensor:
    index = torch.arange(40, dtype=torch.float64)
    return torch.cos(0.9 * index**1.3) + (index % 7) / 5


def sine(frequency: float, rate: int, seconds: float = 1.0) -> Tensor:
    time = torch.arange(int(rate * seconds), dtype=torch.float64) / rate
    return torch.sin(2 * math.pi * frequency * time)


def noise(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loudest(samples: Tensor, rate: int) -> float:
    """The frequency of the highest peak of a spectrum, to the nearest bin."""
    power = torch.fft.rfft(samples * torch.hann_window(len(samples), dtype=samples.dtype)).abs()
    return float(power.argmax()) * rate / len(samples)


def decibel(ratio: Tensor) -> float:
    return float(20 * torch.log10(ratio))


def test_decimation_is_scipys() -> None:
    assert sampling.decimate(known(), 4).tolist() == pytest.approx(DECIMATED, abs=1e-9)
    assert degrade(Audio(known().float() / 3, 8000), 2000).samples[0].tolist() == pytest.approx(
        [value / 3 for value in DECIMATED], abs=1e-6
    )


@pytest.mark.parametrize(("family", "order"), FILTERED)
def test_the_filters_are_scipys(family: str, order: int) -> None:
    found = sampling.lowpass(known(), 0.4, family=family, order=order)
    assert found[[0, 1, 20, 38, 39]].tolist() == pytest.approx(FILTERED[family, order], abs=1e-9)


def test_the_spline_is_scipys() -> None:
    found = sampling.upsample(known()[::4], 2000, 8000, method="spline")
    assert found[[1, 2, 19, 37, 39]].tolist() == pytest.approx(SPLINE, abs=1e-9)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 6, 9, 61, 62])
def test_a_spline_goes_through_its_samples_and_keeps_cubics(length: int) -> None:
    given = noise(length)
    again = sampling.upsample(given, 1, 3, method="spline")
    assert again.shape == (3 * length,)
    assert torch.allclose(again[::3], given, atol=1e-10)
    degree = min(3, length - 1)
    knots, places = (torch.arange(3 * length, dtype=torch.float64)[:: 3 // step] for step in (1, 3))
    cubic = sampling.upsample((knots / length) ** degree, 1, 3, method="spline")
    assert torch.allclose(cubic, (places / length) ** degree, atol=1e-9)


@pytest.mark.parametrize("frequency", [900, 2450, 4300, 7100, 9999])
def test_without_a_low_pass_a_sine_folds_to_where_the_formula_says(frequency: int) -> None:
    for rate in (8000, 5000, 4800):  # 20 kHz by 4, and by numbers that are not whole
        low = sampling.degrade(sine(frequency, 20000), 20000, rate, antialias=False)
        assert loudest(low, rate) == pytest.approx(sampling.folded(frequency, rate), abs=1), rate
    clean = sampling.degrade(sine(9500, 20000), 20000, 8000)
    assert clean[100:-100].abs().max() < 1e-3


def test_folded() -> None:
    folds = {0: 0, 3000: 3000, 4000: 4000, 5000: 3000, 8000: 0, 9000: 1000, 13000: 3000}
    assert {frequency: sampling.folded(frequency, 8000) for frequency in folds} == folds


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_a_full_scale_sine_has_the_noise_of_its_bits(bits: int) -> None:
    wave = (1 - 2.0**-bits) * sine(997.3, 44100)
    error = sampling.quantise(wave, bits) - wave
    assert decibel(wave.norm() / error.norm()) == pytest.approx(6.02 * bits + 1.76, abs=0.3)


def test_quantising_keeps_silence_clips_and_is_mid_tread() -> None:
    given = torch.tensor([0.0, 0.1, -0.1, 0.2, 5.0, -5.0])
    assert sampling.quantise(given, 3).tolist() == [0, 0, 0, 0.25, 0.75, -1]
    assert sampling.quantise(given, 1).tolist() == [0, 0, 0, 0, 0, -1]


def test_dither_is_repeatable_and_frees_the_error_from_the_sound() -> None:
    """A sine below one step is lost without dither, and is there on average with it."""
    wave = 0.3 * 2.0**-7 * sine(50, 8000, 4.0)
    assert not sampling.quantise(wave, 8).any()
    dithered = sampling.quantise(wave, 8, dither=3)
    assert torch.equal(dithered, sampling.quantise(wave, 8, dither=3))
    assert not torch.equal(dithered, sampling.quantise(wave, 8, dither=4))
    assert float(dithered @ wave / (wave @ wave)) == pytest.approx(1, abs=0.1)
    step = 2.0**-7  # triangular noise and rounding: 1/6 + 1/12 of a step squared
    assert float((dithered - wave).var()) == pytest.approx(step**2 / 4, rel=0.05)


@pytest.mark.parametrize("rate", [2000, 3000, 4000])
def test_what_is_band_limited_comes_back(rate: int) -> None:
    """To -80 dB by a sinc below 0.8 of half the lower rate, and to -40 dB by a spline below 0.25 of it."""
    for method, share, tolerance in (("sinc", 0.8, -80), ("spline", 0.25, -40)):
        wave = sine(share * rate / 2, 12000)
        back = sampling.degrade(wave, 12000, rate, filter="sinc", restore=method)
        assert back.shape == wave.shape
        inner = slice(1200, -1200)
        assert decibel((back - wave)[inner].norm() / wave[inner].norm()) < tolerance


@pytest.mark.parametrize("family", sampling.FAMILIES)
def test_each_filter_passes_what_is_below_its_edge_without_delay_and_stops_what_is_above(family: str) -> None:
    low, high = sine(300, 16000, 0.5), sine(6500, 16000, 0.5)
    found = sampling.lowpass(low + high, 0.25, family=family)
    inner = slice(1000, -1000)
    assert decibel((found - low)[inner].norm() / low[inner].norm()) < -25
    assert sampling.lowpass(high, 0.25, family=family)[inner].abs().max() < 0.02


def test_a_brick_wall_is_down_at_its_edge_and_whole_below() -> None:
    click = torch.zeros(8193, dtype=torch.float64)
    click[4096] = 1
    response = torch.fft.rfft(sampling.lowpass(click, 0.5, family="brickwall")).abs()
    count = len(response)
    assert response[: int(0.484 * count)].sub(1).abs().max() < 1e-4
    assert response[int(0.501 * count) :].max() < 2e-5


@pytest.mark.parametrize("family", sampling.FILTERS)
@pytest.mark.parametrize("length", [1, 2, 7, 1001])
def test_any_length_any_shape(family: str, length: int) -> None:
    """Constant sound stays what it is, at any length; channels do not meet; the type is kept."""
    given = torch.full((2, 3, length), 0.25)
    given[1] = 0
    found = sampling.degrade(given, 44100, 16000, filter=family, restore="spline")
    assert found.shape == given.shape
    assert found.dtype == torch.float32
    assert not found[1].any()
    if family != "sinc":  # whose sound begins out of nothing
        assert torch.allclose(sampling.lowpass(given[0], 0.3, family=family), given[0], atol=0.003)


def test_equal_rates_leave_the_sound_but_for_what_is_asked() -> None:
    white = noise(3000).float()
    assert torch.equal(sampling.degrade(white, 8000, 8000), white)
    cut = sampling.degrade(white, 8000, 8000, filter="brickwall", cutoff=2000)
    spectrum = torch.fft.rfft(cut * torch.hann_window(3000)).abs()
    assert spectrum[800:].max() < 1e-3 * spectrum[:700].max()


def test_random_filters_differ_repeat_and_all_work() -> None:
    def drawn(seed: int) -> list[dict[str, Any]]:
        generator = torch.Generator().manual_seed(seed)
        return [sampling.random_filter(generator) for _ in range(60)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert {one["filter"] for one in drawn(1)} == set(sampling.FILTERS)
    white = noise(4000).float()
    for choice in drawn(1)[:20]:
        low = sampling.degrade(white, 16000, 4000, **choice)
        assert low.shape == (1000,)
        assert low.abs().max() < 5, choice


@pytest.mark.parametrize(
    "wrong",
    [
        {"new": 9000},
        {"new": 0},
        {"new": 4000, "bits": 0},
        {"new": 4000, "bits": 25},
        {"new": 4000, "filter": "none"},
        {"new": 4000, "order": 13},
        {"new": 4000, "order": 0},
        {"new": 4000, "cutoff": 4001.0},
        {"new": 4000, "cutoff": 0.0},
        {"new": 4000, "cutoff": float("nan")},
        {"new": 4000, "cutoff": 1e-5, "filter": "brickwall"},
        {"new": 4000, "cutoff": 1e-4, "order": 12},
        {"new": 4000, "ripple": 90.0},
        {"new": 4000, "restore": "linear"},
    ],
)
def test_what_cannot_be_is_one_line(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError) as error:
        sampling.degrade(torch.zeros(100), 8000, **wrong)
    assert "\n" not in str(error.value)


def test_a_training_pair_is_one_call() -> None:
    whole = Audio(0.1 * noise(8001).float()[None].expand(2, -1), 16000)
    dull = degrade(whole, 4000, bits=8, dither=1, filter="butterworth", order=6, restore="spline")
    assert (dull.samples.shape, dull.sample_rate) == (whole.samples.shape, 16000)
    assert degrade(whole, 4000).samples.shape == (2, 2001)
    with pytest.raises(InputError):
        degrade(whole, 500)


@pytest.mark.parametrize("taps", [1, 3, 257, 4001])
@pytest.mark.parametrize("length", [1, 2, 8191, 8192, 20_000])
def test_a_convolution_in_blocks_is_the_convolution(length: int, taps: int) -> None:
    """The sum written out, at places about every border of a block."""
    samples, kernel = noise(2 * (length + taps - 1)).double().view(2, -1), noise(taps, 1).double()
    found = _lowpass.within(samples, kernel)
    assert found.shape == (2, length)
    places = {*range(min(length, 50)), *range(max(0, length - 50), length), *range(0, length, 97)}
    for place in places | {p for p in range(4100, 4300) if p < length}:
        expected = (samples[:, place : place + taps] * kernel.flip(0)).sum(1)
        assert (found[:, place] - expected).abs().max() < 1e-11
