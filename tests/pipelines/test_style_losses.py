"""The numbers that content and style are: against closed forms, eigendecompositions and finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipelines.style_transfer.losses import (
    JITTER,
    STYLE_LOSSES,
    Gram,
    Moments,
    Sums,
    Wasserstein,
    blend,
    moments,
    mse,
    total_variation,
    trace_sqrt,
)

LOSSES = list(STYLE_LOSSES)


def features(*shape: int, seed: int = 0) -> Tensor:
    """Correlated features, positive as behind a ReLU."""
    generator = torch.Generator().manual_seed(seed)
    b, c, h, w = shape
    mix = torch.randn(c, c, generator=generator) / c**0.5 + torch.eye(c)
    return torch.einsum("cd,bdhw->bchw", mix, torch.randn(b, c, h, w, generator=generator)).relu()


def spd(c: int, *, low: float = 0.1, seed: int = 0) -> Tensor:
    """A symmetric positive-definite matrix [1, C, C] in float64 with eigenvalues in low..1."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(c, c, generator=generator, dtype=torch.float64))[0]
    return (basis @ torch.diag(torch.linspace(low, 1, c, dtype=torch.float64)) @ basis.T)[None]


def root(a: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(a)
    return vectors @ torch.diag_embed(values.clamp_min(1e-12).sqrt()) @ vectors.transpose(-1, -2)


def plain_moments(f: Tensor, weight: Tensor | None = None) -> Moments:
    """Written as the definition reads, in float64."""
    f = f.double()
    w = torch.ones_like(f[:, :1]) if weight is None else weight.double()
    total = w.sum((2, 3))
    mean = (f * w).sum((2, 3)) / total
    return Moments(mean, torch.einsum("bchw,bdhw,bhw->bcd", f, f, w[:, 0]) / total[..., None])


def plain_wasserstein(found: Moments, target: Moments) -> Tensor:
    s1, s2 = (m.covariance() for m in (target, found))
    r = root(s1)
    spread = torch.diagonal(s1 + s2 - 2 * root(r @ s2 @ r), dim1=1, dim2=2).sum(1)
    return (((found.mean - target.mean) ** 2).sum(1) + spread).div(target.size()).mean()


# ------------------------------------------------------------------------------------------------------------- moments


def test_moments_do_not_see_where_anything_is():
    f = features(2, 7, 9, 11)
    shuffled = f.flatten(2)[..., torch.randperm(99, generator=torch.Generator().manual_seed(1))].view_as(f)
    for other in (f.roll((3, -4), (2, 3)), f.flip(3), shuffled):
        for one, two in zip(moments(f), moments(other), strict=True):
            torch.testing.assert_close(one, two)


def test_moments_are_mean_and_second_moment():
    f = features(2, 7, 9, 11)
    for one, two in zip(moments(f), plain_moments(f), strict=True):
        torch.testing.assert_close(one.double(), two, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(moments(f).size(), f.square().sum(1).mean((1, 2)))


def test_a_weight_of_ones_is_no_weight():
    f = features(2, 5, 6, 8)
    for one, two in zip(moments(f), moments(f, torch.ones(2, 1, 6, 8)), strict=True):
        torch.testing.assert_close(one, two)


def test_a_region_has_the_moments_of_what_is_in_it():
    f, mask = features(1, 5, 6, 8), torch.zeros(1, 1, 6, 8)
    mask[..., 2:5, 1:7] = 1
    for one, two in zip(moments(f, mask), moments(f[..., 2:5, 1:7]), strict=True):
        torch.testing.assert_close(one, two)
    for one, two in zip(moments(f, 0.3 * mask), moments(f, mask), strict=True):
        torch.testing.assert_close(one, two)


def test_sums_of_parts_add_up_to_the_whole():
    f, mask = features(1, 5, 6, 8), torch.rand(1, 1, 6, 8, generator=torch.Generator().manual_seed(2))
    for weight in (None, mask):
        halves = [Sums.of(f[..., s], weight if weight is None else weight[..., s]) for s in (slice(3), slice(3, None))]
        for one, two in zip(halves[0].plus(halves[1]).moments(), moments(f, weight), strict=True):
            torch.testing.assert_close(one, two)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_gradient_of_moments_is_autograds(weighted):
    f = features(2, 5, 6, 8).requires_grad_()
    weight = torch.rand(2, 1, 6, 8, generator=torch.Generator().manual_seed(3)) if weighted else None
    grads = []
    for found in (moments(f, weight), plain_moments(f, weight)):
        value = found.mean.square().sum() + (found.second * torch.arange(5.0)).square().sum()
        grads.append(torch.autograd.grad(value, f)[0])
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-6)


def test_autocast_does_not_touch_the_statistics():
    f, target = features(1, 16, 12, 12), moments(features(1, 16, 12, 12, seed=1))
    outside = [moments(f), *(kind(target)(moments(f)) for kind in (Gram, Wasserstein))]
    with torch.autocast("cpu", torch.bfloat16):
        inside = [moments(f), *(kind(target)(moments(f)) for kind in (Gram, Wasserstein))]
    for one, two in zip([*outside[0], *outside[1:]], [*inside[0], *inside[1:]], strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_of_half_precision_features_are_taken_in_float32(dtype):
    f = features(1, 5, 40, 50).to(dtype).requires_grad_()
    found = moments(f)
    for one, two in zip(found, plain_moments(f.detach()), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), two, rtol=1e-5, atol=1e-6)
    found.second.sum().backward()
    assert f.grad.dtype == dtype


# -------------------------------------------------------------------------------------------------------------- blends


def test_a_blend_of_one_style_twice_is_that_style():
    a, b = moments(features(1, 5, 6, 8)), moments(features(1, 5, 6, 8, seed=1))
    for one, two, three in zip(a, blend([a, a], [1, 3]), blend([a, b], [2, 0]), strict=True):
        torch.testing.assert_close(one, two)
        torch.testing.assert_close(one, three)


def test_a_blend_is_what_a_picture_shared_in_these_parts_has():
    f, g = features(1, 5, 6, 8), features(1, 5, 6, 4, seed=1)
    for one, two in zip(blend([moments(f), moments(g)], [8, 4]), moments(torch.cat([f, g], 3)), strict=True):
        torch.testing.assert_close(one, two)


# -------------------------------------------------------------------------------------------------------- style losses


@pytest.mark.parametrize("loss", LOSSES)
def test_equal_moments_are_no_distance(loss):
    f = features(2, 12, 10, 10)
    held = STYLE_LOSSES[loss](moments(f))
    assert held(moments(f.flip(2))).abs() < 1e-3
    assert held(moments(features(2, 12, 10, 10, seed=1))) > 0.05


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_is_relative_to_the_size_of_its_target(loss):
    f, g = features(1, 12, 10, 10), features(1, 12, 10, 10, seed=1)
    values = [STYLE_LOSSES[loss](moments(s * f))(moments(s * g)) for s in (1.0, 20.0)]
    torch.testing.assert_close(*values, rtol=2e-2, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_of_a_batch_is_the_mean_of_its_items(loss):
    f, g = features(3, 6, 10, 10), features(3, 6, 10, 10, seed=1)
    alone = [STYLE_LOSSES[loss](moments(f[i : i + 1]))(moments(g[i : i + 1])) for i in range(3)]
    torch.testing.assert_close(STYLE_LOSSES[loss](moments(f))(moments(g)), torch.stack(alone).mean())


@pytest.mark.parametrize("loss", LOSSES)
def test_one_target_serves_a_batch(loss):
    f, g = features(1, 6, 10, 10), features(3, 6, 10, 10, seed=1)
    held = STYLE_LOSSES[loss](moments(f))
    alone = torch.stack([held(moments(g[i : i + 1])) for i in range(3)])
    torch.testing.assert_close(held(moments(g)), alone.mean())


def test_gram_is_the_frobenius_distance():
    f, g = features(1, 6, 10, 10), features(1, 6, 10, 10, seed=1)
    a, b = (plain_moments(x).second for x in (f, g))
    torch.testing.assert_close(
        Gram(moments(f))(moments(g)).double(), (a - b).norm() ** 2 / a.norm() ** 2, rtol=1e-4, atol=0
    )


def test_wasserstein_of_commuting_gaussians_is_the_closed_form():
    def gaussian(mean: Tensor, variances: Tensor) -> Moments:
        return Moments(mean[None], (torch.diag(variances) + torch.outer(mean, mean))[None])

    m1, m2 = torch.tensor([0.5, 1.0, 0.0, 2.0]), torch.tensor([0.0, 1.5, 0.3, 1.0])
    s1, s2 = torch.tensor([1.0, 0.5, 2.0, 0.2]), torch.tensor([0.3, 0.9, 1.0, 1.0])
    target = gaussian(m1, s1)
    expected = (m1 - m2).square().sum() + ((s1 + JITTER).sqrt() - (s2 + JITTER).sqrt()).square().sum()
    found = Wasserstein(target)(gaussian(m2, s2))
    torch.testing.assert_close(found, expected / target.size()[0], rtol=1e-4, atol=0)


@pytest.mark.parametrize("seed", range(3))
def test_wasserstein_and_its_gradient_are_those_by_eigendecomposition(seed):
    f, g = features(1, 12, 14, 14, seed=seed), features(1, 12, 14, 14, seed=seed + 10).requires_grad_()
    value = Wasserstein(moments(f))(moments(g))
    expected = plain_wasserstein(plain_moments(g), plain_moments(f))
    torch.testing.assert_close(value.double(), expected, rtol=1e-3, atol=1e-4)
    one, two = torch.autograd.grad(value, g)[0], torch.autograd.grad(expected, g)[0]
    assert (one - two).norm() < 0.02 * two.norm()


# -------------------------------------------------------------------------------------------------- the square root


@pytest.mark.parametrize("low", [0.5, 0.05, 0.005])
def test_the_trace_of_the_root_is_that_of_the_eigenvalues(low):
    a = torch.cat([spd(9, low=low, seed=s) for s in range(3)])
    torch.testing.assert_close(trace_sqrt(a), torch.linalg.eigvalsh(a).sqrt().sum(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(trace_sqrt(a.float()).double(), trace_sqrt(a), rtol=1e-3, atol=0)


def test_the_gradient_of_the_trace_of_the_root_is_that_of_finite_differences():
    assert torch.autograd.gradcheck(trace_sqrt, spd(6).requires_grad_())


def test_the_root_survives_directions_in_which_nothing_varies():
    """Dead channels: a covariance of rank 3 in 16 dimensions, held up by the jitter alone."""
    f = torch.zeros(1, 16, 10, 10)
    f[:, :3] = features(1, 3, 10, 10)
    f.requires_grad_()
    value = Wasserstein(moments(features(1, 16, 10, 10, seed=1)))(moments(f))
    value.backward()
    assert value.isfinite()
    assert f.grad.isfinite().all()


# ------------------------------------------------------------------------------------------- content and smoothness


def test_content_is_0_for_the_photo_itself_and_1_for_nothing():
    f = features(1, 5, 6, 8)
    assert mse(f, f) == 0
    torch.testing.assert_close(mse(torch.zeros_like(f), f), torch.tensor(1.0))


def test_total_variation_of_a_ramp_and_of_nothing():
    ramp = torch.linspace(0, 0.9, 10).expand(1, 3, 7, 10)  # 0.1 a pixel across, and along both diagonals
    torch.testing.assert_close(total_variation(ramp), torch.tensor(0.01 * 2 / 3))
    assert total_variation(torch.full((1, 3, 5, 5), 0.3)) == 0


def test_total_variation_has_no_direction():
    x = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    for other in (x.flip(2), x.flip(3), x.transpose(2, 3)):
        torch.testing.assert_close(total_variation(x), total_variation(other))
