"""How alike two sets of pictures are, and how alike two pictures: KID, FID and SSIM.

    KID     the squared maximum mean discrepancy of two sets of features under the kernel (x . y / C + 1)^3, unbiased
            (Binkowski et al. 2018, equation 4): 0 on average for two draws from one distribution, and so at times
            below it. Lower is better. Sets may differ in size
    FID     the Frechet distance of the Gaussians fitted to both sets (Heusel et al. 2017, equation 6). Lower is
            better. It falls as pictures are added: compare it between equal numbers only
    SSIM    structural similarity of two pictures (Wang et al. 2004): Gaussian window of 11 px, sigma 1.5, values in
            0..1, mean over the picture and its channels. 1 for equal pictures

Both sets are features, [N, C]; `genkit.metrics.features` makes them from pictures. Numbers of different feature
networks cannot be compared, so a table of them names the network.

Choices made here:
- Kernel, FID and SSIM are torchmetrics'. Its KID is a mean over random subsets of one size; here every pair of
  pictures counts, once, so that nothing is drawn and small sets are used up. With one subset that holds everything
  the two are the same.
- The error of KID is its standard error by the jackknife over the pictures of both sets.

N, M: pictures of the two sets; C: features; B: pairs of pictures; H, W: height and width in pixels.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genkit.errors import InputError

__all__ = ["Estimate", "fid", "kid", "ssim"]

WINDOW = 11  # px; SSIM needs more than half of it on each side


@dataclass(frozen=True)
class Estimate:
    """A number measured on a sample, and its standard error."""

    value: float
    error: float


def kid(real: Tensor, made: Tensor) -> Estimate:
    """KID of features [N, C] and [M, C]; see the module. Raises InputError for fewer than two pictures."""
    x, y = _pair(real, made)
    kernel = _torchmetrics("image.kid").poly_kernel
    n, m = len(x), len(y)
    xx, yy, xy = kernel(x, x).fill_diagonal_(0), kernel(y, y).fill_diagonal_(0), kernel(x, y)
    terms = (xx.sum() / (n * (n - 1)), yy.sum() / (m * (m - 1)), xy.sum() / (n * m))
    variance = _jackknife(xx, xy, float(terms[1])) + _jackknife(yy, xy.T, float(terms[0]))
    return Estimate(float(terms[0] + terms[1] - 2 * terms[2]), math.sqrt(variance))


def _jackknife(within: Tensor, across: Tensor, other: float) -> float:
    """Variance of KID from leaving out each picture of one set. within [N, N], diagonal 0; across [N, M]."""
    n, m = across.shape
    if n < 3:
        return math.nan
    inner = (within.sum() - 2 * within.sum(1)) / ((n - 1) * (n - 2))  # [N]
    outer = (across.sum() - across.sum(1)) / ((n - 1) * m)  # [N]
    left = inner + other - 2 * outer
    return float((n - 1) / n * (left - left.mean()).square().sum())


def fid(real: Tensor, made: Tensor) -> float:
    """FID of features [N, C] and [M, C]; see the module. Raises InputError for fewer than two pictures."""
    x, y = _pair(real, made)
    passed = nn.Identity()
    passed.num_features = x.shape[1]  # type: ignore[assignment]
    distance = _torchmetrics("image.fid").FrechetInceptionDistance(passed, normalize=True).set_dtype(torch.float64)
    distance.update(x, real=True)
    distance.update(y, real=False)
    return float(distance.compute())


def ssim(real: Tensor, made: Tensor) -> Tensor:
    """SSIM [B] of pictures [B, 3, H, W] in 0..1, pair by pair. Raises InputError where shapes differ or are small."""
    if real.shape != made.shape or real.ndim != 4:
        raise InputError(
            f"pictures {list(real.shape)} and {list(made.shape)} cannot be compared; both must be [B, 3, H, W]"
        )
    if min(real.shape[-2:]) < WINDOW:
        raise InputError(f"SSIM needs pictures of {WINDOW} px and more on each side, not {list(real.shape[-2:])}")
    measure = _torchmetrics("functional.image").structural_similarity_index_measure
    # In float64: a variance near zero is a difference of large numbers.
    return measure(made.double(), real.double(), data_range=1.0, reduction="none")


def _pair(real: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
    """Both as float64 on the CPU."""
    if real.ndim != 2 or made.ndim != 2 or real.shape[1] != made.shape[1]:
        raise InputError(f"features {list(real.shape)} and {list(made.shape)} cannot be compared; both must be [N, C]")
    if min(len(real), len(made)) < 2:
        raise InputError(f"two pictures at least are needed on each side; there are {len(real)} and {len(made)}")
    return real.detach().to("cpu", torch.float64), made.detach().to("cpu", torch.float64)


def _torchmetrics(part: str) -> Any:
    """A module of torchmetrics. Raises InputError where it is not installed."""
    try:
        return importlib.import_module(f"torchmetrics.{part}")
    except ImportError as error:
        raise InputError(f"KID, FID and SSIM need torchmetrics ({error}): pip install genkit-media[train]") from None
