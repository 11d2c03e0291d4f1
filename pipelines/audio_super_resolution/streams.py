"""Steps of a restoration from blocks to blocks [C, T]: to another rate, without what is above a cutoff, joined again.

Choices made here:
- Each cuts the sound at fixed places of its own, whatever comes after it: a network hears the same samples to the last
  bit however large its pieces are. (The phase of an empty band, which `spectral` hears, is that of rounding errors.)
- Where the recording is digitally silent for 50 ms to both sides, nothing is made: what a network says to silence is
  faded out before it.

C: channels; T: samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor

from genkit.media import sampling
from genkit.media._lowpass import convolve, kaiser_sinc
from genkit.media.streaming import regroup
from pipelines.audio_super_resolution.bands import SLOPE
from pipelines.audio_super_resolution.chunks import Pieces, process

__all__ = ["add", "awake", "awake_reach", "lowpassed", "resampled"]

PIECE = 1 << 17  # samples that go through a filter at once
SINC = 75  # samples of the lower rate that `sampling.resample` looks to either side
SILENT = 1e-6  # -120 dB, the last bit of 20
ROUNDING = 1e-12  # -240 dB
NEAR = 0.05  # seconds about a sound that are not silent
FADE = 0.01  # seconds


def resampled(blocks: Iterable[Tensor], old: int, new: int) -> Iterator[Tensor]:
    """At another rate, ceil(T new / old) samples: `sampling.resample` of the whole. Raises MediaError (odd rates)."""
    if old == new:
        return iter(blocks)
    reach = math.ceil(SINC * max(1, old / new)) + 1

    def work(part: Tensor) -> Tensor:
        # One channel at a time: a convolution of two may round otherwise than that of each.
        return torch.cat([sampling.resample(channel, old, new) for channel in part.split(1)])

    return process(blocks, work, Pieces(PIECE, reach, old=old, new=new))


def lowpassed(blocks: Iterable[Tensor], cutoff: float, rate: int) -> Iterator[Tensor]:
    """Whole up to a cutoff in Hz, gone from 2 % above it on; as it is where there is nothing above."""
    edge = 2 * cutoff / rate
    if edge * (1 + SLOPE) >= 1:
        return iter(blocks)
    taps = kaiser_sinc(edge * (1 + SLOPE / 2), edge * SLOPE)

    def work(part: Tensor) -> Tensor:
        return F.hardshrink(convolve(part, taps), ROUNDING)  # an FFT leaves no silence as it was

    return process(blocks, work, Pieces(max(PIECE, 4 * len(taps)), len(taps) // 2))


def add(base: Iterable[Tensor], more: Iterable[Tensor]) -> Iterator[Tensor]:
    """The sum, as long as `base`: what `more` has beyond it is left out, what it lacks is silent."""
    for one, other in zip_longest(regroup(base, PIECE), regroup(more, PIECE)):
        if one is None:
            return
        if other is None:
            yield one
        else:
            common = min(one.shape[1], other.shape[1])
            yield one + F.pad(other[:, :common], (0, one.shape[1] - common))


def awake(samples: Tensor, rate: int, grid: int) -> Tensor | None:
    """How much may be made at each sample, 0 to 1 [C, T]: none where a channel is silent all around; None for all of it
    everywhere. samples: [C, T], beginning at a multiple of `grid`, in steps of which it is decided."""
    near, fade = _steps(rate, grid)
    t = samples.shape[1]
    peaks = F.max_pool1d(F.pad(samples.abs(), (0, -t % grid))[None], grid)[0]  # [C, N]
    heard = F.max_pool1d((peaks > SILENT).float(), 2 * near + 1, 1, near)
    if heard.all():
        return None
    gain = F.avg_pool1d(heard, 2 * fade + 1, 1, fade, count_include_pad=False)
    return gain.repeat_interleave(grid, 1)[:, :t]


def awake_reach(rate: int, grid: int) -> int:
    """How many samples to either side `awake` looks."""
    return (sum(_steps(rate, grid)) + 1) * grid


def _steps(rate: int, grid: int) -> tuple[int, int]:
    return math.ceil(NEAR * rate / grid), math.ceil(FADE * rate / grid)
