"""What was recorded below a cutoff joined to what was made above it, and the treble of several channels held together.

`keep_band` passes the recorded band through a linear-phase crossover: below the cutoff not a sample changes by more
than -100 dB of what was made, and nothing is scaled, so the loudness stays. `link` gives each channel the share of the
treble that it has of the octave below the cutoff, so that treble made for each by itself does not wander from side to
side.

C: channels; T: samples.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from genkit.errors import InputError
from genkit.media._lowpass import convolve, kaiser_sinc, within

__all__ = ["KEPT", "keep_band", "link", "reach"]

KEPT = 0.94  # of half the lower rate: what a resampling filter leaves of it as it was
SLOPE = 0.02  # width of the crossover, as a share of the cutoff; it lies above the cutoff
WINDOW = 0.05  # seconds over which `link` compares levels


def keep_band(low_resolution: Tensor, made: Tensor, cutoff: float, sample_rate: int) -> Tensor:
    """The recording up to the cutoff, what was made from 2 % above it on, both whole in between.

    low_resolution, made: [..., T], at `sample_rate` Hz and aligned; cutoff: Hz. At or above 0.98 of half the rate there
    is nothing to add, and the recording is given back. Raises InputError.
    """
    if low_resolution.shape != made.shape:
        raise InputError(f"sounds of shapes {list(low_resolution.shape)} and {list(made.shape)} cannot be joined")
    edge = _edge(cutoff, sample_rate)
    if edge * (1 + SLOPE) >= 1:
        return low_resolution
    apart = made - low_resolution
    return low_resolution + apart - convolve(apart, _crossover(edge))


def link(low_resolution: Tensor, made: Tensor, cutoff: float, sample_rate: int) -> Tensor:
    """`made` with its treble shared among the channels as the octave below the cutoff is.

    low_resolution, made: [C, T]. The energy of the treble, all channels together, stays; each channel's part of it
    follows that of the octave, over windows of 50 ms. Swapping channels swaps the result; one channel comes back as it
    was, and a channel that is silent gets no treble. Raises InputError.
    """
    if low_resolution.shape != made.shape or made.ndim != 2:
        raise InputError(f"sounds of shapes {list(low_resolution.shape)} and {list(made.shape)} cannot be linked")
    edge = _edge(cutoff, sample_rate)
    if made.shape[0] == 1 or edge * (1 + SLOPE) >= 1:
        return made
    bass = convolve(made, _crossover(edge))
    octave = low_resolution - convolve(low_resolution, _octave(edge))
    wanted = _share(_energy(octave, sample_rate))
    energy = _energy(made - bass, sample_rate)
    total = energy.sum(0, keepdim=True)
    gain = (wanted * total / energy.clamp_min(1e-12)).sqrt().clamp_max(4.0)
    return bass + gain.to(made.dtype) * (made - bass)


def reach(cutoff: float, sample_rate: int) -> int:
    """How many samples to either side `link` and then `keep_band` look: what `chunks` needs as context for them."""
    edge = _edge(cutoff, sample_rate)
    longest = max(len(_octave(edge)), len(_crossover(edge))) if edge * (1 + SLOPE) < 1 else 1
    return longest // 2 + _half(sample_rate) + len(_crossover(edge)) // 2


def _edge(cutoff: float, sample_rate: int) -> float:
    if not 0 < cutoff <= sample_rate / 2:
        raise InputError(
            f"the cutoff is {cutoff:g} Hz; give one above 0 and at most {sample_rate / 2:g} Hz, half the rate"
        )
    return 2 * cutoff / sample_rate


def _crossover(edge: float) -> Tensor:
    return _filter(edge * (1 + SLOPE / 2), edge * SLOPE)


def _octave(edge: float) -> Tensor:
    """What is below the octave under an edge."""
    return _filter(edge / 2, edge / 8)


@functools.lru_cache(maxsize=8)  # of at most 8 MB each
def _filter(edge: float, width: float) -> Tensor:
    with torch.inference_mode(False):  # such a tensor could not be trained through later
        return kaiser_sinc(edge, width)


def _half(sample_rate: int) -> int:
    return math.ceil(WINDOW * sample_rate / 2)


def _energy(samples: Tensor, sample_rate: int) -> Tensor:
    """[C, T] -> [C, T], float64: mean square under a Hann window about each sample; at the ends of what there is."""
    half = _half(sample_rate)
    window = torch.hann_window(2 * half + 1, False, dtype=torch.float64, device=samples.device)
    square = torch.nn.functional.pad(samples.to(torch.float64).square(), (half, half))
    return within(square, window / window.sum()).clamp_min(0)


def _share(energy: Tensor) -> Tensor:
    """[C, T] -> [C, T]: each channel's part of the sum; equal parts where nothing sounds."""
    total = energy.sum(0, keepdim=True)
    return torch.where(total > 1e-14, energy / total.clamp_min(1e-14), 1 / len(energy))
