"""`method: optimize`: it descends, repeatably, from scale to scale, under a bound of memory, at any proportions."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from style_kit import NETWORKS, network, picture
from torch import Tensor

from genkit.errors import InputError
from pipelines.style_transfer import color, memory
from pipelines.style_transfer.objective import Losses
from pipelines.style_transfer.optimize import BETAS, FACTOR, Adam, Lbfgs, Plan, resize, scales, transfer

PLAN = Plan(size=40, steps=3, smallest=40)


def painted(plan: Plan = PLAN, *, seed: int = 0, name: str = "small", **options: Any) -> Tensor:
    content = options.pop("content", picture(48, 60, 1))
    styles = options.pop("styles", [picture(50, 44, 2)])
    return transfer(network(name), content, styles, plan, generator=torch.Generator().manual_seed(seed), **options)[0]


def losses_of(plan: Plan, **options: Any) -> list[float]:
    found: list[float] = []
    painted(plan, step=lambda done, total, losses, make, note: found.append(losses.total), **options)
    return found


# --------------------------------------------------------------------------------------------------------- descending


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_the_loss_falls(name, optimizer):
    found = losses_of(replace(PLAN, steps=8, optimizer=optimizer), name=name)
    assert len(found) == 16
    assert found[-1] < 0.6 * found[0]


@pytest.mark.parametrize("loss", ["gram", "wasserstein"])
@pytest.mark.parametrize("init", ["content", "gray", "uniform", "normal", "style"])
def test_every_beginning_comes_nearer_to_the_style(init, loss):
    found = losses_of(replace(PLAN, steps=6, init=init, style_loss=loss))
    assert found[-1] < found[0]


def test_lbfgs_is_not_put_off_by_small_gradients():
    """The loss is a mean over pixels: its gradient at one of them is soon below what L-BFGS takes for a minimum."""

    class Bowl:
        def gradient(self, x: Tensor) -> tuple[Tensor, Losses]:
            away = x.detach() - 0.7
            return 2e-4 * away / x.numel(), Losses(0, 0, 0, 1e-4 * float(away.square().mean()))

    canvas = Lbfgs(torch.zeros(1, 3, 64, 64), 0.02)
    for _ in range(12):
        canvas.step(Bowl())  # type: ignore[arg-type]
    torch.testing.assert_close(canvas.picture(), torch.full((1, 3, 64, 64), 0.7), rtol=1e-3, atol=1e-3)


# --------------------------------------------------------------------------------------------------------- repeatable


def test_the_same_seed_makes_the_same_bits():
    for init in ("uniform", "normal", "style"):
        plan = replace(PLAN, init=init, steps=2)
        assert torch.equal(painted(plan, seed=1), painted(plan, seed=1))
        assert not torch.equal(painted(plan, seed=1), painted(plan, seed=2))


def test_a_seed_does_not_matter_where_nothing_is_drawn():
    assert torch.equal(painted(seed=1), painted(seed=2))


def test_inputs_are_left_as_they_were():
    content, style = picture(48, 60, 1), picture(50, 44, 2)
    before = content.clone(), style.clone()
    painted(content=content, styles=[style])
    assert torch.equal(content, before[0])
    assert torch.equal(style, before[1])


def test_one_style_twice_is_that_style():
    one, two = painted(), painted(styles=[picture(50, 44, 2)] * 2)
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)


def test_a_style_without_a_share_does_not_show():
    styles = [picture(50, 44, 2), picture(33, 60, 3)]
    torch.testing.assert_close(
        painted(replace(PLAN, style_weights=[1, 0]), styles=styles), painted(), rtol=1e-3, atol=1e-3
    )
    assert (painted(replace(PLAN, style_weights=[1, 1]), styles=styles) - painted()).abs().max() > 0.01


# ------------------------------------------------------------------------------------------------------------- scales


@pytest.mark.parametrize(("size", "smallest"), [(512, 128), (500, 128), (130, 128), (64, 64), (32, 128), (1000, 33)])
def test_scales_rise_by_the_square_root_of_two_to_the_size(size, smallest):
    found = scales(size, smallest)
    assert found[-1] == size
    assert found == sorted(found)
    for low, high in itertools.pairwise(found):
        assert abs(high / FACTOR - low) <= 0.5
    assert min(found) >= min(size, smallest) - 0.5
    assert found[0] / FACTOR < smallest


@pytest.mark.parametrize(("h", "w"), [(48, 60), (60, 48), (37, 59), (33, 33), (91, 40)])
@pytest.mark.parametrize("size", [32, 45])
def test_the_longer_side_is_the_size_and_the_proportions_are_the_photos(h, w, size):
    made = painted(replace(PLAN, size=size, smallest=32, steps=1), content=picture(h, w, 1))
    assert made.shape == (1, 3, *(round(n * size / max(h, w)) for n in (h, w)))
    assert made.min() >= 0
    assert made.max() <= 1


@pytest.mark.parametrize("name", ["small", "squeezenet1_0", "vgg19"])
@pytest.mark.parametrize(("h", "w"), [(12, 384), (384, 12)])
def test_a_thin_strip_is_painted_at_no_scale_too_small_to_see(name, h, w):
    seen: list[str] = []

    def step(done: int, total: int, losses: Losses, make: Any, note: str) -> None:
        seen.append(note.split(",")[0])
        assert losses.total == losses.total  # not NaN

    made = painted(
        Plan(size=256, steps=1, smallest=32), name=name, content=picture(h, w), styles=[picture(w, h)], step=step
    )
    assert made.isfinite().all()
    assert seen[0] == f"{made.shape[3]}x{made.shape[2]}"


def test_steps_are_counted_over_all_scales_twice_at_the_first():
    calls: list[tuple[int, int, str]] = []
    plan = Plan(size=66, steps=2, smallest=32)
    painted(plan, step=lambda done, total, losses, make, note: calls.append((done, total, note)))
    assert [done for done, _, _ in calls] == list(range(1, 9))
    assert {total for _, total, _ in calls} == {8}
    notes = [note.split(", scale ")[1] for _, _, note in calls]
    assert notes == ["1 of 3"] * 4 + ["2 of 3"] * 2 + ["3 of 3"] * 2


def test_the_picture_so_far_is_a_picture_at_every_step():
    shown: list[Tensor] = []
    made = painted(replace(PLAN, steps=2), step=lambda done, total, losses, make, note: shown.append(make().clone()))
    assert all(p.shape == made.shape and p.min() >= 0 and p.max() <= 1 for p in shown)
    assert torch.equal(shown[-1], made)


def test_resizing_keeps_a_picture_that_fits_and_never_loses_a_side():
    x = picture(20, 30)
    assert resize(x, 30) is x
    assert resize(picture(2, 300), 64).shape[2:] == (1, 64)


# --------------------------------------------------------------------------------------------------------------- Adam


class Slope:
    """An objective of known gradients."""

    def __init__(self, gradients: list[Tensor]) -> None:
        self.gradients = iter(gradients)

    def gradient(self, x: Tensor) -> tuple[Tensor, Losses]:
        return next(self.gradients), Losses(0, 0, 0, 0)


def gradients(count: int, *shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 3, *shape, generator=generator) for _ in range(count)]


def test_adam_is_torchs_adam():
    """Far from the bounds of 0..1, where nothing is clamped."""
    start = torch.full((1, 3, 5, 6), 0.5)
    ours, x = Adam(start.clone(), 1e-3), start.clone().requires_grad_()
    theirs = torch.optim.Adam([x], lr=1e-3, betas=BETAS)
    slope = gradients(20, 5, 6)
    for gradient in slope:
        ours.step(Slope([gradient]))  # type: ignore[arg-type]
        x.grad = gradient
        theirs.step()
    torch.testing.assert_close(ours.x, x.detach(), rtol=1e-5, atol=1e-6)


def test_the_average_is_that_of_the_iterates_without_bias():
    canvas, iterates = Adam(torch.full((1, 3, 4, 4), 0.5), 0.01), []
    for gradient in gradients(7, 4, 4):
        canvas.step(Slope([gradient]))  # type: ignore[arg-type]
        iterates.append(canvas.x.clone())
    weights = torch.tensor([0.99 ** (6 - i) for i in range(7)])
    expected = sum(w * x for w, x in zip(weights, iterates, strict=True)) / weights.sum()
    torch.testing.assert_close(canvas.picture(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(Adam(iterates[0], 0.01).picture(), iterates[0])  # before the first step: where it begins


def test_iterates_stay_in_range():
    canvas = Adam(torch.full((1, 3, 4, 4), 0.01), 0.5)
    for gradient in gradients(4, 4, 4):
        canvas.step(Slope([gradient]))  # type: ignore[arg-type]
        assert canvas.x.min() >= 0
        assert canvas.x.max() <= 1


def test_moments_are_carried_to_the_next_scale():
    canvas = Adam(torch.full((1, 3, 8, 8), 0.5), 0.01)
    constant = torch.full((1, 3, 8, 8), -0.4)
    for _ in range(5):
        canvas.step(Slope([constant]))  # type: ignore[arg-type]
    first, second, made = canvas.first.clone(), canvas.second.clone(), canvas.picture()
    canvas.rescale((11, 12))
    assert canvas.steps == 5
    for moment, before in ((canvas.first, first), (canvas.second, second)):
        torch.testing.assert_close(moment, before[..., :1, :1].expand(1, 3, 11, 12), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(canvas.x.mean(), made.mean(), rtol=1e-4, atol=1e-5)
    sharp = Adam(picture(8, 8), 0.01)
    for gradient in gradients(3, 8, 8):
        sharp.step(Slope([gradient]))  # type: ignore[arg-type]
    sharp.rescale((13, 9))
    assert sharp.second.min() >= 0  # a square root is taken of it


# -------------------------------------------------------------------------------------------------------------- colour


def test_keeping_the_luminance_keeps_the_photos_colour_differences():
    photo = 0.4 + 0.2 * torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    result = photo + 0.05 * torch.randn(1, 1, 9, 9, generator=torch.Generator().manual_seed(1))
    result = result + torch.tensor([0.05, -0.02, 0.01])[:, None, None]
    made = color.keep_luminance(result, photo)
    torch.testing.assert_close(color.luminance(made), color.luminance(result))
    for channel in (0, 2):  # Cr and Cb are multiples of R - Y and B - Y
        torch.testing.assert_close(
            made[:, channel] - color.luminance(made)[:, 0], photo[:, channel] - color.luminance(photo)[:, 0]
        )


def test_coral_matches_mean_and_covariance():
    generator = torch.Generator().manual_seed(0)
    mix = torch.tensor([[1.0, 0.5, 0.2], [0.0, 0.8, 0.3], [0.1, 0.0, 0.6]])
    reference = 0.5 + 0.05 * torch.einsum("cd,bdhw->bchw", mix, torch.randn(1, 3, 40, 40, generator=generator))
    style = 0.4 + 0.08 * torch.randn(1, 3, 30, 50, generator=generator)
    made = color.coral(style, reference)
    assert made.shape == style.shape
    flat, wanted = made[0].flatten(1), reference[0].flatten(1)
    torch.testing.assert_close(flat.mean(1), wanted.mean(1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(torch.cov(flat), torch.cov(wanted), rtol=0.05, atol=3e-5)
    torch.testing.assert_close(color.coral(reference, reference), reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shade", [0.0, 0.5, 1.0])
def test_coral_of_a_single_colour_is_finite(shade):
    flat = torch.full((1, 3, 8, 8), shade)
    for made in (color.coral(flat, picture(9, 9)), color.coral(picture(9, 9), flat)):
        assert made.isfinite().all()


# -------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("name", NETWORKS)
def test_more_memory_never_means_smaller_tiles(name):
    eyes = network(name)
    need = memory.Need.of(eyes, "adam")
    height, width = 1500, 2000
    there = memory.RESERVE + need.always * height * width
    least = there + need.work * (2 * eyes.margin + 4 * eyes.stride) ** 2
    sides: list[int] = []
    for share in (1.01, 1.2, 1.5, 2, 3, 10, 1000):
        side = memory.tile_side(eyes, height, width, int(share * least), need)
        sides.append(side or 10**9)
        if side:
            assert side % eyes.stride == 0
            assert there + need.work * (side + 2 * eyes.margin) ** 2 <= share * least
    assert sides == sorted(sides)
    assert sides[0] < sides[-1] == 10**9


def test_an_impossible_bound_says_what_would_do():
    eyes = network("small")
    need = memory.Need.of(eyes, "adam")
    with pytest.raises(InputError) as raised:
        memory.tile_side(eyes, 4000, 4000, 64 * 2**20, need)
    message = str(raised.value)
    assert "\n" not in message
    assert message.startswith("4000x4000 px needs ")
    assert "raise max_memory or lower size" in message
    stated = int(message.split("needs ")[1].split(" MB")[0])
    assert memory.tile_side(eyes, 4000, 4000, stated * 2**20, need) == 4 * eyes.stride


def test_half_precision_lbfgs_and_masks_need_what_they_need():
    eyes = network("small")
    plain = memory.Need.of(eyes, "adam")
    assert memory.Need.of(eyes, "lbfgs").always > plain.always
    assert memory.Need.of(eyes, "adam", regions=3).always > plain.always
    assert memory.Need.of(network("small").bfloat16(), "adam").work < plain.work


@pytest.mark.parametrize("masked", [False, True])
def test_a_picture_made_in_tiles_is_the_picture_made_whole(masked):
    content, styles = picture(90, 120, 1), [picture(100, 90, 2), picture(80, 70, 3)]
    ramp = torch.linspace(0, 1, 120).expand(1, 1, 90, 120)
    masks = [ramp, 1 - ramp] if masked else []
    plan = Plan(size=120, steps=3, smallest=100)
    sides: list[tuple[int, int]] = []

    def tile(height: int, width: int) -> int:
        sides.append((height, width))
        return 32

    whole = painted(plan, content=content, styles=styles, masks=masks)
    tiled = painted(replace(plan, tile=tile), content=content, styles=styles, masks=masks)
    assert (90, 120) in sides
    # Adam divides a gradient by its size: rounding shows where there is next to no gradient, and only there.
    assert (whole - tiled).abs().mean() < 2e-3
    assert F.mse_loss(whole, tiled) < 1e-4


PEAK = """
import resource, sys
import torch
from style_kit import he, picture
from pipelines.style_transfer import memory, optimize
from pipelines.style_transfer.networks.features import Small

eyes = he(Small(32)).freeze().to(memory_format=torch.channels_last)
need = memory.Need.of(eyes, "adam")
bound = int(sys.argv[1]) * 2**20

def run(content, style, size):
    tile = lambda height, width: memory.tile_side(eyes, height, width, bound, need)
    plan = optimize.Plan(size=size, steps=1, smallest=size, tile=tile)
    optimize.transfer(eyes, content, [style], plan)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

run(picture(48, 64), picture(48, 64), 64)
content, style = picture(672, 896, 1), picture(672, 896, 2)
before = peak()
if bound < 2**40:
    with memory.frugal():
        run(content, style, 896)
else:
    run(content, style, 896)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read as Linux states it")
def test_a_run_stays_under_its_bound():
    """The peak of a process of its own, over what it had before, in MB."""

    def peak(bound: int) -> int:
        command = [sys.executable, "-c", PEAK, str(bound)]
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    whole, tiled = peak(2**24), peak(220)
    assert tiled <= 220
    assert tiled < 0.5 * whole
