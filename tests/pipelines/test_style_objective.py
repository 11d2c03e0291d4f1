"""The gradient of a picture: in tiles what it is in one piece, and in one piece what autograd makes of the plain
formula."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from style_kit import NETWORKS, network, picture, regions
from torch import Tensor, nn

from pipelines.style_transfer.losses import Moments, total_variation
from pipelines.style_transfer.networks.features import FeatureNetwork, Pool
from pipelines.style_transfer.objective import Objective, normalised, tiles

H, W = 61, 77  # no multiples of any stride


def left_and_right() -> tuple[Tensor, Tensor]:
    """Two soft masks that leave a part of the picture uncovered."""
    ramp = torch.linspace(2, -1, W).clamp(0, 1).expand(1, 1, H, W)
    return ramp, ramp.flip(3)


def objective(eyes: FeatureNetwork, loss: str = "gram", masks: tuple[Tensor, ...] = (), **options: Any) -> Objective:
    settings: dict[str, Any] = {
        "content": picture(H, W, 1),
        "content_taps": eyes.defaults.content,
        "style_taps": eyes.defaults.style,
        "content_weight": 0.05,
        "tv_weight": 1.0,
        "regions": regions(eyes, loss, *masks),
    }
    return Objective(eyes, **(settings | options))


def plain_total(eyes: FeatureNetwork, x: Tensor, parts: Objective) -> Tensor:
    """The loss as the formula reads, by the network's ordinary operations (those used while weights are trained)."""
    eyes.requires_grad_(True)
    try:
        found = eyes(x, parts.taps)
    finally:
        eyes.requires_grad_(False)
    with torch.no_grad():
        kept = eyes(picture(H, W, 1), parts.taps)
    style = torch.stack(
        [
            weight * region.losses[name](plain_moments(found[name], region.mask, parts.steps[name]))
            for region in parts.regions
            for name, weight in normalised(eyes.defaults.style).items()
        ]
    ).sum()
    content = torch.stack(
        [
            weight * (found[name] - kept[name]).square().sum() / kept[name].square().sum()
            for name, weight in normalised(eyes.defaults.content).items()
        ]
    ).sum()
    return style / len(parts.regions) + 0.05 * content + total_variation(x)


def plain_moments(f: Tensor, mask: Tensor | None, step: int) -> Moments:
    if mask is None:
        weight = torch.ones_like(f[:, :1], dtype=torch.float32)
    else:
        weight = F.avg_pool2d(mask, step, ceil_mode=True, count_include_pad=False)[..., : f.shape[2], : f.shape[3]]
    f, total = f.float(), weight.sum()
    return Moments((f * weight).sum((2, 3)) / total, torch.einsum("bchw,bdhw,bhw->bcd", f, f, weight[:, 0]) / total)


@pytest.mark.parametrize(("loss", "masked"), [("gram", True), ("wasserstein", False)])
@pytest.mark.parametrize("name", NETWORKS)
def test_tiles_give_the_gradient_of_the_whole_and_that_is_autograds(name, loss, masked):
    # In float64: a unit that is zero but for rounding passes its gradient on in one of the two and not in the other.
    eyes = network(name).double()
    masks = left_and_right() if masked else ()
    x = picture(H, W, 2)
    whole, tiled = objective(eyes, loss, masks), objective(eyes, loss, masks, tile=40)
    assert len(whole.tiles) == 1
    assert len(tiled.tiles) == 4
    (one, losses), (two, tiled_losses) = whole.gradient(x), tiled.gradient(x)
    assert (one - two).norm() < 1e-5 * one.norm()
    assert vars(tiled_losses) == pytest.approx(vars(losses), rel=1e-5, abs=1e-7)

    leaf = x.clone().requires_grad_()
    total = plain_total(eyes, leaf, whole)
    assert losses.total == pytest.approx(total.item(), rel=1e-4)
    expected = torch.autograd.grad(total, leaf)[0]
    assert (one - expected).norm() < 1e-4 * expected.norm()
    assert not x.requires_grad
    assert all(p.grad is None for p in eyes.parameters())


@pytest.mark.parametrize("name", ["small", "vgg16"])
def test_the_gradient_is_that_of_finite_differences(name):
    parts = objective(network(name), "wasserstein")
    x = picture(H, W, 2)
    gradient, _ = parts.gradient(x)
    direction = gradient / gradient.norm()
    step = 0.3  # over ten thousand pixels
    ahead, behind = (parts.gradient(x + s * step * direction)[1].total for s in (1, -1))
    assert (ahead - behind) / (2 * step) == pytest.approx(float(gradient.norm()), rel=0.03)


def test_weights_of_zero_switch_terms_off():
    eyes = network("small")
    _, losses = objective(eyes, content_weight=0, tv_weight=0).gradient(picture(H, W, 2))
    assert losses.content == 0
    assert losses.total == losses.style
    gradient, losses = objective(eyes, style_weight=0, tv_weight=0).gradient(picture(H, W, 1))
    assert losses.content == 0  # at the photo itself
    assert gradient.abs().max() == 0


def test_only_the_proportions_of_the_taps_weights_matter():
    eyes = network("small")
    x = picture(H, W, 2)
    one = objective(eyes).gradient(x)[1]
    two = objective(eyes, style_taps={name: 7 * w for name, w in eyes.defaults.style.items()}).gradient(x)[1]
    assert one.total == pytest.approx(two.total)


@pytest.mark.parametrize("tile", [None, 32])
def test_a_regions_style_stays_in_its_mask_and_the_field_around_it(tile):
    eyes = network("small")
    mask = torch.zeros(1, 1, H, W)
    mask[..., :8, :10] = 1
    parts = objective(eyes, "gram", (mask,), content_weight=0, tv_weight=0, tile=tile)
    gradient, _ = parts.gradient(picture(H, W, 2))
    reach = 8 + eyes.margin  # a mask reaches to the end of the coarsest position that it touches
    assert gradient[..., : 8 + reach, : 10 + reach].abs().max() > 0
    gradient[..., : 8 + reach, : 10 + reach] = 0
    assert gradient.abs().max() == 0


def test_an_empty_region_asks_for_nothing():
    """A mask so thin that it vanishes at the smallest scale must not divide by nothing."""
    parts = objective(network("small"), "wasserstein", (torch.zeros(1, 1, H, W), torch.ones(1, 1, H, W)))
    gradient, losses = parts.gradient(picture(H, W, 2))
    assert gradient.isfinite().all()
    assert math.isfinite(losses.total)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_points_the_same_way(dtype):
    eyes = network("small")
    x = picture(H, W, 2)
    exact, losses = objective(eyes, "wasserstein").gradient(x)
    rough, rough_losses = objective(eyes.to(dtype), "wasserstein").gradient(x)
    assert rough.dtype == torch.float32
    assert F.cosine_similarity(exact.flatten(), rough.flatten(), 0) > 0.98
    assert rough_losses.total == pytest.approx(losses.total, rel=0.03)


# ---------------------------------------------------------------------------------------------------------- the tiles


@pytest.mark.parametrize(
    ("height", "width", "side"), [(91, 117, 48), (33, 200, 16), (64, 64, 64), (100, 17, 1), (5, 5, 32)]
)
def test_tiles_cover_every_pixel_once(height, width, side):
    covered = torch.zeros(height, width, dtype=torch.int)
    for tile in tiles(height, width, side, margin=20, stride=8):
        top, bottom, left, right = tile.inner
        covered[top:bottom, left:right] += 1
        assert tile.outer[0] <= top < bottom <= tile.outer[1] <= height
        assert tile.outer[2] <= left < right <= tile.outer[3] <= width
        assert all(edge % 8 == 0 or edge in (height, width) for edge in (*tile.inner, *tile.outer))
    assert (covered == 1).all()


def geometry(name: str) -> FeatureNetwork:
    """The network with positive weights and average pooling, in which every pixel that can reach a tap does."""
    eyes = NETWORKS[name]()
    for layer in eyes.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = torch.ones_like(layer.weight) / layer.weight[0].numel()
            layer.bias.data.fill_(0)
        if isinstance(layer, Pool):
            layer.kind = "average"
    eyes.normalise = lambda x: x  # type: ignore[method-assign]
    return eyes.double().freeze()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_margin_is_as_wide_as_the_receptive_field_and_not_much_wider(name):
    eyes = geometry(name)
    names = list(dict.fromkeys([*eyes.defaults.style, *eyes.defaults.content]))
    stride, margin = eyes.stride, -(-eyes.margin // eyes.stride) * eyes.stride
    start, side = 2 * margin, 2 * stride
    n = 2 * start + side
    x = torch.ones(1, 3, n, n, dtype=torch.float64, requires_grad=True)
    steps = {tap: round(n / f.shape[2]) for tap, f in eyes(x, names).items()}
    assert max(steps.values()) == stride
    inner = [
        f[..., start // s : (start + side) // s, start // s : (start + side) // s]
        for s, f in _by_step(steps, eyes(x, names))
    ]
    seen = torch.autograd.grad(sum(f.sum() for f in inner), x)[0][0, 0].amax(0).nonzero().flatten()
    needed = max(start - int(seen.min()), int(seen.max()) - (start + side) + 1)
    assert 0 < needed <= margin < needed + 2 * stride


def _by_step(steps: Mapping[str, int], found: Mapping[str, Tensor]) -> list[tuple[int, Tensor]]:
    return [(steps[name], f) for name, f in found.items()]


@pytest.mark.parametrize("name", NETWORKS)
def test_what_lies_outside_a_tile_does_not_change_what_counts_in_it(name):
    eyes = network(name)
    names = list(dict.fromkeys([*eyes.defaults.style, *eyes.defaults.content]))
    side = 2 * eyes.stride
    n = 2 * (-(-eyes.margin // eyes.stride) * eyes.stride) + side + 2 * eyes.stride + 5
    x = picture(n, n, 3)
    middle = next(
        t for t in tiles(n, n, side, margin=eyes.margin, stride=eyes.stride) if t.inner[0] <= n // 2 < t.inner[1]
    )
    whole = eyes(x, names)
    for tap, features in eyes(middle.cut(x), names).items():
        step = round(n / whole[tap].shape[2])
        top, bottom, left, right = (edge // step for edge in middle.inner)
        expected = whole[tap][..., top:bottom, left:right]
        torch.testing.assert_close(middle.core(features, step), expected, rtol=1e-4, atol=1e-5)
