"""What sampling does to sound: fewer samples a second, fewer bits, folded treble, and the two ways back.

A training pair is one call: `degrade(sound, 8000, restore="spline")` is as long as `sound` and at its rate, and holds
what was left of it at 8 kHz. Everything here works along the last dimension of [..., T] (`genkit.media.audio.degrade`
takes an Audio), without delay, and draws only from the seed or generator it is given.

Choices made here:
- `decimate` with its defaults gives scipy.signal.decimate's numbers, and `upsample(..., method="spline")` those of
  scipy.interpolate.splev, as the papers of audio super-resolution use them (Kuleshov, Enam & Ermon 2017).
- The last samples of a spline lie beyond its last knot: its last cubic goes on, as in scipy.
- Quantisation is mid-tread: silence stays silence.

T: samples.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from genkit.errors import InputError, MediaError
from genkit.media import _lowpass
from genkit.media._lowpass import FAMILIES, lowpass

__all__ = [
    "FAMILIES",
    "FILTERS",
    "decimate",
    "degrade",
    "folded",
    "lowpass",
    "quantise",
    "random_filter",
    "resample",
    "spline",
    "upsample",
]

FILTERS = ("sinc", *FAMILIES)
METHODS = ("sinc", "spline")
EDGES = {"fir": 1.0, "brickwall": 0.95}
"""Where a filter cuts, as a share of half the new rate, if no cutoff is given; the others at scipy's 0.8."""
_WIDTH, _ROLLOFF, _BETA = 64, 0.9475937167399596, 14.769656459379492  # resampy's "kaiser_best"
_KERNEL = 50_000_000  # coefficients of a resampling filter: 0.4 GB in float64
_POLE = math.sqrt(3) - 2  # of the cubic B-spline's inverse (Unser, Aldroubi & Eden 1993)
_TAIL = 30  # after which its powers are below 1e-17


def degrade(
    samples: Tensor,
    old: int,
    new: int,
    *,
    bits: int | None = None,
    dither: int | torch.Generator | None = None,
    filter: str = "chebyshev",
    order: int | None = None,
    cutoff: float | None = None,
    ripple: float = 0.05,
    attenuation: float = 60.0,
    antialias: bool = True,
    restore: str | None = None,
) -> Tensor:
    """A recording as a worse converter would have made it: filtered, sampled at a lower rate, in fewer bits.

    samples: [..., T] at `old` Hz; new: Hz, at most `old` (equal to it, no filter unless a cutoff is given); bits,
    dither: see `quantise`; filter: "sinc" (as `resample`) or a family of `_lowpass`; order, ripple, attenuation: of
    that family; cutoff: its edge in Hz (default: EDGES); antialias: False leaves the filter out, so that everything
    above half the new rate folds down (see `folded`); restore: "sinc" or "spline" bring it back to `old` Hz and T
    samples.

    Returns [..., ceil(T new / old)] at `new` Hz, or with `restore` [..., T]. Raises InputError.
    """
    if not 0 < new <= old:
        raise InputError(f"{old} Hz cannot be degraded to {new} Hz; give a rate above 0 and at most {old}")
    if filter not in FILTERS:
        raise InputError(f"no filter is called {filter!r}; choose one of {', '.join(FILTERS)}")
    found = samples
    if antialias and filter == "sinc" and cutoff is None:
        found = resample(found, old, new)
    else:
        if antialias and (new < old or cutoff is not None):
            edge = EDGES.get(filter, 0.8) * new / old if cutoff is None else 2 * cutoff / old
            family = "brickwall" if filter == "sinc" else filter
            found = lowpass(found, edge, family=family, order=order, ripple=ripple, attenuation=attenuation)
        found = _pick(found, old, new)
    if bits is not None:
        found = quantise(found, bits, dither)
    return found if restore is None else upsample(found, new, old, method=restore, length=samples.shape[-1])


def decimate(samples: Tensor, factor: int, **filter: Any) -> Tensor:
    """Every `factor`-th sample after a low-pass, [..., T] -> [..., ceil(T / factor)]; scipy.signal.decimate's numbers.

    filter: `family`, `order`, `ripple`, `attenuation` of `lowpass`; by default the Chebyshev filter of order 8, its
    edge at 0.8 of half the new rate. Raises InputError.
    """
    if factor < 1:
        raise InputError(f"a factor of {factor} is not valid: give a whole number from 1")
    family = filter.get("family", "chebyshev")
    return samples if factor == 1 else lowpass(samples, EDGES.get(family, 0.8) / factor, **filter)[..., ::factor]


def folded(frequency: float, rate: int) -> float:
    """Where a sine of `frequency` Hz is heard once it is sampled at `rate` Hz without a low-pass: its alias,
    |f - rate round(f / rate)| (Shannon 1949)."""
    return abs(frequency - rate * round(frequency / rate))


def random_filter(generator: torch.Generator) -> dict[str, Any]:
    """Arguments for `degrade`: a family, and an order, ripple and cutoff that suit it, so that a network meets the many
    filters of real recordings and does not learn to undo one of them (Sulun & Davies 2021). Every family is as likely.
    """

    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))

    family = FILTERS[int(torch.randint(len(FILTERS), (), generator=generator))]
    found: dict[str, Any] = {"filter": family}
    if family in ("chebyshev", "butterworth", "elliptic", "bessel"):
        found["order"] = int(torch.randint(4 if family != "elliptic" else 3, 13, (), generator=generator))
    if family in ("chebyshev", "elliptic"):
        found["ripple"] = math.exp(draw(math.log(1e-3), math.log(3.0)))
    if family == "elliptic":
        found["attenuation"] = draw(30, 80)
    return found


# -------------------------------------------------------------------------------------------------------- one by one


def quantise(samples: Tensor, bits: int, dither: int | torch.Generator | None = None) -> Tensor:
    """Rounded to 2^bits levels in -1..1: multiples of the step 2^(1 - bits), from -1 to 1 - step (mid-tread, clipped).

    bits: 1 to 24. dither: a seed or generator adds triangular noise of two steps' width before rounding, which frees
    mean and power of the error from the sound (Lipshitz, Wannamaker & Vanderkooy 1992). Without it a full-scale sine
    has a signal-to-noise ratio of 6.02 bits + 1.76 dB (Bennett 1948). Raises InputError.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 24:
        raise InputError(f"bits {bits!r} is not valid: give a whole number from 1 to 24")
    top = 2 ** (bits - 1)
    scaled = samples.to(torch.float64) * top
    if dither is not None:
        generator = dither if isinstance(dither, torch.Generator) else torch.Generator().manual_seed(dither)
        noise = torch.rand((2, *samples.shape), generator=generator, dtype=torch.float64)
        scaled = scaled + (noise[0] - noise[1]).to(scaled.device)
    return (scaled.round().clamp(-top, top - 1) / top).to(samples.dtype)


def resample(samples: Tensor, old: int, new: int) -> Tensor:
    """[..., T] at `old` Hz -> [..., ceil(T new / old)] at `new` Hz: a sinc under a Kaiser window, band-limited to the
    lower of the two rates. Its numbers are those of resampy's "kaiser_best": flat up to 0.9 of half that rate.

    Raises MediaError for a pair of rates so odd that the filter would not fit in memory.
    """
    import torchaudio.functional as F

    if old == new:
        return samples
    common = math.gcd(old, new)
    a, b = old // common, new // common
    if b * (2 * _WIDTH * max(1, a / b) + a) > _KERNEL:
        raise MediaError(f"{old} to {new} Hz needs too large a filter; choose a rounder rate")
    return F.resample(
        samples,
        old,
        new,
        lowpass_filter_width=_WIDTH,
        rolloff=_ROLLOFF,
        resampling_method="sinc_interp_kaiser",
        beta=_BETA,
    )


def upsample(samples: Tensor, old: int, new: int, *, method: str = "sinc", length: int | None = None) -> Tensor:
    """Reconstruction at a higher rate, [..., T] -> [..., ceil(T new / old)], or `length` samples of it.

    method: "sinc" (`resample`: what is band-limited comes back; Whittaker 1915, Shannon 1949) or "spline" (cubic,
    through every sample). If `length` is more than there is, the last sample is held. Raises InputError.
    """
    if method not in METHODS:
        raise InputError(f"no reconstruction is called {method!r}; choose one of {', '.join(METHODS)}")
    if not 0 < old <= new:
        raise InputError(f"{old} to {new} Hz is no upsampling; give a rate of at least {old}")
    whole = -(-samples.shape[-1] * new // old)
    found = resample(samples, old, new) if method == "sinc" else spline(samples, old / new, whole)
    length = whole if length is None else length
    if length > whole:
        found = torch.cat((found, found[..., -1:].expand(*found.shape[:-1], length - whole)), -1)
    return found[..., :length]


def spline(samples: Tensor, step: float, length: int) -> Tensor:
    """[..., T] -> [..., length]: the cubic spline through samples at 0, 1, 2 ... (not-a-knot ends, as
    scipy.interpolate.splrep has it), read at 0, step, 2 step ... Fewer than four samples: the polynomial through them.
    """
    place = torch.arange(length, dtype=torch.float64, device=samples.device) * step
    wide = samples.to(torch.float64)
    if wide.shape[-1] < 4:
        return _polynomial(wide, place).to(samples.dtype)
    coefficients = _coefficients(wide)
    knot = place.floor().long().clamp(0, wide.shape[-1] - 2)
    u = place - knot
    weights = ((1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3)
    found = torch.zeros_like(coefficients[..., knot])
    for k, weight in enumerate(weights):
        found += weight * coefficients[..., knot + k]
    return (found / 6).to(samples.dtype)


def _coefficients(samples: Tensor) -> Tensor:
    """[..., T] -> [..., T + 2], c_-1 .. c_T of the cubic B-splines whose sum goes through the samples.

    c_i-1 + 4 c_i + c_i+1 = 6 s_i has one solution that stays bounded for ever (a symmetric exponential, Unser et al.
    1993), and the powers of the pole from either end may be added to it: as much of each as makes the third derivative
    go through the second knot, and the one before the last, without a jump.
    """
    import torchaudio.functional as F

    powers = _POLE ** torch.arange(-_TAIL, _TAIL + 1, dtype=torch.float64, device=samples.device).abs()
    kernel = (6 * _POLE / (_POLE * _POLE - 1) * powers).expand(*samples.shape[:-1], -1)
    found = F.fftconvolve(_lowpass.extend(samples, _TAIL + 1), kernel, mode="valid")
    n = found.shape[-1]
    rising = _POLE ** torch.arange(n, dtype=torch.float64, device=samples.device)
    jump = torch.tensor([1.0, -4.0, 6.0, -4.0, 1.0], dtype=torch.float64, device=samples.device)
    # n >= 6, and the powers meet in the middle: both ends are solved together.
    own, other = (rising[:5] * jump).sum(), (rising.flip(0)[:5] * jump).sum()
    left, right = (found[..., :5] * jump).sum(-1), (found[..., -5:] * jump).sum(-1)
    scale = own * own - other * other
    first, last = (other * right - own * left) / scale, (other * left - own * right) / scale
    return found + first[..., None] * rising + last[..., None] * rising.flip(0)


def _polynomial(samples: Tensor, place: Tensor) -> Tensor:
    """Lagrange's through one to three samples at 0, 1, 2."""
    found = torch.zeros(*samples.shape[:-1], len(place), dtype=samples.dtype, device=samples.device)
    count = samples.shape[-1]
    for i in range(count):
        weight = torch.ones_like(place)
        for j in range(count):
            weight = weight * ((place - j) / (i - j) if i != j else 1)
        found = found + samples[..., i : i + 1] * weight
    return found


def _pick(samples: Tensor, old: int, new: int) -> Tensor:
    """Samples at a lower rate without any low-pass: every n-th of them, where the rates divide; else of the sinc
    interpolation at the next multiple of the new rate."""
    multiple = -(-old // new)
    return resample(samples, old, multiple * new)[..., ::multiple]
