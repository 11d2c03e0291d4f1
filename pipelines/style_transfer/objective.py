"""The loss of an optimised picture, whole or tile by tile, with its gradient.

The style loss sees a picture only through the moments of its features, and these are sums over positions. So its
gradient splits exactly: one pass sums the moments over all tiles, the loss's derivative with respect to the moments
(small matrices) is taken once, and a second pass lets each tile backpropagate its share of it. Tiles carry a margin as
wide as the receptive field and start at multiples of the network's stride, so that the features inside are those of the
whole picture; memory then follows the tile, not the picture. One tile, the whole picture, needs one pass only.

Shapes: x [1, 3, H, W]; masks [1, 1, H, W] in 0..1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.style_transfer.losses import Moments, StyleLoss, Sums, variations
from pipelines.style_transfer.networks.features import FeatureNetwork

__all__ = ["Losses", "Objective", "Region", "Tile", "normalised", "style_moments", "tiles"]


@dataclass(frozen=True)
class Tile:
    """A part of a picture with its margin (outer) and what of it counts (inner), in pixels of the picture."""

    outer: tuple[int, int, int, int]
    """top, bottom, left, right."""
    inner: tuple[int, int, int, int]

    def cut(self, x: Tensor) -> Tensor:
        top, bottom, left, right = self.outer
        return x[..., top:bottom, left:right]

    def core(self, features: Tensor, step: int) -> Tensor:
        """The part of a tap's [B, C, h, w], one position every `step` pixels, that belongs to the inner rectangle."""
        top, bottom, left, right = self.outer
        a, b, c, d = self.inner
        rows = slice((a - top) // step, None if b == bottom else (b - top) // step)
        cols = slice((c - left) // step, None if d == right else (d - left) // step)
        return features[:, :, rows, cols]


def tiles(height: int, width: int, side: int, *, margin: int, stride: int) -> list[Tile]:
    """Cuts a picture into even tiles of at most side x side pixels, rounded up to the stride; all edges at multiples of
    it."""
    margin = -(-margin // stride) * stride
    steps = [_evenly(n, side, stride) for n in (height, width)]
    spans = [[(a, min(a + step, n)) for a in range(0, n, step)] for n, step in zip((height, width), steps, strict=True)]
    return [
        Tile(
            (max(0, a - margin), min(height, b + margin), max(0, c - margin), min(width, d + margin)),
            (a, b, c, d),
        )
        for a, b in spans[0]
        for c, d in spans[1]
    ]


def _evenly(length: int, side: int, stride: int) -> int:
    """The step that cuts a length into as few parts as `side` allows, none of them a sliver whose margin costs more
    than itself."""
    parts = -(-length // (-(-side // stride) * stride))
    return -(-length // (parts * stride)) * stride


@dataclass(frozen=True)
class Region:
    """Where one style applies (mask [1, 1, H, W], or None: everywhere) and the losses that hold it, by tap."""

    mask: Tensor | None
    losses: Mapping[str, StyleLoss]


@dataclass(frozen=True)
class Losses:
    """The terms of one evaluation and their weighted sum."""

    style: float
    content: float
    variation: float
    total: float


class Objective:
    """total = style_weight * style + content_weight * content + tv_weight * total variation.

    network: the feature network; content [1, 3, H, W]: the photo; regions: the styles; the taps' weights are normalised
    here; tile: side of a tile in pixels, None for the whole picture at once.
    """

    def __init__(
        self,
        network: FeatureNetwork,
        *,
        content: Tensor,
        content_taps: Mapping[str, float],
        style_taps: Mapping[str, float],
        regions: Sequence[Region],
        content_weight: float,
        tv_weight: float,
        style_weight: float = 1.0,
        tile: int | None = None,
    ) -> None:
        height, width = content.shape[-2:]
        self.network = network
        self.tiles = tiles(height, width, tile or max(height, width), margin=network.margin, stride=network.stride)
        self.content_taps = normalised(content_taps) if content_weight else {}
        self.style_taps = normalised(style_taps)
        self.taps = list(dict.fromkeys([*self.style_taps, *self.content_taps]))
        self.regions = regions
        self.style_weight, self.content_weight, self.tv_weight = style_weight, content_weight, tv_weight
        self.steps = _steps(network, self.taps)
        self.masks = [self._pooled(region.mask) for region in regions]
        with torch.no_grad():
            kept = list(self.content_taps)
            self.targets = [self._features(content, tile_, kept) for tile_ in self.tiles] if kept else []
        self.sizes = {name: sum(_squared(target[name]) for target in self.targets) for name in kept}

    def gradient(self, x: Tensor) -> tuple[Tensor, Losses]:
        """The gradient of the total at x [1, 3, H, W], and its terms."""
        x = x.detach().requires_grad_()
        style, content = self._whole(x) if len(self.tiles) == 1 else self._tiled(x)
        v = 0.0
        for term, share in variations(x):  # one by one: the differences are as large as the picture
            (self.tv_weight * share * term).backward()
            v += share * float(term.detach())
        s, c = (float(term.detach()) for term in (style, content))
        assert x.grad is not None
        return x.grad, Losses(s, c, v, self.style_weight * s + self.content_weight * c + self.tv_weight * v)

    def _whole(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self._features(x, self.tiles[0], self.taps)
        style = self._style(self._sums(features, self.tiles[0]))
        content = self._content(features, 0)
        (self.style_weight * style + self.content_weight * content).backward()
        return style, content

    def _tiled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Fills x.grad tile by tile."""
        with torch.no_grad():
            total = self._sums(self._features(x, self.tiles[0], self.taps), self.tiles[0])
            for tile in self.tiles[1:]:
                part = self._sums(self._features(x, tile, self.taps), tile)
                total = [{name: a[name].plus(b[name]) for name in a} for a, b in zip(total, part, strict=True)]
        leaves = [sums for region in total for sums in region.values()]
        for sums in leaves:
            sums.first.requires_grad_()
            sums.second.requires_grad_()
        style = self._style(total)
        (self.style_weight * style).backward()
        content = x.new_zeros(())
        for index, tile in enumerate(self.tiles):
            features = self._features(x, tile, self.taps)
            parts = [sums for region in self._sums(features, tile) for sums in region.values()]
            kept = self._content(features, index)
            # The chain rule: what this tile adds to the sums, weighed by the loss's derivative with respect to them.
            share = sum(
                (_dot(part.first, leaf.first) + _dot(part.second, leaf.second))
                for part, leaf in zip(parts, leaves, strict=True)
            )
            (share + self.content_weight * kept).backward()
            content = content + kept.detach()
        return style, content

    def _features(self, x: Tensor, tile: Tile, names: Sequence[str]) -> dict[str, Tensor]:
        return {name: tile.core(f, self.steps[name]) for name, f in self.network(tile.cut(x), names).items()}

    def _sums(self, features: Mapping[str, Tensor], tile: Tile) -> list[dict[str, Sums]]:
        """Of each region, by tap."""
        return [
            {name: Sums.of(features[name], self._mask(mask, tile, name, features[name])) for name in self.style_taps}
            for mask in self.masks
        ]

    def _pooled(self, mask: Tensor | None) -> dict[int, Tensor] | None:
        """A region's mask at the resolution of each tap: each position is covered by so much."""
        if mask is None:
            return None
        sizes = {self.steps[name] for name in self.style_taps}
        return {step: F.avg_pool2d(mask, step, ceil_mode=True, count_include_pad=False) for step in sizes}

    def _mask(self, pooled: dict[int, Tensor] | None, tile: Tile, name: str, features: Tensor) -> Tensor | None:
        if pooled is None:
            return None
        step = self.steps[name]
        top, left = tile.inner[0] // step, tile.inner[2] // step
        return pooled[step][..., top : top + features.shape[2], left : left + features.shape[3]]

    def _style(self, sums: Sequence[Mapping[str, Sums]]) -> Tensor:
        terms = [
            weight * region.losses[name](found[name].moments())
            for region, found in zip(self.regions, sums, strict=True)
            for name, weight in self.style_taps.items()
        ]
        return torch.stack(terms).sum() / len(self.regions)

    def _content(self, features: Mapping[str, Tensor], index: int) -> Tensor:
        """Squared distance to the photo's features inside one tile, relative to the photo's in the whole picture."""
        terms = [
            weight * (features[name].float() - self.targets[index][name].float()).square().sum() / self.sizes[name]
            for name, weight in self.content_taps.items()
        ]
        return torch.stack(terms).sum() if terms else torch.zeros((), device=next(iter(features.values())).device)


@torch.no_grad()
def style_moments(
    network: FeatureNetwork, picture: Tensor, names: Sequence[str], tile: int | None = None
) -> dict[str, Moments]:
    """What a painting [1, 3, H, W] is known by at some taps: moments of the whole, taken tile by tile."""
    height, width = picture.shape[-2:]
    steps = _steps(network, names)
    total: dict[str, Sums] = {}
    for part in tiles(height, width, tile or max(height, width), margin=network.margin, stride=network.stride):
        for name, features in network(part.cut(picture), names).items():
            sums = Sums.of(part.core(features, steps[name]))
            total[name] = total[name].plus(sums) if name in total else sums
    return {name: total[name].moments() for name in names}


def normalised(weights: Mapping[str, float]) -> dict[str, float]:
    """The weights divided by their sum."""
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def _squared(features: Tensor) -> float:
    return max(float(features.float().square().sum()), 1e-12)


def _dot(part: Tensor, leaf: Tensor) -> Tensor:
    return (part * leaf.grad).sum() if leaf.grad is not None else part.new_zeros(())


@torch.no_grad()
def _steps(network: FeatureNetwork, names: Sequence[str]) -> dict[str, int]:
    """Pixels per position of each tap."""
    probe = next(network.parameters()).new_zeros(1, 3, 64, 64, dtype=torch.float32)
    return {name: round(64 / features.shape[2]) for name, features in network(probe, names).items()}
