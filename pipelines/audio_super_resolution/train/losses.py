"""What a restored sound is told it lacks.

    waveform         root mean square of the error, as the 1-D U-Net was published (Kuleshov et al. 2017)
    spectra          at several resolutions, spectral convergence (Yamamoto et al. 2020) and the log-spectral distance
    energy_distance  between what a network makes and what there is, as distributions (Gritsenko et al. 2020)
    amplitude, phase, complex, consistency      of one spectrum, as AP-BWE was published (Lu et al. 2024)

B: crops; T: samples; F: frequencies; N: frames.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["energy_distance", "phase_distance", "spectra", "stft", "waveform"]

SCALES = (64, 128, 256, 512, 1024, 2048)  # samples of a window of the energy distance
RESOLUTIONS = (512, 1024, 2048)  # samples of a Hann window; a hop is a quarter of it
FLOOR = 1e-8  # of a power: that of LSD (`genkit.metrics.audio`)


def waveform(made: Tensor, true: Tensor) -> Tensor:
    """[B, T] each -> the batch's mean of sqrt(mean(e^2) + 1e-6)."""
    return ((made - true).square().mean(-1) + 1e-6).sqrt().mean()


def spectra(made: Tensor, true: Tensor) -> Tensor:
    """[B, T] each -> spectral convergence + LSD, the mean of `RESOLUTIONS`.

    The floor is added to a power, not its least value as in the metric: below it there would be no gradient.
    """
    return torch.stack([_spectrum(made, true, n_fft) for n_fft in RESOLUTIONS]).mean()


def _spectrum(made: Tensor, true: Tensor, n_fft: int) -> Tensor:
    p, t = stft(made, n_fft, n_fft // 4), stft(true, n_fft, n_fft // 4)
    power, wanted = p.real.square() + p.imag.square(), t.real.square() + t.imag.square()
    difference = (power + FLOOR).sqrt() - (wanted + FLOOR).sqrt()
    convergence = difference.square().sum((1, 2)).sqrt() / (wanted.sum((1, 2)) + FLOOR).sqrt()
    apart = ((power + FLOOR) / (wanted + FLOOR)).log10().square().mean(1)  # [B, N]
    return convergence.mean() + (apart + 1e-6).sqrt().mean()


def energy_distance(one: Tensor, other: Tensor, true: Tensor) -> Tensor:
    """The spectral energy distance of two sounds made from the same input with noise of their own, [B, T] each.

        d(one, true) + d(other, true) - d(one, other)

    A mean of what might be is no better than any draw here: being alike costs both. So hiss comes out as hiss, where
    every distance to the one truth makes of it what is least wrong, a buzz at the rate of the frames.
    """
    near = _apart(one, true) + _apart(other, true) - _apart(one, other)
    return near / len(SCALES)


def _apart(a: Tensor, b: Tensor) -> Tensor:
    """Gritsenko et al. 2020, equation 6: L1 of magnitudes, and sqrt(k / 2) times L2 of their logarithms, of windows of
    k samples; per frame and bin, so that no scale outweighs the others."""
    total = a.new_zeros(())
    for k in SCALES:
        p, q = ((stft(x, k, k // 4).abs().square() + FLOOR).sqrt() for x in (a, b))
        logarithms = ((p / q).log().square().mean(1) + 1e-6).sqrt().mean()
        total = total + (p - q).abs().mean() / math.sqrt(k) + logarithms
    return total


def stft(samples: Tensor, n_fft: int, hop: int) -> Tensor:
    """[B, T] -> complex [B, F, N], float32 whatever comes in."""
    window = torch.hann_window(n_fft, device=samples.device)
    return torch.stft(samples.float(), n_fft, hop, window=window, return_complex=True)


def phase_distance(made: Tensor, true: Tensor) -> Tensor:
    """[B, F, N] radians -> mean distance round the circle of the phases, of their steps over frequency (group delay)
    and of their steps over time (instantaneous frequency), added up (Ai & Ling 2023, anti-wrapping losses)."""
    apart = made - true
    return _around(apart) + _around(apart.diff(dim=1)) + _around(apart.diff(dim=2))


def _around(angle: Tensor) -> Tensor:
    turn = 2 * math.pi
    return (angle - turn * (angle / turn).round()).abs().mean()
