"""The two-stream amplitude and phase network of AP-BWE (Lu, Ai, Du & Ling 2024, https://arxiv.org/abs/2401.06387).

    B  recordings or channels in the batch      T  samples      F = n_fft / 2 + 1  frequencies
    N = T // hop + 1  frames                    C  channels     L  layers

    amplitude   ln(|S| + 1e-4) [B, F, N] -> convolution, norm -> L ConvNeXt blocks -> norm, linear, + what came in
    phase       angle of S     [B, F, N] -> convolution, norm -> L ConvNeXt blocks -> norm, two linears R and I,
                                                                                      atan2(I, R)

Before each pair of blocks the streams meet: the amplitude takes the phase's features, then the phase the amplitude's.

Choices made here:
- Names of parameters are those of the authors' code (yxlu-0102/AP-BWE), `mag` the amplitude and `pha` the phase, so its
  published generators load unchanged; shapes of layers that no published model varies (kernel 7, the threefold width
  within a block) are constants.
- The 1e-4 that keeps the logarithm finite is not taken off again, as published.
- `restore` is the authors' inference (analysis, network, synthesis) for any length: they drop the last T % hop samples,
  which the last frames' windows still cover; a recording too short to be reflected at its ends is followed by zeros.
- Where a band is empty, the phase that the network hears is that of rounding errors. A chunk equals the whole only if
  its samples are the whole's to the last bit: whoever resamples in chunks must see to that.
- Spectra and what comes out are float32, whatever precision the layers compute in.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.audio_super_resolution.networks import check_bounds

__all__ = ["Config", "Spectral", "analyse", "synthesise"]

KERNEL = 7  # frames
EPSILON = 1e-4  # beside an amplitude, in its logarithm
NORM_EPSILON = 1e-6


@dataclass(frozen=True)
class Config:
    """The shape of a network and its spectra; what a model file's header holds. As published, but for the rates.

    Raises ValueError for values out of bounds.
    """

    BOUNDS: ClassVar[dict[str, tuple[float, float]]] = {
        "channels": (1, 4096),
        "layers": (1, 64),
        "n_fft": (16, 16_384),
        "hop": (1, 8192),
        "window": (2, 16_384),
    }

    channels: int = 512
    layers: int = 8
    n_fft: int = 1024
    """Samples of a spectrum, the window's and the zeros beside it; even."""
    hop: int = 80
    """Samples from one frame to the next; at most half the window, so that frames overlap."""
    window: int = 320
    """Samples of the Hann window."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.n_fft % 2 or not 2 * self.hop <= self.window <= self.n_fft:
            raise ValueError(
                f"n_fft {self.n_fft}, window {self.window} and hop {self.hop} do not go together: "
                "n_fft is even, the window at most that, the hop at most half the window"
            )

    def json(self) -> str:
        """Itself as JSON; `Config(**json.loads(text))` makes it again."""
        return json.dumps(asdict(self))

    @property
    def frequencies(self) -> int:
        """F"""
        return self.n_fft // 2 + 1


def analyse(samples: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """[B, T] -> logarithm of the amplitude, ln(|S| + 1e-4), and phase in radians, [B, F, N] each, for any T from 1."""
    samples = samples.float()
    missing = config.n_fft // 2 + 1 - samples.shape[-1]  # for the reflection at both ends
    if missing > 0:
        samples = F.pad(samples, (0, missing))
    window = torch.hann_window(config.window, device=samples.device)
    spectrum = torch.stft(samples, config.n_fft, config.hop, config.window, window, return_complex=True)
    return (spectrum.abs() + EPSILON).log(), spectrum.angle()


def synthesise(log_amplitude: Tensor, phase: Tensor, config: Config, *, length: int | None = None) -> Tensor:
    """[B, F, N] each -> [B, T]; T is `length`, by default hop (N - 1) as the authors have it."""
    spectrum = torch.polar(log_amplitude.float().exp(), phase.float())
    window = torch.hann_window(config.window, device=spectrum.device)
    return torch.istft(spectrum, config.n_fft, config.hop, config.window, window, length=length)


class ConvNeXt(nn.Module):
    """A ConvNeXt block over frames with a residual (Liu et al. 2022). [B, C, N] -> [B, C, N]"""

    def __init__(self, channels: int, scale: float) -> None:
        """scale: what the block's share begins with."""
        super().__init__()
        self.dwconv = nn.Conv1d(channels, channels, KERNEL, padding=KERNEL // 2, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=NORM_EPSILON)
        self.pwconv1 = nn.Linear(channels, 3 * channels)
        self.pwconv2 = nn.Linear(3 * channels, channels)
        self.gamma = nn.Parameter(torch.full((channels,), scale))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).transpose(1, 2))  # [B, N, C]
        y = self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + (self.gamma * y).transpose(1, 2)


class Spectral(nn.Module):
    """The network. See the module's docstring; `Config` says what it is made of."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        c, f, layers = config.channels, config.frequencies, config.layers
        self.conv_pre_mag = nn.Conv1d(f, c, KERNEL, padding=KERNEL // 2)
        self.norm_pre_mag = nn.LayerNorm(c, eps=NORM_EPSILON)
        self.conv_pre_pha = nn.Conv1d(f, c, KERNEL, padding=KERNEL // 2)
        self.norm_pre_pha = nn.LayerNorm(c, eps=NORM_EPSILON)
        self.convnext_mag = nn.ModuleList(ConvNeXt(c, 1 / layers) for _ in range(layers))
        self.convnext_pha = nn.ModuleList(ConvNeXt(c, 1 / layers) for _ in range(layers))
        self.norm_post_mag = nn.LayerNorm(c, eps=NORM_EPSILON)
        self.norm_post_pha = nn.LayerNorm(c, eps=NORM_EPSILON)
        self.apply(_initialise)
        self.linear_post_mag = nn.Linear(c, f)  # these begin with PyTorch's own weights, as published
        self.linear_post_pha_r = nn.Linear(c, f)
        self.linear_post_pha_i = nn.Linear(c, f)

    @property
    def receptive_field(self) -> int:
        """Frames on each side of a frame that it depends on: 3 for each block and for the first convolution."""
        return KERNEL // 2 * (self.config.layers + 1)

    @property
    def multiple(self) -> int:
        """Samples of a hop."""
        return self.config.hop

    @property
    def context(self) -> int:
        """Samples on each side that a chunk's own depend on, rounded up to `multiple`.

        Half a window in the synthesis, the frames of `receptive_field`, half a window in the analysis.
        """
        reach = self.receptive_field * self.config.hop + self.config.window
        return -(-reach // self.multiple) * self.multiple

    def forward(self, log_amplitude: Tensor, phase: Tensor) -> tuple[Tensor, Tensor]:
        """A dull spectrum -> the restored one, as `analyse` gives it: log amplitude and phase, [B, F, N] each."""
        amplitude = _over_channels(self.norm_pre_mag, self.conv_pre_mag(log_amplitude))
        angle = _over_channels(self.norm_pre_pha, self.conv_pre_pha(phase))
        for amplitude_block, phase_block in zip(self.convnext_mag, self.convnext_pha, strict=True):
            amplitude = amplitude + angle
            angle = angle + amplitude
            amplitude, angle = amplitude_block(amplitude), phase_block(angle)
        amplitude = self.linear_post_mag(self.norm_post_mag(amplitude.transpose(1, 2)))  # [B, N, F]
        angle = self.norm_post_pha(angle.transpose(1, 2))
        real, imaginary = self.linear_post_pha_r(angle).float(), self.linear_post_pha_i(angle).float()
        return log_amplitude + amplitude.float().transpose(1, 2), torch.atan2(imaginary, real).transpose(1, 2)

    def restore(self, samples: Tensor) -> Tensor:
        """[B, T] at the new rate -> [B, T], for any T from 1."""
        log_amplitude, phase = self(*analyse(samples, self.config))
        return synthesise(log_amplitude, phase, self.config, length=samples.shape[-1])


def _over_channels(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Norm over the channels of each frame. [B, C, N] -> [B, C, N]"""
    return norm(x.transpose(1, 2)).transpose(1, 2)


def _initialise(module: nn.Module) -> None:
    """Truncated normal with deviation 0.02, without bias, as published."""
    if isinstance(module, nn.Conv1d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
