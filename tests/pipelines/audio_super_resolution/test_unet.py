"""The 1-D U-Net: its layers as published, any length, and chunks that equal the whole."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.audio_super_resolution.networks.unet import Config, Halve, UNet, sub_pixel

TINY = Config(blocks=2, width=3)


def network(config: Config = TINY, seed: int = 0) -> UNet:
    """In eval mode, and with a last layer that lets everything through."""
    torch.manual_seed(seed)
    made = UNet(config)
    torch.nn.init.normal_(made.last.weight, std=0.5)
    return made.eval().requires_grad_(False)


def test_sub_pixels_are_block_major_as_published() -> None:
    b, r, c, w = 2, 2, 3, 5
    x = torch.randn(b, r * c, w)
    published = torch.empty(b, c, r * w)
    for i in range(w):
        for o in range(r):
            for channel in range(c):
                published[:, channel, r * i + o] = x[:, o * c + channel, i]
    assert torch.equal(sub_pixel(x, r), published)


@pytest.mark.parametrize("kernel", [9, 17, 65])
@pytest.mark.parametrize("w", [2, 8, 70])
def test_stride_two_pads_as_tensorflow_does(kernel: int, w: int) -> None:
    """TensorFlow's formula: zeros in all max((out - 1) stride + kernel - in, 0), half of them left."""
    layer, x = Halve(2, 3, kernel), torch.randn(1, 2, w)
    out = math.ceil(w / 2)
    zeros = max((out - 1) * 2 + kernel - w, 0)
    padded = torch.cat([torch.zeros(1, 2, zeros // 2), x, torch.zeros(1, 2, zeros - zeros // 2)], -1)
    steps = [padded[0, :, 2 * j : 2 * j + kernel] for j in range(out)]
    literal = torch.stack([(layer.weight * step).sum((1, 2)) + layer.bias for step in steps], -1)
    assert torch.allclose(layer(x)[0], literal, atol=1e-5)


def test_the_forward_is_the_published_one() -> None:
    """Two blocks written out, with the operations' own names."""
    net, x = network(), torch.randn(2, 32)

    def halve(x: Tensor, conv: Halve) -> Tensor:
        k = conv.kernel_size[0]
        return F.conv1d(F.pad(x, ((k - 2) // 2, k - 2 - (k - 2) // 2)), conv.weight, conv.bias, stride=2)

    def interleave(x: Tensor) -> Tensor:
        return torch.stack(x.chunk(2, 1), -1).flatten(2)

    a = F.leaky_relu(halve(x[:, None], net.down[0]), 0.2)
    b = F.leaky_relu(halve(a, net.down[1]), 0.2)
    y = F.leaky_relu(halve(b, net.bottleneck), 0.2)
    y = torch.cat([interleave(F.relu(F.conv1d(y, net.up[1].weight, net.up[1].bias, padding=16))), b], 1)
    y = torch.cat([interleave(F.relu(F.conv1d(y, net.up[0].weight, net.up[0].bias, padding=32))), a], 1)
    y = interleave(F.conv1d(y, net.last.weight, net.last.bias, padding=4)) + x[:, None]
    assert torch.allclose(net(x), y[:, 0], atol=1e-6)


def test_the_published_sizes() -> None:
    config = Config()
    assert config.filters == [128, 384, 512, 512, 512, 512, 512, 512]
    assert config.kernels == [65, 33, 17, 9, 9, 9, 9, 9]
    assert replace(config, second=2).filters[:3] == [128, 256, 512]
    with torch.device("meta"):
        sizes = {blocks: sum(p.numel() for p in UNet(Config(blocks=blocks)).parameters()) for blocks in (4, 8)}
        small = sum(p.numel() for p in UNet(Config(blocks=4, width=28)).parameters())
    assert sizes == {8: 118_169_218, 4: 70_977_154}
    assert small * 2 < 8e6  # bytes in half precision


def test_a_config_survives_a_header_and_refuses_nonsense() -> None:
    config = Config(blocks=3, width=5, second=2, dropout=0.25)
    assert Config(**json.loads(config.json())) == config
    for wrong in ({"blocks": 1}, {"blocks": 9}, {"blocks": True}, {"width": 0}, {"width": 2.5}, {"dropout": 1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Config(**wrong)


@pytest.mark.parametrize("t", [1, 2, 7, 8, 9, 31, 100])
def test_any_length_as_if_silence_followed(t: int) -> None:
    net, x = network(), torch.randn(2, 128)
    assert net(x[:, :t]).shape == (2, t)
    rounded = -(-t // net.multiple) * net.multiple
    followed = F.pad(x[:, :t], (0, rounded - t))
    assert torch.allclose(net(x[:, :t]), net(followed)[:, :t], atol=1e-6)


@pytest.mark.parametrize("blocks", [2, 3, 4])
def test_a_chunk_with_its_context_equals_the_whole(blocks: int) -> None:
    net = network(Config(blocks=blocks, width=2))
    m, context = net.multiple, net.context
    assert context % m == 0
    x = torch.randn(1, 2 * context + 7 * m + 5)
    whole = net(x)
    for start, end in ((context + m, context + 3 * m), (0, 2 * m), (x.shape[1] // m * m - m, x.shape[1])):
        first, stop = max(0, start - context), end + context
        chunk = net(x[:, first:stop])[:, start - first : end - first]
        assert torch.allclose(chunk, whole[:, start:end], atol=1e-5)


@pytest.mark.parametrize("blocks", [2, 3, 8])
def test_the_context_is_what_the_output_depends_on(blocks: int) -> None:
    """By the gradient with positive weights: nothing outside of it, and something within its last multiple."""
    net = UNet(Config(blocks=blocks, width=1)).eval()
    for parameter in net.parameters():
        torch.nn.init.constant_(parameter, 1 / parameter[0].numel() if parameter.dim() > 1 else 0.0)
    m, context = net.multiple, net.context
    x = torch.ones(1, 2 * context + 3 * m, dtype=torch.float64, requires_grad=True)
    net.double()(x)[0, context + m : context + 2 * m].sum().backward()
    assert x.grad is not None
    touched = x.grad[0].nonzero()[:, 0]
    first, last = int(touched.min()), int(touched.max())
    assert first >= m
    assert last < x.shape[1] - m
    assert first < 2 * m or last >= x.shape[1] - 2 * m


def test_it_begins_as_nearly_the_identity_with_orthogonal_filters() -> None:
    torch.manual_seed(0)
    net, x = UNet(Config(blocks=2, width=16)).eval(), torch.randn(1, 64)
    assert (net(x) - x).abs().max() < 0.1
    for layer in (net.down[1], net.bottleneck, *net.up):
        flat = layer.weight.flatten(1).double()
        assert torch.allclose(flat @ flat.T, torch.eye(flat.shape[0], dtype=torch.float64), atol=1e-5)
        assert not layer.bias.any()


def test_dropout_is_for_training_only_and_gradients_reach_every_weight() -> None:
    net, x = UNet(TINY), torch.randn(4, 64)
    torch.nn.init.normal_(net.last.weight)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))
    net.train()(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in net.parameters())


def test_items_of_a_batch_do_not_meet() -> None:
    net, x = network(), torch.randn(3, 50)
    assert torch.allclose(net(x)[1:2], net(x[1:2]), atol=1e-6)


def test_it_learns_an_octave() -> None:
    """Tones whose octave was taken away get it back, in phase, for tones not heard in training."""
    torch.manual_seed(0)

    def tones(n: int, low: float, high: float) -> tuple[Tensor, Tensor]:
        """Dull and bright [n, 128]: a tone of 1/16 to 1/5 of the rate, without and with its octave at half strength."""
        angle = 2 * math.pi * (torch.rand(n, 1) + torch.empty(n, 1).uniform_(low, high) * torch.arange(128))
        return angle.sin(), angle.sin() + 0.5 * (2 * angle).sin()

    net = UNet(Config(blocks=2, width=8, dropout=0.0))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(120):
        dull, bright = tones(16, 0.06, 0.2)
        loss = (net(dull) - bright).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    dull, bright = tones(64, 0.08, 0.18)
    with torch.no_grad():
        error = (net.eval()(dull) - bright).square().mean()
    assert error < 0.15 * (dull - bright).square().mean()
