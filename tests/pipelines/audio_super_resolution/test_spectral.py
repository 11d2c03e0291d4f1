"""AP-BWE's generator: its key layout, its numbers by an independent forward, any length, exact chunks."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from genkit import weights
from pipelines.audio_super_resolution.networks.spectral import Config, Spectral, analyse, synthesise

TINY = Config(channels=6, layers=2, n_fft=32, hop=5, window=20)
BLOCK = {
    "gamma": (512,),
    "dwconv.weight": (512, 1, 7),
    "dwconv.bias": (512,),
    "norm.weight": (512,),
    "norm.bias": (512,),
    "pwconv1.weight": (1536, 512),
    "pwconv1.bias": (1536,),
    "pwconv2.weight": (512, 1536),
    "pwconv2.bias": (512,),
}
PUBLISHED = {  # every key of g_24kto48k, and of the other six, which differ in their rates only
    "conv_pre_mag.weight": (512, 513, 7),
    "conv_pre_mag.bias": (512,),
    "norm_pre_mag.weight": (512,),
    "norm_pre_mag.bias": (512,),
    "conv_pre_pha.weight": (512, 513, 7),
    "conv_pre_pha.bias": (512,),
    "norm_pre_pha.weight": (512,),
    "norm_pre_pha.bias": (512,),
    **{f"convnext_mag.{i}.{key}": shape for i in range(8) for key, shape in BLOCK.items()},
    **{f"convnext_pha.{i}.{key}": shape for i in range(8) for key, shape in BLOCK.items()},
    "norm_post_mag.weight": (512,),
    "norm_post_mag.bias": (512,),
    "norm_post_pha.weight": (512,),
    "norm_post_pha.bias": (512,),
    "linear_post_mag.weight": (513, 512),
    "linear_post_mag.bias": (513,),
    "linear_post_pha_r.weight": (513, 512),
    "linear_post_pha_r.bias": (513,),
    "linear_post_pha_i.weight": (513, 512),
    "linear_post_pha_i.bias": (513,),
}


def network(config: Config = TINY, seed: int = 0) -> Spectral:
    """In eval mode, far from the mild values that it begins with."""
    torch.manual_seed(seed)
    made = Spectral(config)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.3)
    return made.eval().requires_grad_(False)


def recording(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.2


def test_the_key_layout_is_the_published_one() -> None:
    with torch.device("meta"):
        net = Spectral(Config())
    assert {key: tuple(tensor.shape) for key, tensor in net.state_dict().items()} == PUBLISHED
    assert sum(p.numel() for p in net.parameters()) == 29_760_515
    tensors = {key: torch.empty(shape, device="meta") for key, shape in PUBLISHED.items()}
    weights.load_into(net, tensors, name="g_24kto48k")  # raises where anything is missing or left over


def literal_forward(w: dict[str, Tensor], log_amplitude: Tensor, phase: Tensor, layers: int) -> tuple[Tensor, Tensor]:
    """The network from its tensors alone, one recording [F, N], every operation written out."""

    def convolve(x: Tensor, name: str, depthwise: bool) -> Tensor:  # [C, N]
        kernel, padded = w[f"{name}.weight"].double(), F.pad(x, (3, 3))
        taps = [padded[:, k : k + x.shape[1]] for k in range(7)]
        if depthwise:
            y = sum((kernel[:, 0, k, None] * tap for k, tap in enumerate(taps)), torch.zeros(1))
        else:
            y = sum((kernel[:, :, k] @ tap for k, tap in enumerate(taps)), torch.zeros(1))
        return y + w[f"{name}.bias"].double()[:, None]

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance = x.mean(0), x.var(0, unbiased=False)
        weight, bias = w[f"{name}.weight"].double()[:, None], w[f"{name}.bias"].double()[:, None]
        return (x - mean) / (variance + 1e-6).sqrt() * weight + bias

    def linear(x: Tensor, name: str) -> Tensor:
        return w[f"{name}.weight"].double() @ x + w[f"{name}.bias"].double()[:, None]

    def block(x: Tensor, name: str) -> Tensor:
        y = linear(norm(convolve(x, f"{name}.dwconv", True), f"{name}.norm"), f"{name}.pwconv1")
        y = y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))
        return x + w[f"{name}.gamma"].double()[:, None] * linear(y, f"{name}.pwconv2")

    mag = norm(convolve(log_amplitude.double(), "conv_pre_mag", False), "norm_pre_mag")
    pha = norm(convolve(phase.double(), "conv_pre_pha", False), "norm_pre_pha")
    for i in range(layers):
        mag = mag + pha
        pha = pha + mag  # the amplitude's features are those after it has taken the phase's
        mag, pha = block(mag, f"convnext_mag.{i}"), block(pha, f"convnext_pha.{i}")
    pha = norm(pha, "norm_post_pha")
    real, imaginary = linear(pha, "linear_post_pha_r"), linear(pha, "linear_post_pha_i")
    return log_amplitude + linear(norm(mag, "norm_post_mag"), "linear_post_mag"), torch.atan2(imaginary, real)


@pytest.mark.parametrize("config", [TINY, Config(channels=9, layers=3, n_fft=64, hop=16, window=64)])
def test_the_forward_is_the_published_one(config: Config) -> None:
    net = network(config)
    log_amplitude, phase = analyse(recording(2, 400), config)
    made = net(log_amplitude, phase)
    for i in range(2):
        literal = literal_forward(net.state_dict(), log_amplitude[i], phase[i], config.layers)
        assert torch.allclose(made[0][i].double(), literal[0], atol=1e-5)
        turned = made[1][i].double() - literal[1]  # pi and -pi are one phase
        assert torch.atan2(turned.sin(), turned.cos()).abs().max() < 1e-4


def test_the_spectrum_is_the_published_one() -> None:
    """Frame k is centred on sample k hop of the recording reflected at its ends, under a periodic Hann window."""
    c, x = TINY, recording(1, 103)
    log_amplitude, phase = analyse(x, c)
    padded = F.pad(x[None], (c.n_fft // 2, c.n_fft // 2), mode="reflect")[0, 0].double()
    hann = 0.5 - 0.5 * torch.cos(2 * math.pi * torch.arange(c.window, dtype=torch.float64) / c.window)
    window = F.pad(hann, ((c.n_fft - c.window) // 2,) * 2)
    waves = torch.arange(c.frequencies)[:, None] * torch.arange(c.n_fft) * (2 * math.pi / c.n_fft)
    for k in range(103 // c.hop + 1):
        frame = padded[k * c.hop : k * c.hop + c.n_fft] * window
        spectrum = torch.complex((frame * waves.cos()).sum(1), -(frame * waves.sin()).sum(1))
        assert torch.allclose(log_amplitude[0, :, k].double(), (spectrum.abs() + 1e-4).log(), atol=1e-4)
        clear = spectrum.abs() > 1e-2
        turned = torch.polar(torch.ones(()), phase[0, :, k]) - spectrum / spectrum.abs()
        assert turned[clear].abs().max() < 1e-4
    assert log_amplitude.shape == phase.shape == (1, 17, 103 // c.hop + 1)


def test_synthesis_undoes_analysis_and_is_longer_than_the_authors_by_the_tail() -> None:
    x = recording(2, 1003) + 1  # far above the 1e-4 that stays in
    spectrum = analyse(x, TINY)
    whole = synthesise(*spectrum, TINY, length=1003)
    assert (whole - x).abs().max() < 1e-3
    theirs = synthesise(*spectrum, TINY)
    assert theirs.shape == (2, 1000)
    assert torch.equal(theirs, whole[:, :1000])


@pytest.mark.parametrize("t", [1, 2, 4, 5, 15, 16, 17, 64, 101])
def test_any_length(t: int) -> None:
    net, x = network(), recording(2, t)
    y = net.restore(x)
    assert y.shape == x.shape
    assert y.isfinite().all()
    assert torch.equal(net.restore(x), y)
    assert torch.allclose(net.restore(x[1:]), y[1:], atol=1e-5)


def test_silence_gives_something_finite() -> None:
    assert network().restore(torch.zeros(1, 200)).isfinite().all()


@pytest.mark.parametrize("config", [TINY, Config(channels=8, layers=1), Config(4, 3, 64, 16, 33)])
def test_a_chunk_with_its_context_equals_the_whole(config: Config) -> None:
    net = network(config)
    m, context = net.multiple, net.context
    assert context % m == 0
    x = recording(1, 2 * context + 40 * m + m - 1)
    whole, t = net.restore(x), x.shape[1]
    for start, end in ((context + m, context + 9 * m), (0, 7 * m), (t // m * m - m, t), (2 * m, 3 * m)):
        first = max(0, start - context)
        chunk = net.restore(x[:, first : end + context])[:, start - first : end - first]
        assert torch.allclose(chunk, whole[:, start:end], atol=1e-5)


def test_the_context_is_what_the_output_depends_on() -> None:
    """A click one sample outside of it changes nothing; within its last two hops, something."""
    net = network(Config(channels=4, layers=2, n_fft=64, hop=4, window=16))
    m, context = net.multiple, net.context
    assert net.receptive_field == 9
    assert context == 9 * 4 + 16
    x = recording(1, 2 * context + 40 * m)
    start, end = context + 10 * m, context + 12 * m
    before = net.restore(x)[:, start:end]

    def changed(at: int) -> bool:
        clicked = x.clone()
        clicked[0, at] += 50
        return not torch.equal(net.restore(clicked)[:, start:end], before)

    assert not changed(start - context - 1)
    assert not changed(end + context)
    assert any(changed(at) for at in range(start - context, start - context + 2 * m))
    assert any(changed(at) for at in range(end + context - 2 * m, end + context))


def test_gradients_reach_every_weight() -> None:
    net = Spectral(TINY)
    net.restore(recording(3, 128)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in net.parameters())


def test_it_learns_to_raise_what_is_too_quiet() -> None:
    """An octave 26 dB too quiet at the input, as after a filter: the network lifts it."""
    torch.manual_seed(0)
    config = Config(channels=12, layers=2, n_fft=64, hop=16, window=64)
    net = Spectral(config)
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)

    def tones(n: int) -> tuple[Tensor, Tensor]:
        angle = 2 * math.pi * (torch.rand(n, 1) + torch.empty(n, 1).uniform_(0.1, 0.2) * torch.arange(256))
        return angle.sin() + 0.025 * (2 * angle).sin(), angle.sin() + 0.5 * (2 * angle).sin()

    errors = []
    for _ in range(60):
        dull, bright = tones(16)
        wanted = analyse(bright, config)[0]
        made = net(*analyse(dull, config))[0]
        loss = (made - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append((loss.item(), (analyse(dull, config)[0] - wanted).square().mean().item()))
    assert errors[-1][0] < 0.5 * errors[-1][1]


def test_a_small_one_fits_into_eight_megabytes() -> None:
    with torch.device("meta"):
        net = Spectral(Config(channels=192, layers=6, n_fft=512, hop=128, window=512))
    assert sum(p.numel() for p in net.parameters()) < 4e6


def test_a_config_survives_a_header_and_refuses_nonsense() -> None:
    config = Config(channels=24, layers=3, n_fft=512, hop=100, window=400)
    assert Config(**json.loads(config.json())) == config
    for wrong in ({"channels": 0}, {"layers": 65}, {"layers": "8"}, {"n_fft": 1023}, {"hop": 161}, {"window": 1025}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Config(**wrong)
