"""The average is its formula, and looking at it changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from genkit.training.ema import Average


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_the_average_equals_its_formula(decay: float) -> None:
    module = nn.Linear(3, 2)
    average = Average({"m": module}, decay)
    expected = module.weight.detach().clone().double()
    for t in range(1, 40):
        with torch.no_grad():
            module.weight.copy_(torch.randn(2, 3))
        average.update()
        d = min(decay, (1 + t) / (10 + t))
        expected = d * expected + (1 - d) * module.weight.detach().double()
    torch.testing.assert_close(average.weights["m.weight"].double(), expected, rtol=1e-5, atol=1e-6)


def test_applied_swaps_and_swaps_back_bit_for_bit() -> None:
    module = nn.Linear(3, 2)
    average = Average({"m": module}, 0.9)
    with torch.no_grad():
        module.weight.add_(1)
    average.update()
    before = module.weight.detach().clone()
    with average.applied():
        assert torch.equal(module.weight, average.weights["m.weight"])
        assert not torch.equal(module.weight, before)
    assert torch.equal(module.weight, before)


def test_half_precision_weights_are_averaged_in_float32() -> None:
    module = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    average = Average({"m": module}, 0.9999)
    with torch.no_grad():
        module.weight.fill_(1.0)
    average.updates = 10**6
    average.weights["m.weight"].fill_(0.5)
    for _ in range(100):
        average.update()  # each moves by 5e-5, which bfloat16 would round away
    assert average.weights["m.weight"].item() == pytest.approx(1 - 0.5 * 0.9999**100, rel=1e-4)
    with average.applied():
        assert module.weight.dtype == torch.bfloat16
