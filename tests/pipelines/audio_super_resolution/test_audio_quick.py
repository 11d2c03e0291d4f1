"""The quick layers give the numbers of PyTorch's own, at every length, and no layer is taken for another."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from restoring_kit import model_file, network
from torch import nn

import genkit
from pipelines.audio_super_resolution.loading import load
from pipelines.audio_super_resolution.networks import quick
from pipelines.audio_super_resolution.networks.quick import FFTConv, SideBySide, WideConv, quicken
from pipelines.audio_super_resolution.networks.unet import Config, UNet


def layer(kind: Any, *sizes: int, **options: int) -> Any:
    torch.manual_seed(0)
    return kind(*sizes, **options).eval().requires_grad_(False)


@given(st.sampled_from([17, 33, 65]), st.integers(1, 2000), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
@settings(deadline=None, max_examples=40)
def test_a_convolution_through_the_fft(taps: int, w: int, rows: int, channels: int, filters: int) -> None:
    conv = layer(nn.Conv1d, channels, filters, taps, padding=taps // 2)
    x = torch.randn(rows, channels, w)
    made = FFTConv(conv)(x)
    assert made.shape == (rows, filters, w)
    assert torch.allclose(made, conv(x), atol=2e-6)


def test_blocks_in_parts_and_rows_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few blocks are held at once, and whatever the rows beside it, a row is the same to the last bit."""
    conv = FFTConv(layer(nn.Conv1d, 3, 5, 33, padding=16))
    x = torch.randn(2, 3, 5000)
    whole = conv(x)
    assert torch.equal(conv(x[1:]), whole[1:])
    monkeypatch.setattr(quick, "HELD", 1)
    assert torch.allclose(conv(x), whole, atol=2e-6)


@given(st.integers(1, 3), st.integers(1, 200), st.integers(1, 40), st.integers(1, 40), st.booleans())
@settings(deadline=None, max_examples=40)
def test_a_linear_layer_over_frames(rows: int, frames: int, channels: int, filters: int, bias: bool) -> None:
    linear = layer(nn.Linear, channels, filters, bias=bias)
    x = torch.randn(rows, frames, channels)
    made = SideBySide(linear)(x)
    assert made.shape == (rows, frames, filters)
    assert torch.allclose(made, linear(x), atol=2e-6)


@given(st.sampled_from([1, 7, 9]), st.integers(1, 300), st.integers(1, 3), st.integers(1, 6), st.booleans())
@settings(deadline=None, max_examples=40)
def test_a_convolution_over_channels_side_by_side(taps: int, w: int, rows: int, channels: int, apart: bool) -> None:
    """Of every channel by itself too, and however the input lies in memory."""
    conv = layer(nn.Conv1d, channels, 2 * channels, taps, padding=taps // 2, groups=channels if apart else 1)
    x = torch.randn(rows, channels, w)
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    for lying in (x, turned):
        made = WideConv(conv)(lying)
        assert made.shape == (rows, 2 * channels, w)
        assert torch.allclose(made, conv(x), atol=2e-6)


@pytest.mark.parametrize("name", ["unet", "spectral"])
def test_a_network_gives_the_same_sound(name: str) -> None:
    own: Any = network(name).requires_grad_(False)
    fast: Any = copy.deepcopy(own)
    quicken(fast)
    changed = [type(m) for m in fast.modules()]
    counts = [changed.count(kind) for kind in (FFTConv, SideBySide, WideConv)]
    assert counts == ([2, 0, 1] if name == "unet" else [0, 7, 2])
    for samples in (1, 15, 1000, 9001):
        x = 0.1 * torch.randn(2, samples)
        assert torch.allclose(fast.restore(x), own.restore(x), atol=1e-6), samples


def test_what_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strided kernels; and kernels whose spectra would not fit."""
    own = UNet(Config(blocks=3, width=2)).eval()
    fast = copy.deepcopy(own)
    quicken(fast)
    assert [type(up) for up in fast.up] == [FFTConv, FFTConv, FFTConv]
    assert [type(m) for m in (*fast.down, fast.bottleneck)] == [type(m) for m in (*own.down, own.bottleneck)]
    monkeypatch.setattr(quick, "LARGEST", 1)
    quicken(own)
    assert not any(isinstance(m, FFTConv) for m in own.modules())


def test_only_float32_on_the_cpu(tmp_path: Path) -> None:
    for dtype, quickened in (("float32", True), ("bfloat16", False)):
        file = model_file(tmp_path / f"{dtype}.safetensors")
        pipeline: Any = genkit.load("audio-super-resolution", model=file, device="cpu", dtype=dtype)
        net = pipeline.restorer._own.network
        assert any(isinstance(m, SideBySide) for m in net.modules()) is quickened
    assert not any(isinstance(m, SideBySide) for m in load(file).network.modules()), "only the restorer's own"
