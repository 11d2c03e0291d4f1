"""Up to which frequency a recording has sound: the cut of an encoder, a resampler or a narrow line, told from mere
dullness.

The power spectrum of the whole (Welch 1967: Kaiser 16384, frames side by side, silent ones left out) is searched for an
edge: a frequency just below which nearly every bin lies far above nearly every bin from there up. A filter makes such
an edge; music that fades towards its treble, or a few partials over noise, does not, since there the bins below are no
fuller than those above. What is found comes with how deep the edge is, and how sure that makes it.

Choices made here:
- Power is averaged, not its logarithm: treble that sounds now and then is treble.
- The cutoff is the last frequency that is less than 10 dB under the level just below the edge.
- An edge above 0.96 of half the rate, or a gentle one above 0.8 of it, is the converter's own: such a recording is
  full.
- No edge is no cutoff: half the rate is given, and `kind` says whether there is treble up to it ("full"), or it fades
  away ("faded").

C: channels; T: samples; F: frequencies, 0 to half the rate.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from genkit.media.streaming import Reader, regroup

__all__ = ["Bandwidth", "detect", "measure"]

FFT = 16_384
_BLOCK = 32 * FFT
_BETA = 14.0  # of the Kaiser window: what is beside a partial is 110 dB below it
_SILENT = 1e-12  # mean square of a frame that says nothing
_GENTLE, _NATURAL = 0.80, 0.96  # shares of half the rate above which a gentle edge, and any, is the converter's
_LEAST = 500.0  # Hz; below it there is no telling a cut from a bass
_BELOW, _ABOVE = (0.80, 0.97), (1.03, 1.25)  # what is compared, as shares of an edge
_DEPTH, _CERTAIN = 12.0, 30.0  # dB: the least depth of an edge, and one that leaves no doubt
_DOWN = 10.0  # dB
_STEP = 4.0  # dB, of the levels that are counted before any is sorted


@dataclass(frozen=True)
class Bandwidth:
    """cutoff: Hz, half the rate where there is no cut; kind: "cut", "full", "faded" or "silent"; sure: 0 to 1; depth:
    dB that the edge falls, 0 without one."""

    cutoff: float
    kind: str
    sure: float
    depth: float

    def __str__(self) -> str:
        """One line for a person."""
        words = {
            "cut": f"cut off at {self.cutoff:,.0f} Hz ({self.depth:.0f} dB)",
            "full": f"full up to {self.cutoff:,.0f} Hz",
            "faded": f"fades away below {self.cutoff:,.0f} Hz, without a cut",
            "silent": "silent",
        }
        return f"{words[self.kind]}, {self.sure:.0%} sure"


def measure(path: str | Path) -> Bandwidth:
    """The bandwidth of a file, in memory that does not grow with its length. Raises MediaError."""
    with Reader(path) as sound:
        return detect(sound.blocks(), sound.sample_rate)


def detect(blocks: Iterable[Tensor], sample_rate: int) -> Bandwidth:
    """The bandwidth of a sound given in blocks [C, T] of any length; all its channels are measured as one."""
    power = _spectrum(blocks)
    nyquist = sample_rate / 2
    if power is None:
        return Bandwidth(nyquist, "silent", 0.0, 0.0)
    decibel = 10 * np.log10(np.maximum(power, 1e-20))
    hertz = nyquist / (FFT // 2)
    edge, depth = _edge(decibel, max(240, int(_LEAST / hertz)))
    sure = float(np.clip((depth - _DEPTH) / (_CERTAIN - _DEPTH), 0, 1))
    if depth < _DEPTH:  # the shallower the deepest step, the surer that none is a cut
        return Bandwidth(nyquist, "full" if _has_treble(decibel) else "faded", 1 - depth / _DEPTH / 2, 0.0)
    place = _last_loud(decibel, edge)
    share = place / (len(decibel) - 1)
    if share > _NATURAL or (share > _GENTLE and _steepness(decibel, place) < _DEPTH):
        return Bandwidth(nyquist, "full", 0.75, 0.0)
    return Bandwidth(place * hertz, "cut", 0.5 + sure / 2, depth)


def _spectrum(blocks: Iterable[Tensor]) -> np.ndarray | None:
    """Mean power [F], all channels together; None for silence. What is left after the last whole frame is left out."""
    total, count = torch.zeros(FFT // 2 + 1, dtype=torch.float64), 0
    for block in regroup(blocks, _BLOCK):
        length = min(FFT, block.shape[1]) if not count else FFT  # a sound shorter than a frame is one of its own length
        frames = block[:, : block.shape[1] // length * length].to(torch.float64).unflatten(1, (-1, length))
        frames = frames - frames.mean(-1, keepdim=True)
        heard = frames.square().mean(-1) > _SILENT
        if heard.any():
            window = torch.kaiser_window(length, False, _BETA, dtype=torch.float64)
            total += torch.fft.rfft(frames[heard] * window, FFT).abs().square().sum(0)
            count += int(heard.sum())
    return (total / count).numpy() if count else None


def _edge(decibel: np.ndarray, least: int) -> tuple[int, float]:
    """The bin where the spectrum falls most, for good, and by how many dB it does; of several the lowest."""
    places = np.unique(np.geomspace(least, len(decibel) - 1, 600).astype(int))
    ends = [(share * places).astype(int) for share in (*_BELOW, *_ABOVE)]
    starts = np.stack((ends[0], ends[2] + 1))
    stops = np.stack((np.maximum(ends[1], 1), np.minimum(ends[3] + 2, len(decibel))))
    long = (stops - starts >= 4).all(0)
    places, starts, stops = places[long], starts[:, long], stops[:, long]
    most = _most(decibel, starts, stops)
    best, depth = 0, 0.0
    for i in np.argsort(-most, kind="stable"):
        if most[i] <= 0 or most[i] < depth:
            break
        low = _quantile(decibel[starts[0, i] : stops[0, i]], 0.1)
        fall = low - _quantile(decibel[starts[1, i] : stops[1, i]], 0.9)
        deeper = fall > depth or (fall == depth > 0 and places[i] < best)
        # For good: nothing above it is as loud again, single lines (the whistle of a screen) apart.
        if deeper and low - _quantile(decibel[starts[1, i] :], 0.9) >= min(fall, _DEPTH):
            best, depth = int(places[i]), fall
    return best, depth


def _most(decibel: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """What the falls are at most, [P]: from counts of levels in steps of _STEP, which spares sorting at most places.

    starts, stops: [2, P], the bins below each place and above it.
    """
    bottom = decibel.min()
    cells = ((decibel - bottom) / _STEP).astype(int)
    count = np.zeros((cells.max() + 1, len(decibel) + 1), np.int32)  # of the first bins, how many are up to a cell
    np.cumsum(cells <= np.arange(len(count))[:, None], 1, out=count[:, 1:])
    place = np.array([[0.1], [0.9]]) * (stops - starts - 1)
    place = np.stack((np.ceil(place[0]), np.floor(place[1])))  # at least the one quantile, at most the other
    cell = ((count[:, stops] - count[:, starts]) <= place).sum(0)
    return _STEP * (cell[0] + 1 - cell[1]) + 1e-6


def _quantile(values: np.ndarray, share: float) -> float:
    """np.quantile, which takes four times as long over so few values."""
    place = share * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    part = np.partition(values, (low, high))
    return float(part[low] + (place - low) * (part[high] - part[low]))


def _last_loud(decibel: np.ndarray, edge: int) -> float:
    """The last bin about an edge where the level is less than _DOWN below what is under it."""
    power = 10 ** (decibel / 10)
    width = max(1, edge // 200) | 1
    smooth = 10 * np.log10(np.convolve(power, np.ones(width) / width, mode="same"))
    level = np.median(smooth[int(0.8 * edge) : int(0.93 * edge) + 1])
    start, end = int(0.9 * edge), min(len(decibel), int(1.1 * edge) + 2)
    loud = np.flatnonzero(smooth[start:end] >= level - _DOWN)
    return float(start + loud[-1]) if len(loud) else float(edge)


def _steepness(decibel: np.ndarray, place: float) -> float:
    """dB that the level falls by from 3 % below a bin to 3 % above it."""
    around = [slice(int((share - 0.01) * place), int((share + 0.01) * place) + 1) for share in (0.97, 1.03)]
    return float(np.median(decibel[around[0]]) - np.median(decibel[around[1]]))


def _has_treble(decibel: np.ndarray) -> bool:
    """Whether the upper quarter of the spectrum is within 60 dB of the loudest."""
    return bool(np.median(decibel[3 * len(decibel) // 4 :]) > decibel.max() - 60)
