"""What content and style are, as numbers.

Shapes: B batch, C channels, H height, W width, N = H*W positions. Statistics are taken in float32 whatever the
features' dtype: a Gram matrix sums over a hundred thousand positions, more than half precision can count.

Every style loss is relative to the size of its target, so that layers of any width and networks of any scale weigh
alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

__all__ = [
    "STYLE_LOSSES",
    "Gram",
    "Moments",
    "StyleLoss",
    "Sums",
    "Wasserstein",
    "blend",
    "moments",
    "mse",
    "total_variation",
    "trace_sqrt",
    "variations",
]

NEWTON_SCHULZ_ITERATIONS = 12
JITTER = 1e-4  # on the diagonal of a covariance: keeps its square root differentiable


class Moments(NamedTuple):
    """Of features over positions: mean [B, C] and second moment [B, C, C] = E[f f^T], the Gram matrix."""

    mean: Tensor
    second: Tensor

    def covariance(self) -> Tensor:
        outer = self.mean[:, :, None] * self.mean[:, None, :]
        return self.second - outer + JITTER * torch.eye(self.mean.shape[1], device=self.mean.device)

    def size(self) -> Tensor:
        """E|f|^2 [B]."""
        return torch.diagonal(self.second, dim1=1, dim2=2).sum(1)


class Sums(NamedTuple):
    """Sums over positions, before the division that makes moments of them: these add up over the tiles of a picture."""

    total: Tensor
    first: Tensor
    second: Tensor

    @classmethod
    def of(cls, features: Tensor, weight: Tensor | None = None) -> Sums:
        """Of features [B, C, H, W]; a weight [B, 1, H, W] >= 0 counts each position by so much (a region)."""
        first, second = _FirstAndSecond.apply(features, weight)
        if weight is None:
            return cls(first.new_tensor(features.shape[2] * features.shape[3]), first, second)
        return cls(weight.sum((1, 2, 3))[:, None].clamp_min(1e-6), first, second)

    def plus(self, other: Sums) -> Sums:
        return Sums(self.total + other.total, self.first + other.first, self.second + other.second)

    def moments(self) -> Moments:
        return Moments(self.first / self.total, self.second / self.total[..., None])


class _FirstAndSecond(torch.autograd.Function):
    """sum f [B, C] and sum f f^T [B, C, C] over positions, in float32; keeps the features in their dtype, no copy."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(features, weight)
        with _full_precision(features):
            flat = features.flatten(2).float()  # [B, C, N]
            weighted = flat if weight is None else flat * weight.flatten(2)
            return weighted.sum(2), weighted @ flat.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, first: Tensor, second: Tensor) -> tuple[Tensor, None]:
        features, weight = ctx.saved_tensors
        flat = features.flatten(2)
        with _full_precision(features):
            both = (second + second.transpose(1, 2)).to(flat.dtype)
            if features.is_contiguous(memory_format=torch.channels_last):  # the gradient in the features' own layout
                grad = torch.baddbmm(first[:, None, :].to(flat.dtype), flat.transpose(1, 2), both).transpose(1, 2)
            else:
                grad = torch.baddbmm(first[:, :, None].to(flat.dtype), both, flat)
            if weight is not None:
                grad = grad * weight.flatten(2)
        return grad.unflatten(2, features.shape[2:]).to(features.dtype), None


def moments(features: Tensor, weight: Tensor | None = None) -> Moments:
    """Moments of features [B, C, H, W] over positions, each counted by a weight [B, 1, H, W] where one is given."""
    return Sums.of(features, weight).moments()


def _full_precision(x: Tensor) -> torch.autocast:
    """Switches a surrounding autocast off: matrix products in half precision would make roots of them diverge."""
    return torch.autocast(x.device.type, enabled=False)


def blend(styles: Sequence[Moments], weights: Sequence[float]) -> Moments:
    """The moments of several styles at once: what a picture would have whose area they share in these parts."""
    total = sum(weights)
    shares = [weight / total for weight in weights]
    mean = torch.stack([share * style.mean for share, style in zip(shares, styles, strict=True)]).sum(0)
    second = torch.stack([share * style.second for share, style in zip(shares, styles, strict=True)]).sum(0)
    return Moments(mean, second)


class StyleLoss(Protocol):
    """A loss that holds its target: made from the style's moments, called with the result's."""

    def __call__(self, found: Moments) -> Tensor: ...

    def to(self, device: torch.device) -> Self: ...


class _Held:
    """Tensors that move together."""

    def to(self, device: torch.device) -> Self:
        vars(self).update({name: value.to(device) for name, value in vars(self).items()})
        return self


class Gram(_Held):
    """Squared distance of Gram matrices (Gatys et al. 2016, equations 3 to 5), relative to the target's own."""

    def __init__(self, target: Moments) -> None:
        self.second = target.second
        self.scale = target.second.square().sum((1, 2)).clamp_min(1e-12)

    def __call__(self, found: Moments) -> Tensor:
        return ((found.second - self.second).square().sum((1, 2)) / self.scale).mean()


class Wasserstein(_Held):
    """Squared 2-Wasserstein distance of two Gaussians with these moments, relative to the target's E|f|^2:

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2)   (Dowson & Landau 1982, equation 4)

    S1 is the target's, so its root is taken once.
    """

    def __init__(self, target: Moments) -> None:
        self.mean = target.mean
        self.covariance = target.covariance()
        with _full_precision(target.mean):
            self.root = _newton_schulz(self.covariance)[0]
        self.scale = target.size().clamp_min(1e-12)

    def __call__(self, found: Moments) -> Tensor:
        with _full_precision(found.mean):
            covariance = found.covariance()
            mean = (found.mean - self.mean).square().sum(1)
            spread = torch.diagonal(covariance + self.covariance, dim1=1, dim2=2).sum(1)
            cross = trace_sqrt(self.root @ covariance @ self.root)
            return ((mean + spread - 2 * cross) / self.scale).mean()


STYLE_LOSSES: Mapping[str, type[Gram] | type[Wasserstein]] = {"wasserstein": Wasserstein, "gram": Gram}


def _newton_schulz(a: Tensor) -> tuple[Tensor, Tensor]:
    """Square root and inverse square root of symmetric positive-definite matrices [B, C, C] by the coupled
    Newton-Schulz iteration (Higham 2008, equation 6.35). Directions 10^4 times weaker than the strongest come out
    damped, not exact."""
    norm = a.square().sum((1, 2), keepdim=True).sqrt()
    eye = torch.eye(a.shape[-1], device=a.device, dtype=a.dtype)
    y, z = a / norm, eye.expand_as(a)
    for _ in range(NEWTON_SCHULZ_ITERATIONS):
        t = (3 * eye - z @ y) / 2
        y, z = y @ t, t @ z
    return y * norm.sqrt(), z / norm.sqrt()


class _TraceSqrt(torch.autograd.Function):
    """tr(A^1/2). Its derivative is A^-1/2 / 2, which the iteration has already: no second solver runs backward."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        root, inverse = _newton_schulz(a)
        ctx.save_for_backward(inverse)
        return torch.diagonal(root, dim1=1, dim2=2).sum(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (inverse,) = ctx.saved_tensors
        return grad[:, None, None] * inverse / 2


def trace_sqrt(a: Tensor) -> Tensor:
    """tr(A^1/2) [B] of symmetric positive-definite matrices A [B, C, C], differentiable."""
    return _TraceSqrt.apply(a)


def mse(found: Tensor, target: Tensor) -> Tensor:
    """Content: squared distance of features (Gatys et al. 2016, equation 1), relative to the target's size."""
    target = target.float()
    return (found.float() - target).square().mean() / target.square().mean().clamp_min(1e-12)


def total_variation(x: Tensor) -> Tensor:
    """Mean squared difference to the eight neighbours of a picture [B, 3, H, W], diagonals counted by half."""
    across, down, slope, other = (term for term, _ in variations(x))
    return (across + down + (slope + other) / 2) / 3


def variations(x: Tensor) -> Iterator[tuple[Tensor, float]]:
    """The four terms of the total variation and their shares in it, each made when it is asked for."""
    yield _mean_square(x[..., :, 1:] - x[..., :, :-1]), 1 / 3
    yield _mean_square(x[..., 1:, :] - x[..., :-1, :]), 1 / 3
    yield _mean_square(x[..., 1:, 1:] - x[..., :-1, :-1]), 1 / 6
    yield _mean_square(x[..., 1:, :-1] - x[..., :-1, 1:]), 1 / 6


def _mean_square(x: Tensor) -> Tensor:
    return x.square().mean() if x.numel() else x.sum()  # a picture one pixel high has no neighbours below
