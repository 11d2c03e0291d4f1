"""The diffusion loss against its equations, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from genkit.errors import ModelError
from pipelines.stable_diffusion.train.diffusion import denoising_loss, drawn_steps, noised, target, weights


@pytest.fixture(params=["epsilon", "v_prediction"])
def scheduler(request: Any) -> Any:
    from diffusers import DDPMScheduler

    return DDPMScheduler(prediction_type=request.param, beta_schedule="scaled_linear")


def parts(count: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z, noise = (torch.randn(count, 4, 8, 8, generator=generator) for _ in range(2))
    return z, noise, torch.tensor([0, 10, 400, 800, 999])


def test_noise_is_added_as_diffusers_adds_it(scheduler: Any) -> None:
    z, noise, t = parts()
    torch.testing.assert_close(noised(scheduler, z, noise, t), scheduler.add_noise(z, noise, t), atol=1e-6, rtol=0)


def test_the_target_is_what_diffusers_says(scheduler: Any) -> None:
    z, noise, t = parts()
    wanted = noise if scheduler.config.prediction_type == "epsilon" else scheduler.get_velocity(z, noise, t)
    torch.testing.assert_close(target(scheduler, z, noise, t), wanted, atol=1e-6, rtol=0)


def test_a_perfect_denoiser_loses_nothing_and_another_what_the_equation_says(scheduler: Any) -> None:
    z, noise, t = parts()
    truth = target(scheduler, z, noise, t)
    assert denoising_loss(lambda x, t: truth, scheduler, z, noise, t, 5.0) == 0
    a = scheduler.alphas_cumprod[t].double()
    snr = a / (1 - a)
    expected = []
    for i in range(len(t)):
        over = snr[i] + 1 if scheduler.config.prediction_type == "v_prediction" else snr[i]
        expected.append(0.25 * min(snr[i].item(), 5.0) / over)
    loss = denoising_loss(lambda x, t: truth + 0.5, scheduler, z, noise, t, 5.0)
    assert loss.item() == pytest.approx(float(sum(expected) / len(expected)), rel=1e-4)


def test_both_predictions_weigh_an_error_of_the_picture_alike() -> None:
    """min(SNR, gamma) times the squared error of z, whatever is predicted (Hang et al. 2023)."""
    from diffusers import DDPMScheduler

    z, noise, t = parts()
    t = t[1:]
    z, noise = z[1:], noise[1:]
    a = DDPMScheduler().alphas_cumprod[t].view(-1, 1, 1, 1)
    wrong = z + 0.1  # a guess at the picture; what each kind of model would have said to mean it:
    x = a.sqrt() * z + (1 - a).sqrt() * noise
    said = {"epsilon": (x - a.sqrt() * wrong) / (1 - a).sqrt(), "v_prediction": (a.sqrt() * x - wrong) / (1 - a).sqrt()}
    losses = [
        denoising_loss(lambda *_, kind=kind: said[kind], DDPMScheduler(prediction_type=kind), z, noise, t, 5.0).item()
        for kind in said
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_without_gamma_every_error_counts_alike(scheduler: Any) -> None:
    assert weights(scheduler, torch.tensor([0, 500, 999]), None).tolist() == [1, 1, 1]


def test_steps_are_spread_over_the_schedule() -> None:
    torch.manual_seed(1)
    for _ in range(20):
        t = drawn_steps(8, 1000, torch.device("cpu"))
        assert sorted((t // 125).tolist()) == list(range(8))
    orders = {tuple(drawn_steps(4, 1000, torch.device("cpu")).argsort().tolist()) for _ in range(50)}
    assert len(orders) > 5  # an item does not always have the same strength of noise


def test_an_unknown_kind_of_prediction_is_refused() -> None:
    from diffusers import DDPMScheduler

    z, noise, t = parts()
    with pytest.raises(ModelError, match="predicts 'sample'"):
        target(DDPMScheduler(prediction_type="sample"), z, noise, t)
