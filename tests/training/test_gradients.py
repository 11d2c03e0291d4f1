"""Gradient scaling: an overflow costs a step and nothing else, for each optimiser by itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from genkit.training.gradients import Gradients


def make(*, fp16: bool, clip: float | None = None) -> tuple[dict[str, nn.Linear], Gradients]:
    torch.manual_seed(0)
    nets = {"a": nn.Linear(3, 1), "b": nn.Linear(3, 1)}
    optimizers = {name: torch.optim.SGD(net.parameters(), 0.1) for name, net in nets.items()}
    schedules = {name: LambdaLR(optimizer, lambda i: 0.5**i) for name, optimizer in optimizers.items()}
    return nets, Gradients(optimizers, schedules, device=torch.device("cpu"), fp16=fp16, clip=clip)


def step(gradients: Gradients, losses: dict[str, Tensor]) -> bool:
    gradients.begin(0)
    for name, loss in losses.items():
        gradients.backward(loss, (name,), retain_graph=False)
        gradients.update((name,))
    return gradients.finish()


def test_scaled_steps_are_the_unscaled_ones() -> None:
    x = torch.rand(5, 3)
    (plain, one), (scaled, two) = make(fp16=False, clip=0.05), make(fp16=True, clip=0.05)
    for _ in range(3):
        for nets, gradients in ((plain, one), (scaled, two)):
            assert step(gradients, {name: net(x).square().mean() for name, net in nets.items()})
    for name, net in plain.items():
        torch.testing.assert_close(net.weight, scaled[name].weight)
        torch.testing.assert_close(one.norms[name], two.norms[name])


def test_an_overflow_leaves_one_step_out() -> None:
    nets, gradients = make(fp16=True)
    x, before = torch.rand(5, 3), {name: net.weight.detach().clone() for name, net in nets.items()}
    scale = gradients.scaler.get_scale()
    step(gradients, {"a": nets["a"](x).mean() * torch.inf, "b": nets["b"](x).mean()})
    assert torch.equal(nets["a"].weight, before["a"])
    assert not torch.equal(nets["b"].weight, before["b"])
    rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in gradients.optimizers.items()}
    assert rates == {"a": 0.1, "b": 0.05}  # the schedule waits with its optimiser
    assert gradients.scaler.get_scale() == scale / 2
    assert all(p.grad is None for net in nets.values() for p in net.parameters())
    step(gradients, {"a": nets["a"](x).mean()})
    assert not torch.equal(nets["a"].weight, before["a"])


def test_an_update_without_a_loss_is_nothing() -> None:
    for fp16 in (False, True):
        nets, gradients = make(fp16=fp16, clip=1.0)
        before = nets["a"].weight.detach().clone()
        gradients.begin(0)
        gradients.update(("a",))
        assert not gradients.finish()
        assert torch.equal(nets["a"].weight, before)


def test_a_step_sees_the_weights_it_has_just_updated_under_autocast() -> None:
    nets, gradients = make(fp16=False)
    x = torch.rand(5, 3)
    with torch.autocast("cpu", torch.bfloat16):
        before = nets["a"](x)
        step(gradients, {"a": before.float().sum()})
        after = nets["a"](x)
    with torch.autocast("cpu", torch.bfloat16):
        anew = nets["a"](x)
    assert torch.equal(after, anew)
    assert not torch.equal(after, before)
