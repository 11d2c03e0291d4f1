"""SNR and LSD: pinned to numbers worked out by hand, and the same in blocks as over the whole."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from genkit.errors import InputError
from genkit.metrics import audio
from genkit.metrics.audio import Distance, compare


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole(reference: Tensor, estimate: Tensor) -> Tensor:
    """LSD [C] as the field writes it, with torch.stft over the whole."""
    found = []
    for samples in (reference, estimate):
        spectrum = torch.stft(
            samples, 2048, 512, window=torch.hann_window(2048, dtype=torch.float64), return_complex=True
        )
        found.append(spectrum.abs().square().clamp(1e-8).log10())
    return (found[0] - found[1]).square().mean(1).sqrt().mean(1)


@pytest.mark.parametrize("gain", [0.5, 2.0, 0.1])
def test_a_gain_by_hand(gain: float) -> None:
    """Every |S|^2 changes by gain^2: LSD = |2 log10(gain)|, in every band; SNR = -20 log10(|gain - 1|)."""
    found = compare(noise(2, 9000), gain * noise(2, 9000), 16000, cutoff=4000)
    for value in (found.lsd, found.lsd_lf, found.lsd_hf):
        assert value == pytest.approx(abs(2 * math.log10(gain)), abs=1e-3)
    assert found.snr == pytest.approx(-20 * math.log10(abs(gain - 1)))
    assert gain != 0.5 or found.lsd == pytest.approx(0.602, abs=1e-3)


def test_snr_by_hand() -> None:
    target = torch.tensor([3.0, 4.0, 0.0, 0.0])
    assert compare(target, target + torch.tensor([0.0, 0.0, 0.3, 0.4]), 8000).snr == pytest.approx(20)
    stereo = torch.stack((target, target))
    off = torch.tensor([[0.0, 0.0, 0.3, 0.4], [0.0, 5.0, 0.0, 0.0]])
    assert compare(stereo, stereo + off, 8000).snr == pytest.approx((20 + 0) / 2), "the mean over channels, in dB"


def test_equal_sounds() -> None:
    found = compare(noise(5000), noise(5000), 8000, 1000)
    assert (found.snr, found.lsd, found.lsd_lf, found.lsd_hf, found.samples) == (math.inf, 0, 0, 0, 5000)


def test_silence() -> None:
    """Against silence every frequency is at the floor, 1e-8; silence itself has no SNR."""
    silent = torch.zeros(1, 4096, dtype=torch.float64)
    found = compare(silent, silent, 8000)
    assert math.isnan(found.snr)
    assert found.lsd == 0
    loud = noise(1, 4096)
    assert compare(loud, silent, 8000).snr == pytest.approx(0)
    away = compare(silent, loud, 8000)
    assert math.isnan(away.snr)
    assert away.lsd == pytest.approx(float(whole(silent, loud)), rel=1e-9)
    both = compare(torch.cat((loud, silent)), torch.cat((0.9 * loud, silent)), 8000)
    assert both.snr == pytest.approx(20), "a silent channel has no SNR and takes no part"
    assert both.lsd == pytest.approx(2 * math.log10(1 / 0.9) / 2, abs=1e-3), "its LSD is 0 and counts"


def test_bands_are_where_the_cutoff_says() -> None:
    """A sine added at 3 kHz is far above the floor there and nowhere else."""
    time = torch.arange(40000, dtype=torch.float64) / 16000
    low = torch.sin(2 * math.pi * 500 * time)
    both = low + 0.01 * torch.sin(2 * math.pi * 3000 * time)
    inner = slice(2048, 36000)
    for cutoff, untouched, touched in ((2000, "lsd_lf", "lsd_hf"), (4000, "lsd_hf", "lsd_lf")):
        found = compare(low[inner], both[inner], 16000, cutoff)
        assert getattr(found, touched) > 5 * getattr(found, untouched)
    # bins 0..255 are below 2000 Hz, 256 is at it: the squares of the bands make up those of the whole, frame by frame
    pair = noise(2048), noise(2048, seed=1)
    spectra = [audio.log_spectrum(torch.nn.functional.pad(p[None, None], (1024, 1024), "reflect")[0]) for p in pair]
    apart = (spectra[0] - spectra[1])[0].square()
    found = compare(*pair, 16000, 2000)
    assert found.lsd_lf == pytest.approx(float(apart[:256].mean(0).sqrt().mean()))
    assert found.lsd_hf == pytest.approx(float(apart[256:].mean(0).sqrt().mean()))


@pytest.mark.parametrize("length", [1025, 1026, 1536, 2047, 2048, 2049, 5000, 5119, 5120, 5121])
def test_blocks_are_the_whole(length: int) -> None:
    reference, estimate = noise(2, length), noise(2, length, seed=1)
    expected = float(whole(reference, estimate).mean())
    assert compare(reference, estimate, 8000).lsd == pytest.approx(expected, rel=1e-9)
    for block in (1, 700, 2048):
        distance = Distance(8000, 1000)
        for start in range(0, length, block) if block > 1 or length < 2000 else ():
            distance.add(reference[:, start : start + block], estimate[:, start : start + block])
        if distance._samples:
            assert distance.result().lsd == pytest.approx(expected, rel=1e-9), block


@pytest.mark.parametrize("length", [1, 2, 1000, 1024])
def test_a_sound_shorter_than_a_frame(length: int) -> None:
    found = compare(noise(length), 0.5 * noise(length), 8000, 2000)
    assert found.samples == length
    assert 0 < found.lsd <= 0.6021
    assert found.snr == pytest.approx(20 * math.log10(2))


def test_lengths_that_differ_are_compared_over_what_both_have() -> None:
    assert compare(noise(2, 5000), noise(2, 5007)[:, :5000], 8000).samples == 5000
    found = compare(noise(5000), torch.cat((noise(5000), torch.ones(7))), 8000)
    assert (found.samples, found.lsd) == (5000, 0)


def test_what_is_kept_does_not_grow_with_the_length() -> None:
    distance = Distance(44100, 8000)
    for seed in range(12):
        block = noise(2, 20_000, seed=seed).float()
        distance.add(block, 0.5 * block)
        kept = sum(value.numel() for value in vars(distance).values() if isinstance(value, Tensor))
        assert kept < 2 * 2 * (audio.FFT + audio.HOP)
    assert distance.result().lsd == pytest.approx(0.602, abs=1e-3)


def test_what_cannot_be_compared_is_one_line() -> None:
    with pytest.raises(InputError, match="cutoff"):
        Distance(8000, 4001)
    with pytest.raises(InputError, match="shapes"):
        Distance(8000).add(torch.zeros(1, 5), torch.zeros(2, 5))
    with pytest.raises(InputError, match="no samples"):
        Distance(8000).result()
    assert math.isnan(compare(noise(3000), noise(3000), 8000).lsd_hf), "without a cutoff there are no bands"
