"""Low-pass filters without phase: five families, designed here and applied through the FFT.

    chebyshev     type I: equal ripple below the edge, steep above it
    butterworth   no ripple; the edge is its -3 dB point
    elliptic      equal ripple below and above, the steepest of its order
    bessel        the gentlest; the edge is its -3 dB point
    fir           a sinc under a Hamming window, `order` + 1 taps; the edge is its -6 dB point
    brickwall     a sinc under a Kaiser window, 100 dB down at the edge and whole 3 % below it, as encoders of MP3 cut

Choices made here:
- The first four run forwards and backwards, so that nothing is delayed and every gain counts twice, with the ends
  extended as scipy.signal.sosfiltfilt extends them. scipy is no dependency: the same numbers come out (within 1e-9)
  from the filters' frequency responses, over a stretch of constant sound in which their beginnings die away.
- Responses are evaluated as products over zeros and poles in float64, which stays exact where coefficients would not.

Sources: Oppenheim & Schafer, Discrete-Time Signal Processing, ch. 7 (bilinear transform, Butterworth, Chebyshev,
Kaiser); Orfanidis, Lecture Notes on Elliptic Filter Design (2006); Thomson 1949 (Bessel).

T: samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genkit.errors import InputError

__all__ = ["FAMILIES", "MAX_ORDER", "kaiser_sinc", "lowpass"]

FAMILIES = ("chebyshev", "butterworth", "elliptic", "bessel", "fir", "brickwall")
MAX_ORDER = 12  # of the recursive families; more has no use in front of a converter
MAX_TAPS = 1 << 20  # of a FIR, so that an edge near 0 Hz is refused before memory is taken
_BRICK = 0.03  # width of the brick wall's slope, relative to its edge
_LEAST = 8192  # samples of a block in `within`
_QUIET = 1e-15  # what is left of a filter's beginning when its output is used


def lowpass(
    samples: Tensor,
    edge: float,
    *,
    family: str = "chebyshev",
    order: int | None = None,
    ripple: float = 0.05,
    attenuation: float = 60.0,
) -> Tensor:
    """Without what lies above an edge, and without delay.

    samples: [..., T]; edge: as a share of half the rate, 0 to 1, ends excluded; family: see the module; order: 1 to 12
    (default 8), of `fir` 1 to 2^20 (default 20 / edge, as scipy.signal.decimate has it); ripple: dB of one pass below
    the edge (chebyshev, elliptic); attenuation: dB of one pass above it (elliptic).

    Returns samples of the same shape and type. Raises InputError.
    """
    _check(edge, family, ripple, attenuation)
    if family in ("fir", "brickwall"):
        return convolve(samples, _taps(family, edge, order))
    order = _checked_order(8 if order is None else order, MAX_ORDER)
    design = _design(family, order, edge, ripple, attenuation)
    wide = samples.to(torch.float64)
    reach = 3 * (order + 1)
    extended = extend(wide, reach)
    once = _causal(extended, design)
    twice = _causal(once.flip(-1), design).flip(-1)
    return twice[..., reach : reach + samples.shape[-1]].to(samples.dtype)


def kaiser_sinc(edge: float, width: float, attenuation: float = 100.0) -> Tensor:
    """Taps [2 n + 1], float64, of a linear-phase low-pass: -6 dB at `edge`, `attenuation` dB down after `width` / 2,
    both as shares of half the rate (by Kaiser's formulas). Raises InputError."""
    beta = 0.1102 * (attenuation - 8.7)
    half = math.ceil((attenuation - 8) / (2.285 * math.pi * width) / 2)
    if 2 * half + 1 > MAX_TAPS:
        raise InputError(f"a filter with a slope of {width:.2g} of half the rate is too long; choose a higher cutoff")
    return _sinc(edge, half, torch.kaiser_window(2 * half + 1, False, beta, dtype=torch.float64))


def convolve(samples: Tensor, taps: Tensor) -> Tensor:
    """samples [..., T] through a symmetric FIR of an odd number of taps, without delay, the ends extended."""
    return within(extend(samples.to(torch.float64), len(taps) // 2), taps).to(samples.dtype)


def within(samples: Tensor, taps: Tensor) -> Tensor:
    """[..., T + K - 1] through a FIR of K taps -> [..., T], where all of them lie on samples. float64.

    By overlap-save (Oppenheim & Schafer ch. 8): blocks of a length that an FFT is quick at and that stay in the
    processor's cache, where one FFT over the whole takes many times as long.
    """
    k = len(taps)
    length = samples.shape[-1] - k + 1
    n = min(max(_LEAST, _smooth(4 * k)), _smooth(samples.shape[-1]))
    step = n - k + 1
    count = -(-length // step)
    blocks = F.pad(samples, (0, count * step + k - 1 - samples.shape[-1])).unfold(-1, n, step)  # [..., count, n]
    found = torch.fft.irfft(torch.fft.rfft(blocks) * torch.fft.rfft(taps.to(samples), n), n)
    return found[..., k - 1 :].flatten(-2)[..., :length]  # what has gone round the circle is left out


def extend(samples: Tensor, reach: int) -> Tensor:
    """[..., T] -> [..., T + 2 reach]: turned about its end points, so that value and slope go on; constant beyond T."""
    turned = min(reach, samples.shape[-1] - 1)
    first, last = samples[..., :1], samples[..., -1:]
    left = 2 * first - samples[..., 1 : turned + 1].flip(-1)
    right = 2 * last - samples[..., samples.shape[-1] - 1 - turned : -1].flip(-1)
    whole = torch.cat((left, samples, right), -1)
    if turned == reach:
        return whole
    held = (*samples.shape[:-1], reach - turned)
    return torch.cat((whole[..., :1].expand(held), whole, whole[..., -1:].expand(held)), -1)


def _check(edge: float, family: str, ripple: float, attenuation: float) -> None:
    if family not in FAMILIES:
        raise InputError(f"no filter is called {family!r}; choose one of {', '.join(FAMILIES)}")
    if not 0 < edge < 1:
        raise InputError(f"the cutoff is {edge:.4g} of half the rate; it must be above 0 and below 1")
    if not 0 < ripple < attenuation <= 200:
        raise InputError(
            f"ripple {ripple!r} and attenuation {attenuation!r} do not fit: 0 < ripple < attenuation <= 200"
        )


def _checked_order(order: int, most: int) -> int:
    if isinstance(order, bool) or not isinstance(order, int) or not 1 <= order <= most:
        raise InputError(f"order {order!r} is not valid: give a whole number from 1 to {most}")
    return order


# ------------------------------------------------------------------------------------------------------------- FIR


def _taps(family: str, edge: float, order: int | None) -> Tensor:
    if family == "brickwall":
        width = _BRICK * edge
        return kaiser_sinc(edge - width / 2, width)
    order = _checked_order(math.ceil(20 / edge) if order is None else order, MAX_TAPS)
    half = (order + 1) // 2  # an odd order has no tap in the middle; the next even one has
    return _sinc(edge, half, torch.hamming_window(2 * half + 1, False, dtype=torch.float64))


def _sinc(edge: float, half: int, window: Tensor) -> Tensor:
    taps = torch.sinc(edge * torch.arange(-half, half + 1, dtype=torch.float64)) * window
    return taps / taps.sum()


# ------------------------------------------------------------------------------------------------------- recursive


@dataclass(frozen=True)
class Design:
    """A digital filter by its zeros and poles in z, and its gain at 0 Hz."""

    zeros: np.ndarray
    poles: np.ndarray
    gain: float

    def response(self, n: int) -> np.ndarray:
        """The complex response at the n // 2 + 1 frequencies of a real FFT over n samples."""
        z = np.exp(2j * np.pi * np.arange(n // 2 + 1) / n)
        found = np.full(len(z), complex(self.gain))
        for zero in self.zeros:
            found *= (z - zero) / (1 - zero)
        for pole in self.poles:
            found *= (1 - pole) / (z - pole)
        # As many poles as zeros: the same powers of z cancel, and nothing is delayed.
        return found

    @property
    def settling(self) -> int:
        """Samples until a beginning has died away to _QUIET."""
        return math.ceil(math.log(_QUIET) / math.log(np.abs(self.poles).max())) + 1


def _causal(samples: Tensor, design: Design) -> Tensor:
    """[..., T] -> [..., T], as though the first sample had sounded for ever before: the initial state of filtfilt."""
    before = design.settling
    if before > MAX_TAPS:
        raise InputError("the cutoff is too low for this filter; choose a higher one, or fir")
    n = _smooth(samples.shape[-1] + before)
    held = samples[..., :1].expand(*samples.shape[:-1], before)
    spectrum = torch.fft.rfft(torch.cat((held, samples), -1), n)
    response = torch.from_numpy(design.response(n)).to(spectrum)
    # What the circle carries from the end to the start falls into the samples before, which are dropped.
    return torch.fft.irfft(spectrum * response, n)[..., before : before + samples.shape[-1]]


def _smooth(n: int) -> int:
    """The next length that an FFT is quick at: 2^k, 3 2^k or 5 2^k."""
    return min(factor << max(0, math.ceil(math.log2(n / factor))) for factor in (1, 3, 5))


def _design(family: str, order: int, edge: float, ripple: float, attenuation: float) -> Design:
    """The analogue prototype with its edge at 1 rad/s, through the bilinear transform; the edge stays in place."""
    zeros, poles, gain = _PROTOTYPES[family](order, ripple, attenuation)
    scale = math.tan(math.pi * edge / 2)
    digital_zeros = (1 + scale * zeros) / (1 - scale * zeros)
    digital_zeros = np.concatenate((digital_zeros, -np.ones(len(poles) - len(zeros))))
    return Design(digital_zeros, (1 + scale * poles) / (1 - scale * poles), gain)


Prototype = tuple[np.ndarray, np.ndarray, float]
_NONE = np.zeros(0, complex)


def _butterworth(order: int, ripple: float, attenuation: float) -> Prototype:
    angles = np.pi * (2 * np.arange(order) + 1 + order) / (2 * order)
    return _NONE, np.exp(1j * angles), 1.0


def _chebyshev(order: int, ripple: float, attenuation: float) -> Prototype:
    spread = math.asinh(1 / _epsilon(ripple)) / order
    angles = np.pi * (2 * np.arange(order) + 1) / (2 * order)
    poles = -math.sinh(spread) * np.sin(angles) + 1j * math.cosh(spread) * np.cos(angles)
    return _NONE, poles, _start(order, ripple)


def _bessel(order: int, ripple: float, attenuation: float) -> Prototype:
    """Roots of the reverse Bessel polynomial, scaled so that the response at 1 rad/s is -3 dB."""
    powers = [
        math.factorial(2 * order - k) / (2 ** (order - k) * math.factorial(k) * math.factorial(order - k))
        for k in range(order, -1, -1)
    ]
    poles = np.roots(powers).astype(complex)

    def gain(at: float) -> float:
        return float(np.abs(np.prod(poles / (1j * at - poles))))

    low, high = 0.0, 100.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if gain(middle) > math.sqrt(0.5) else (low, middle)
    return _NONE, poles / low, 1.0


def _elliptic(order: int, ripple: float, attenuation: float) -> Prototype:
    epsilon = _epsilon(ripple)
    k1 = epsilon / _epsilon(attenuation)
    places = (2 * np.arange(1, order // 2 + 1) - 1) / order
    k = _degree(order, k1, places)
    zeros = 1j / (k * _cd(places, k))
    depth = -1j / order * (1 - _inverse_cd(1j / epsilon, k1))
    poles = 1j * _cd(places - 1j * depth, k)
    middle = [1j * _sn(1j * depth, k)] if order % 2 else []
    return (
        np.concatenate((zeros, zeros.conj())),
        np.concatenate((poles, poles.conj(), np.array(middle, complex).real)),
        _start(order, ripple),
    )


_PROTOTYPES: dict[str, Callable[[int, float, float], Prototype]] = {
    "butterworth": _butterworth,
    "chebyshev": _chebyshev,
    "bessel": _bessel,
    "elliptic": _elliptic,
}


def _epsilon(decibel: float) -> float:
    return math.sqrt(10 ** (decibel / 10) - 1)


def _start(order: int, ripple: float) -> float:
    """Of a response with equal ripple at 0 Hz: at the top for an odd order, at the bottom for an even one."""
    return 1.0 if order % 2 else 10 ** (-ripple / 20)


def _degree(order: int, k1: float, places: np.ndarray) -> float:
    """The modulus k that makes an elliptic filter of this order reach k1."""
    other = math.sqrt(1 - k1 * k1)
    prime = other**order * float(np.prod(_sn(places, other).real ** 4))
    return math.sqrt(1 - prime * prime)


def _landen(k: float) -> list[float]:
    """Descending moduli of the Landen transformation, until they vanish."""
    found: list[float] = []
    while k > 1e-16 and len(found) < 20:
        k = (k / (1 + math.sqrt((1 - k) * (1 + k)))) ** 2
        found.append(k)
    return found


def _ascend(w: np.ndarray, k: float) -> np.ndarray:
    for v in reversed(_landen(k)):
        w = (1 + v) * w / (1 + v * w * w)
    return w


def _cd(u: np.ndarray | complex, k: float) -> np.ndarray:
    """cd(u K, k), u complex."""
    return _ascend(np.cos(np.pi / 2 * np.asarray(u, complex)), k)


def _sn(u: np.ndarray | complex, k: float) -> np.ndarray:
    """sn(u K, k)."""
    return _ascend(np.sin(np.pi / 2 * np.asarray(u, complex)), k)


def _inverse_cd(w: complex, k: float) -> complex:
    """The u with cd(u K, k) = w."""
    for v in _landen(k):
        w = 2 * w / ((1 + v) * (1 + np.sqrt(1 - w * w * k * k + 0j)))
        k = v
    return complex(2 / np.pi * np.arccos(complex(w)))
