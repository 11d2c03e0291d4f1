"""How far a sound is from the one it should be: signal-to-noise ratio and log-spectral distance.

    SNR     20 log10(|t| / |p - t|) in dB; t the reference, p the estimate. Higher is better; equal sounds have infinity
    LSD     S = STFT (Hann 2048, hop 512, centred, ends reflected), L = log10(max(|S|^2, 1e-8)); root of the mean
            over frequencies of (L_p - L_t)^2, then the mean over frames. Lower is better; half as loud alone is 0.602
    LSD-LF  the same over the frequencies below a cutoff: what should not have been touched
    LSD-HF  the same from the cutoff on: what was made up

This is LSD as NU-Wave 2, AERO and AP-BWE compute it; Kuleshov et al. take the natural logarithm and average over time
first, which gives 2.3 times the number. Each channel is measured by itself, and the mean over channels taken.

Choices made here:
- Sounds are fed in blocks of any length (`Distance.add`), and only the last frame's samples are kept: a two-hour file
  takes no more memory than a minute. Frames are the same as over the whole.
- A reference channel that is silent has no SNR; its LSD counts, against the floor of 1e-8. Where no channel has an SNR
  it is NaN.
- A sound shorter than a frame's half is filled up with silence, which a centred STFT could not reflect.

C: channels; T: samples; F: 1025 frequencies; N: frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genkit.errors import InputError

__all__ = ["FFT", "FLOOR", "HOP", "Distance", "Distances", "compare", "log_spectrum"]

FFT = 2048
HOP = 512
FLOOR = 1e-8
BLOCK = 1 << 18  # samples of one channel whose spectra are held at once


@dataclass(frozen=True)
class Distances:
    """What was measured; see the module. `lsd_lf` and `lsd_hf` are NaN without a cutoff, or where it leaves no
    frequency. `samples`: the length compared, per channel."""

    snr: float
    lsd: float
    lsd_lf: float
    lsd_hf: float
    samples: int


def compare(reference: Tensor, estimate: Tensor, rate: int, cutoff: float | None = None) -> Distances:
    """Two sounds [C, T] or [T] at `rate` Hz, over the length that both have; cutoff in Hz. Raises InputError."""
    length = min(reference.shape[-1], estimate.shape[-1])
    distance = Distance(rate, cutoff)
    distance.add(torch.atleast_2d(reference)[:, :length], torch.atleast_2d(estimate)[:, :length])
    return distance.result()


def log_spectrum(samples: Tensor) -> Tensor:
    """[C, T] -> [C, F, N]: log10 of the power, at least FLOOR; T at least FFT, frames not centred."""
    window = torch.hann_window(FFT, dtype=samples.dtype, device=samples.device)
    spectrum = torch.stft(samples, FFT, HOP, window=window, center=False, return_complex=True)
    return spectrum.abs().square().clamp(FLOOR).log10()


class Distance:
    """Feed with `add`, then ask for `result` once."""

    def __init__(self, rate: int, cutoff: float | None = None) -> None:
        """rate: Hz; cutoff: where LSD-LF ends and LSD-HF begins, in Hz. Raises InputError."""
        if cutoff is not None and not 0 < cutoff <= rate / 2:
            raise InputError(
                f"the cutoff is {cutoff:g} Hz; give one above 0 and at most {rate / 2:g} Hz, half the rate"
            )
        # The first bin that is not below the cutoff.
        self._split = None if cutoff is None else math.ceil(round(cutoff * FFT / rate, 9))
        self._signal = self._noise = torch.zeros(0, dtype=torch.float64)
        self._sums = torch.zeros(3, 0, dtype=torch.float64)  # of all, low and high, by channel
        self._frames = self._samples = 0
        self._pair = torch.zeros(2, 0, 0)  # what the next frames begin with

    def add(self, reference: Tensor, estimate: Tensor) -> None:
        """The next block of both, [C, T] each, any T. Raises InputError if their shapes differ."""
        if reference.shape != estimate.shape or reference.ndim != 2:
            shapes = f"{list(reference.shape)} and {list(estimate.shape)}"
            raise InputError(f"sounds of shapes {shapes} cannot be compared; both must be [channels, samples]")
        for start in range(0, reference.shape[1], BLOCK):
            part = slice(start, start + BLOCK)
            self._add(torch.stack((reference[:, part], estimate[:, part])).detach().to("cpu", torch.float64))

    def _add(self, pair: Tensor) -> None:
        channels = pair.shape[1]
        if not self._samples:
            self._signal = self._noise = torch.zeros(channels, dtype=torch.float64)
            self._sums = torch.zeros(3, channels, dtype=torch.float64)
            self._pair = pair[..., :0]
        self._signal = self._signal + pair[0].square().sum(-1)
        self._noise = self._noise + (pair[1] - pair[0]).square().sum(-1)
        self._pair = torch.cat((self._pair, pair), -1)
        begun = self._samples > FFT // 2
        self._samples += pair.shape[-1]
        if not begun and self._samples > FFT // 2:
            self._pair = torch.cat((self._pair[..., 1 : FFT // 2 + 1].flip(-1), self._pair), -1)
        if self._samples > FFT // 2:
            self._measure(keep=FFT)  # the end is reflected from what is kept

    def _measure(self, keep: int) -> None:
        """Takes the frames that begin so early that at least `keep` samples stay."""
        count = (self._pair.shape[-1] - keep) // HOP
        if count < 1 or self._pair.shape[-1] < FFT:
            return
        taken = self._pair[..., : (count - 1) * HOP + FFT]
        spectra = log_spectrum(taken.flatten(0, 1)).unflatten(0, taken.shape[:2])
        apart = (spectra[0] - spectra[1]).square()  # [C, F, N]
        bands = (apart, apart[:, : self._split], apart[:, self._split :]) if self._split is not None else (apart,)
        for number, band in enumerate(bands):
            self._sums[number] += band.mean(1).sqrt().sum(-1) if band.shape[1] else math.nan
        self._frames += count
        self._pair = self._pair[..., count * HOP :]

    def result(self) -> Distances:
        """The distances over everything added. Raises InputError if that was nothing."""
        if not self._samples:
            raise InputError("nothing to compare: the sounds have no samples")
        samples, half = self._samples, FFT // 2
        if samples <= half:
            self._pair = torch.nn.functional.pad(self._pair, (0, half + 1 - samples))
            self._pair = torch.cat((self._pair[..., 1:].flip(-1), self._pair), -1)
        self._pair = torch.cat((self._pair, self._pair[..., -half - 1 : -1].flip(-1)), -1)
        self._measure(keep=FFT - HOP)
        lsd, low, high = (self._sums.mean(1) / self._frames).tolist()
        known = self._split is not None
        return Distances(self._snr(), lsd, low if known else math.nan, high if known else math.nan, samples)

    def _snr(self) -> float:
        heard = self._signal > 0
        return float((10 * torch.log10(self._signal[heard] / self._noise[heard])).mean())
