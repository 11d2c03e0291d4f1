"""The critics that AP-BWE is trained against, and their losses (Lu, Ai, Du & Ling 2024, https://arxiv.org/abs/2401.06387).

    B  crops      T  samples      S  places that a critic scores

    Period        the waveform folded into columns of 2, 3, 5, 7 or 11 samples (HiFi-GAN, Kong et al. 2020)
    Resolution    the amplitude or the phase of a spectrum, at three resolutions each (UnivNet, Jang et al. 2021)

Choices made here:
- Sizes and order as published (yxlu-0102/AP-BWE); `width` scales all of them down together.
- Spectra are taken under a rectangular window, as the authors do.
- A critic judges one batch at a time, so that recordings need no gradient where only what was made does.
- The losses are hinges and weigh what looks at spectra a tenth, as the authors do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

__all__ = [
    "Discriminators",
    "Judgement",
    "Period",
    "Resolution",
    "discriminator_loss",
    "feature_loss",
    "generator_loss",
]

PERIODS = (2, 3, 5, 7, 11)
RESOLUTIONS = (512, 1024, 2048)  # samples of a spectrum and its window; a hop is a quarter
SPECTRAL_WEIGHT = 0.1
SLOPE = 0.1


class Judgement(NamedTuple):
    """What one critic says of a batch."""

    score: Tensor
    """[B, S]; towards 1 and above for a recording, towards -1 and below for what was made."""
    features: list[Tensor]
    """Of its layers, for `feature_loss`."""
    weight: float
    """Of this critic in the losses."""


class Period(nn.Module):
    """Looks at the waveform in columns of `period` samples: along time only, never across a column."""

    def __init__(self, period: int, width: float = 1.0) -> None:
        super().__init__()
        self.period = period
        filters = [1, *(_scaled(f, width) for f in (32, 128, 512, 1024, 1024))]
        strides = (3, 3, 3, 3, 1)
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv2d(c, f, (5, 1), (s, 1), (2, 0)))
            for c, f, s in zip(filters, filters[1:], strides, strict=False)
        )
        self.conv_post = weight_norm(nn.Conv2d(filters[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, samples: Tensor) -> Judgement:
        """samples: [B, T], more than `period` of them."""
        x = F.pad(samples[:, None], (0, -samples.shape[-1] % self.period), mode="reflect")
        return _judge(x.unflatten(-1, (-1, self.period)), self.convs, self.conv_post, skipped=1, weight=1.0)


class Resolution(nn.Module):
    """Looks at the amplitude or the phase of a spectrum of `n_fft` samples."""

    def __init__(self, n_fft: int, kind: Literal["amplitude", "phase"], width: float = 1.0) -> None:
        super().__init__()
        self.n_fft, self.kind = n_fft, kind
        filters = _scaled(64, width)
        kernels = ((7, 5), (5, 3), (5, 3), (3, 3), (3, 3))  # over frequencies, over frames
        strides = ((2, 2), (2, 1), (2, 2), (2, 1), (2, 2))
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv2d(filters if i else 1, filters, k, s, (k[0] // 2, k[1] // 2)))
            for i, (k, s) in enumerate(zip(kernels, strides, strict=True))
        )
        self.conv_post = weight_norm(nn.Conv2d(filters, 1, 3, padding=1))

    def forward(self, samples: Tensor) -> Judgement:
        """samples: [B, T], more than n_fft / 2 of them."""
        return _judge(self.look(samples)[:, None], self.convs, self.conv_post, skipped=0, weight=SPECTRAL_WEIGHT)

    def look(self, samples: Tensor) -> Tensor:
        """What is judged: [B, T] -> amplitude, or phase in radians, [B, n_fft / 2 + 1, frames]."""
        rectangle = torch.ones(self.n_fft, device=samples.device)
        spectrum = torch.stft(samples.float(), self.n_fft, self.n_fft // 4, window=rectangle, return_complex=True)
        return spectrum.abs() if self.kind == "amplitude" else spectrum.angle()


class Discriminators(nn.Module):
    """All critics together: one for each period, and for each resolution one of amplitudes and one of phases.

    width: filters of each layer, as a part of the published ones (42.3 million parameters at 1).
    """

    def __init__(
        self, width: float = 1.0, *, periods: Sequence[int] = PERIODS, resolutions: Sequence[int] = RESOLUTIONS
    ) -> None:
        super().__init__()
        self.shortest = max([*(p + 1 for p in periods), *(n // 2 + 1 for n in resolutions)])
        self.period = nn.ModuleList(Period(period, width) for period in periods)
        self.amplitude = nn.ModuleList(Resolution(n_fft, "amplitude", width) for n_fft in resolutions)
        self.phase = nn.ModuleList(Resolution(n_fft, "phase", width) for n_fft in resolutions)

    def forward(self, samples: Tensor) -> list[Judgement]:
        """samples: [B, T] with T at least `shortest`; raises ValueError otherwise. One judgement for each critic."""
        if samples.shape[-1] < self.shortest:
            raise ValueError(f"crops of {samples.shape[-1]} samples are too short to judge; {self.shortest} are needed")
        return [critic(samples) for critic in (*self.period, *self.amplitude, *self.phase)]


def discriminator_loss(real: Sequence[Judgement], made: Sequence[Judgement]) -> Tensor:
    """Hinge: each critic's mean of max(0, 1 - real) and of max(0, 1 + made), weighted and added up."""
    return _total(
        r.weight * (F.relu(1 - r.score).mean() + F.relu(1 + m.score).mean()) for r, m in zip(real, made, strict=True)
    )


def generator_loss(made: Sequence[Judgement]) -> Tensor:
    """Each critic's mean of max(0, 1 - made), weighted and added up."""
    return _total(m.weight * F.relu(1 - m.score).mean() for m in made)


def feature_loss(real: Sequence[Judgement], made: Sequence[Judgement]) -> Tensor:
    """Mean absolute difference of each layer's features, weighted and added up; no gradient goes to `real`."""
    return _total(
        r.weight * F.l1_loss(of_made, of_real.detach())
        for r, m in zip(real, made, strict=True)
        for of_real, of_made in zip(r.features, m.features, strict=True)
    )


def _judge(x: Tensor, convs: nn.ModuleList, last: nn.Module, *, skipped: int, weight: float) -> Judgement:
    """skipped: layers whose features do not count (as published, the first of a `Period`)."""
    features = []
    for conv in convs:
        x = F.leaky_relu(conv(x), SLOPE)
        features.append(x)
    x = last(x)
    return Judgement(x.flatten(1), [*features[skipped:], x], weight)


def _scaled(filters: int, width: float) -> int:
    return max(1, round(filters * width))


def _total(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum()
