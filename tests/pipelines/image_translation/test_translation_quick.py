"""The quick forms of a generator's layers: the same numbers up to rounding, whatever the sides, and the network left as
it was."""

from typing import Any

import pytest
import torch
from torch import nn

from pipelines.image_translation.networks import quick
from pipelines.image_translation.networks.modes import as_published
from pipelines.image_translation.networks.quick import Doubling, FewIn, FewOut, FourRows, QuickNorm, quicken
from pipelines.image_translation.networks.resnet import Layout, ResnetGenerator
from pipelines.image_translation.networks.stargan import Layout as StarganLayout
from pipelines.image_translation.networks.stargan import StarganGenerator


@pytest.fixture(autouse=True)
def _tiny_counts(monkeypatch):
    """Four rows at once already for a few channels and pixels."""
    monkeypatch.setattr(quick, "LEAST", 8)
    monkeypatch.setattr(quick, "SMALLEST", 1)


def drawn(network: Any) -> Any:
    """In use, with the weights that training begins at and biases that are not zero."""
    torch.manual_seed(3)
    for weight in network.parameters():
        nn.init.normal_(weight, 0, 0.02)
    return network.eval().requires_grad_(False)


def picture(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(7)) * 2 - 1


LAYERS = {
    "four rows": (nn.Conv2d(9, 10, 3), FourRows),
    "four rows, padded": (nn.Conv2d(9, 10, 3, padding=1, bias=False), FourRows),
    "few out": (nn.Conv2d(6, 3, 7), FewOut),
    "few out, padded": (nn.Conv2d(6, 1, 5, padding=2, bias=False), FewOut),
    "few in": (nn.Conv2d(3, 6, 7), FewIn),
    "few in, padded": (nn.Conv2d(1, 6, 7, padding=3, bias=False), FewIn),
    "doubling": (nn.ConvTranspose2d(6, 5, 3, 2, 1, 1), Doubling),
    "norm": (nn.InstanceNorm2d(6), QuickNorm),
    "norm with weights": (nn.InstanceNorm2d(6, affine=True), QuickNorm),
}


@pytest.mark.parametrize("sides", [(13, 18), (16, 16), (9, 31), (14, 7), (11, 12)])
@pytest.mark.parametrize("name", LAYERS)
def test_layer_makes_what_it_stands_for(name, sides):
    layer, wanted = LAYERS[name]
    layer = drawn(layer)
    other = next(quicken(nn.Sequential(layer)).children())
    assert type(other) is wanted
    x = picture(2, getattr(layer, "in_channels", 6), *sides)
    made, right = other(x), layer(x)
    assert made.shape == right.shape
    assert torch.allclose(made, right, atol=2e-6), (made - right).abs().max()


@pytest.mark.parametrize("held", [1, 4000, 10**9])
def test_four_rows_in_parts_are_those_at_once(monkeypatch, held):
    monkeypatch.setattr(quick, "HELD", held)
    conv = drawn(nn.Conv2d(16, 8, 3))
    x = picture(2, 16, 27, 25)
    assert torch.allclose(FourRows(conv)(x), conv(x), atol=2e-6)


def test_four_rows_round_hardly_more_than_the_convolution():
    conv = drawn(nn.Conv2d(96, 96, 3))
    x = picture(1, 96, 34, 34).relu()
    right = nn.functional.conv2d(x.double(), conv.weight.double(), conv.bias.double())
    error, plain = ((made - right).square().mean().sqrt() for made in (FourRows(conv)(x), conv(x)))
    assert error < 4 * plain


def test_other_layers_stay():
    layers: list[nn.Module] = [
        nn.Conv2d(9, 9, 3, stride=2),
        nn.Conv2d(9, 9, 3, groups=3),
        nn.Conv2d(9, 9, 3, dilation=2),
        nn.Conv2d(9, 9, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(9, 9, 7),
        nn.ConvTranspose2d(9, 9, 4, 2, 1),
        nn.InstanceNorm2d(9, track_running_stats=True),
        nn.BatchNorm2d(9),
    ]
    for layer in layers:
        assert type(next(quicken(nn.Sequential(layer)).children())) is type(layer)


@pytest.mark.parametrize(
    "layout",
    [
        Layout(width=8, blocks=3),
        Layout(width=8, blocks=1, dropout=True, antialias_down=True, antialias_up=True),
        Layout(width=8, blocks=2, halvings=3, residual=True),
        Layout(width=8, blocks=1, norm="batch"),
    ],
)
def test_generator_makes_the_same_picture(layout):
    network = drawn(ResnetGenerator(layout))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    x = picture(2, 3, 40, 48)
    quicker = quicken(network)
    with as_published(network, None), as_published(quicker, None):
        made, right = quicker(x), network(x)
        assert torch.allclose(made, right, atol=1e-5), (made - right).abs().max()
        assert torch.allclose(quicker(x[1:])[0], made[1], atol=1e-6)
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_stargan_keeps_its_running_statistics():
    network = drawn(StarganGenerator(StarganLayout(width=8, blocks=2)))
    quicker = quicken(network)
    inputs = picture(1, 3, 32, 32), torch.tensor([[1.0, 0, 0, 1, 0]])
    assert torch.allclose(quicker(*inputs), network(*inputs), atol=1e-5)
    with as_published(network, None), as_published(quicker, None):
        assert torch.allclose(quicker(*inputs), network(*inputs), atol=1e-5)


def test_bfloat16_stays_near_and_stays_bfloat16():
    network = drawn(ResnetGenerator(Layout(width=8, blocks=2)))
    x = picture(1, 3, 32, 32)
    right = network(x)
    relaxed = drawn(ResnetGenerator(Layout(width=8, blocks=2))).bfloat16()
    quicker = quicken(relaxed)
    assert not any(isinstance(layer, FourRows) for layer in quicker.modules())
    made = quicker(x.bfloat16())
    assert made.dtype == torch.bfloat16
    assert (made.float() - right).square().mean() < 2 * (relaxed(x.bfloat16()).float() - right).square().mean()
    assert (made.float() - right).square().mean().sqrt() < 0.02


def test_small_pictures_take_the_plain_convolution(monkeypatch):
    monkeypatch.setattr(quick, "SMALLEST", 100)
    conv = drawn(nn.Conv2d(16, 8, 3))
    small, larger = picture(1, 16, 11, 11), picture(1, 16, 12, 12)
    assert torch.equal(FourRows(conv)(small), conv(small))
    assert not torch.equal(FourRows(conv)(larger), conv(larger))
