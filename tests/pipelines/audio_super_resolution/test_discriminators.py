"""The critics of AP-BWE: what they look at, their layers as published, and losses that pull the right way."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.audio_super_resolution.networks.discriminators import (
    Discriminators,
    Judgement,
    Period,
    Resolution,
    discriminator_loss,
    feature_loss,
    generator_loss,
)


def small(seed: int = 0) -> Discriminators:
    torch.manual_seed(seed)
    return Discriminators(0.02, periods=(2, 3), resolutions=(32, 64))


def judgement(score: list[float], features: list[Tensor] | None = None, weight: float = 1.0) -> Judgement:
    return Judgement(torch.tensor([score]), features or [], weight)


def test_the_published_sizes_and_strides() -> None:
    with torch.device("meta"):
        net = Discriminators()
    assert sum(p.numel() for p in net.parameters()) == 42_306_166
    assert [critic.period for critic in net.period] == [2, 3, 5, 7, 11]
    assert [critic.n_fft for critic in net.amplitude] == [critic.n_fft for critic in net.phase] == [512, 1024, 2048]
    assert [tuple(conv.weight.shape) for conv in net.period[0].convs] == [
        (32, 1, 5, 1),
        (128, 32, 5, 1),
        (512, 128, 5, 1),
        (1024, 512, 5, 1),
        (1024, 1024, 5, 1),
    ]
    assert tuple(net.period[0].conv_post.weight.shape) == (1, 1024, 3, 1)
    for critic in (net.amplitude[0], net.phase[0]):
        assert [tuple(conv.weight.shape) for conv in critic.convs] == [
            (64, 1, 7, 5),
            (64, 64, 5, 3),
            (64, 64, 5, 3),
            (64, 64, 3, 3),
            (64, 64, 3, 3),
        ]
        assert [conv.stride for conv in critic.convs] == [(2, 2), (2, 1), (2, 2), (2, 1), (2, 2)]
        assert tuple(critic.conv_post.weight.shape) == (1, 64, 3, 3)


def test_each_critic_judges_and_spectra_weigh_a_tenth() -> None:
    judgements = small()(torch.randn(3, 200))
    assert [j.weight for j in judgements] == [1.0, 1.0, 0.1, 0.1, 0.1, 0.1]
    assert all(j.score.dim() == 2 and len(j.score) == 3 for j in judgements)
    assert [len(j.features) for j in judgements] == [5, 5, 6, 6, 6, 6]  # a period's first layer does not count
    for j in judgements:
        assert torch.equal(j.features[-1].flatten(1), j.score)


def test_a_period_sees_its_columns_apart() -> None:
    """What changes in one column changes no other column's score; 100 samples are reflected to 102."""
    torch.manual_seed(0)
    critic, x = Period(3, 0.05), torch.randn(1, 100)
    changed = x.clone()
    changed[:, 1::3] = 0
    before, after = (critic(samples).score.view(-1, 3) for samples in (x, changed))
    assert torch.equal(before[:, [0]], after[:, [0]])
    assert not torch.allclose(before[:, 1], after[:, 1])
    assert torch.equal(critic(x).score, critic(F.pad(x[None], (0, 2), mode="reflect")[0]).score)


def test_what_a_resolution_looks_at() -> None:
    """The amplitude does not see a sign, which turns the phase by pi; the window is rectangular."""
    x = torch.randn(1, 128)
    amplitude, phase = Resolution(32, "amplitude", 0.1), Resolution(32, "phase", 0.1)
    assert torch.allclose(amplitude.look(x), amplitude.look(-x))
    clear = amplitude.look(x) > 1e-3
    turned = (phase.look(x) - phase.look(-x)).abs()[clear]
    assert torch.allclose(turned, torch.full_like(turned, torch.pi), atol=1e-4)
    assert amplitude.look(x).shape == (1, 17, 17)
    frame = torch.fft.rfft(x[0, 48:80])  # the one centred on sample 64, frame 64 / 8
    assert torch.allclose(amplitude.look(x)[0, :, 8], frame.abs(), atol=1e-4)


def test_the_losses_by_hand() -> None:
    real, made = (
        [judgement([0.5, 2.0]), judgement([-1.0], weight=0.1)],
        [judgement([-3.0, 0.0]), judgement([1.0], weight=0.1)],
    )
    assert discriminator_loss(real, made).item() == pytest.approx((0.5 / 2 + 1 / 2) + 0.1 * (2 + 2))
    assert generator_loss(made).item() == pytest.approx((4 + 1) / 2 + 0.1 * 0)
    one, other = torch.zeros(2, 3), torch.tensor([[1.0, -2.0, 3.0]] * 2)
    real = [judgement([0.0], [one, one]), judgement([0.0], [one], weight=0.1)]
    made = [judgement([0.0], [other, one]), judgement([0.0], [other], weight=0.1)]
    assert feature_loss(real, made).item() == pytest.approx(2 + 0.1 * 2)


def test_equal_sounds_have_equal_features() -> None:
    critics, x = small(), torch.randn(1, 100)
    assert feature_loss(critics(x), critics(x)).item() == 0
    assert feature_loss(critics(x), critics(x + 0.1 * torch.randn(1, 100))).item() > 0


def test_gradients_reach_every_critic_and_the_sound() -> None:
    critics, made = small(), torch.randn(2, 150, requires_grad=True)
    with torch.no_grad():
        real = critics(torch.randn(2, 150))
    judged = critics(made)
    (generator_loss(judged) + feature_loss(real, judged)).backward()
    assert made.grad is not None
    assert made.grad.isfinite().all()
    assert made.grad.any()
    critics.zero_grad()
    discriminator_loss(critics(torch.randn(2, 150)), critics(made.detach())).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in critics.parameters())


def test_silence_has_a_finite_gradient() -> None:
    made = torch.zeros(1, 100, requires_grad=True)
    generator_loss(small()(made)).backward()
    assert made.grad is not None
    assert made.grad.isfinite().all()


def test_critics_learn_to_tell_noise_from_tones() -> None:
    torch.manual_seed(0)
    critics = Discriminators(0.1, periods=(3,), resolutions=(32,))
    optimizer = torch.optim.AdamW(critics.parameters(), 0.01, betas=(0.8, 0.99))

    def sounds() -> tuple[Tensor, Tensor]:
        return (torch.rand(8, 1) + torch.rand(8, 1) * torch.arange(128)).sin(), 0.7 * torch.randn(8, 128)

    losses = []
    for _ in range(40):
        tones, noise = sounds()
        loss = discriminator_loss(critics(tones), critics(noise))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) / 10 < 0.6 * losses[0]


def test_a_crop_too_short_to_judge_is_refused() -> None:
    critics = small()
    assert critics.shortest == 33
    critics(torch.randn(1, 33))
    with pytest.raises(ValueError, match="32 samples are too short"):
        critics(torch.randn(1, 32))
