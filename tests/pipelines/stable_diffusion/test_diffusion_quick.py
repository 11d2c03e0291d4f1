"""Quick layers: the same numbers up to rounding, the same names and weights, and plain layers where those are due."""

from __future__ import annotations

import copy

import diffusion_kit as kit
import pytest
import torch
from torch import nn

from pipelines.stable_diffusion import quick

needs_operations = pytest.mark.skipif(not quick.available(), reason="this torch has no oneDNN operations")
bfloat16 = torch.bfloat16


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    torch.manual_seed(0)
    return kit.unet().requires_grad_(False)


@pytest.fixture(scope="module")
def quickened(unet: nn.Module) -> nn.Module:
    return quick.quicken(copy.deepcopy(unet))


def made(network: nn.Module, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    dtype = next(network.parameters()).dtype
    latents = torch.randn(count, 4, 8, 8, generator=generator).to(dtype)
    words = torch.randn(count, 77, kit.HIDDEN, generator=generator).to(dtype)
    with torch.no_grad():
        return network(latents, torch.tensor(500), words, return_dict=False)[0].float()


@needs_operations
def test_every_layer_is_quick_and_still_what_it_was(unet: nn.Module, quickened: nn.Module) -> None:
    kinds = (nn.Conv2d, nn.Linear, nn.GroupNorm)
    plain = [layer for layer in unet.modules() if isinstance(layer, kinds)]
    other = [layer for layer in quickened.modules() if isinstance(layer, kinds)]
    assert len(plain) == len(other) > 50
    assert {type(layer) for layer in other} == {quick.Convolution, quick.Linear, quick.Norm}
    ours, theirs = quickened.state_dict(), unet.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_numbers_are_the_same_up_to_rounding(unet: nn.Module, quickened: nn.Module) -> None:
    for count in (1, 2, 5):
        torch.testing.assert_close(made(quickened, count), made(unet, count), rtol=0, atol=2e-6)


def test_in_bfloat16_rounding_is_no_worse(unet: nn.Module) -> None:
    right = made(unet)
    plain = copy.deepcopy(unet).to(bfloat16).to(memory_format=torch.channels_last)
    other = quick.quicken(copy.deepcopy(plain))
    ours, theirs = ((made(network) - right).square().mean().sqrt() for network in (other, plain))
    assert 0 < ours < 1.2 * theirs < 0.1


@needs_operations
def test_results_do_not_depend_on_what_was_done_before(quickened: nn.Module) -> None:
    many_first, few_first = copy.deepcopy(quickened), copy.deepcopy(quickened)
    made(many_first, 8)
    made(few_first, 1)
    for count in (1, 2, 8):
        assert torch.equal(made(many_first, count), made(few_first, count))


@needs_operations
def test_changed_weights_are_seen(unet: nn.Module, quickened: nn.Module) -> None:
    changed = copy.deepcopy(quickened)
    before = made(changed)
    weights = {name: value * 1.1 for name, value in unet.state_dict().items()}
    changed.load_state_dict(weights)
    plain = copy.deepcopy(unet)
    plain.load_state_dict(weights)
    torch.testing.assert_close(made(changed), made(plain), rtol=1e-5, atol=5e-6)
    changed.load_state_dict(unet.state_dict())
    assert torch.equal(made(changed), before)
    halved = changed.to(bfloat16).float()
    assert not torch.equal(made(halved), before)


@needs_operations
def test_with_gradients_layers_are_plain(unet: nn.Module, quickened: nn.Module) -> None:
    results = []
    for network in (unet, quickened):
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2)).requires_grad_(True)
        network(latents, torch.tensor(3), torch.ones(1, 77, kit.HIDDEN), return_dict=False)[0].square().sum().backward()
        results.append(latents.grad)
    assert torch.equal(*results)


@needs_operations
def test_seamless_tiling_takes_quick_convolutions_too(unet: nn.Module, quickened: nn.Module) -> None:
    from pipelines.stable_diffusion.seamless import wrapped

    networks = [copy.deepcopy(unet), copy.deepcopy(quickened)]
    plain = made(networks[1])
    with wrapped(networks, "both"):
        right, ours = (made(network) for network in networks)
    torch.testing.assert_close(ours, right, rtol=0, atol=2e-6)
    assert (right - plain).abs().max() > 1e-3
    assert torch.equal(made(networks[1]), plain)


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize(("kernel", "stride", "padding", "groups"), [(3, 2, 1, 1), (1, 1, 0, 1), (3, 1, "same", 2)])
def test_convolutions_of_all_kinds(mode: str, kernel: int, stride: int, padding: int | str, groups: int) -> None:
    plain = nn.Sequential(nn.Conv2d(4, 6, kernel, stride, padding, groups=groups, bias=groups == 1, padding_mode=mode))
    x = torch.randn(2, 4, 9, 7)
    with torch.no_grad():
        torch.testing.assert_close(quick.quicken(copy.deepcopy(plain))(x), plain(x), rtol=0, atol=2e-6)


@pytest.mark.parametrize("affine", [True, False])
def test_narrow_norm_is_done_in_float32(affine: bool) -> None:
    norm = quick.quicken(nn.Sequential(nn.GroupNorm(4, 12, affine=affine)))
    x = (100 + torch.randn(2, 12, 16, 16)).to(bfloat16).contiguous(memory_format=torch.channels_last)
    right = nn.functional.group_norm(x.float(), 4)
    with torch.no_grad():
        ours = norm.to(bfloat16)(x)
    assert ours.dtype == bfloat16
    torch.testing.assert_close(ours.float(), right, rtol=0.01, atol=0.01)


def test_a_torch_without_the_operations_has_plain_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "available", lambda: False)
    assert type(quick.quicken(nn.Sequential(nn.Linear(2, 2)))[0]) is nn.Linear
