"""`audio-spectral`: the amplitude and phase network of AP-BWE, on its published losses (Lu et al. 2024): amplitude,
phase, complex spectrum and consistency, and critics of the waveform, of amplitudes and of phases.

The critics may come in late (`critics_from`): before that the network is taught by the spectra alone, at a third of the
cost of a step.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from genkit.training.task import Setup, TaskConfig
from pipelines.audio_super_resolution.networks.discriminators import (
    Discriminators,
    discriminator_loss,
    feature_loss,
    generator_loss,
)
from pipelines.audio_super_resolution.networks.spectral import Config, Spectral, analyse, synthesise
from pipelines.audio_super_resolution.train.losses import energy_distance, phase_distance, spectra, waveform
from pipelines.audio_super_resolution.train.task import AudioConfig, AudioTask

__all__ = ["AudioSpectral"]

NOISE = 1e-6  # as loud as what a resampler's rounding leaves in an empty band


class AudioSpectralConfig(AudioConfig):
    channels: int = Field(512, ge=1, le=4096, description="Channels of both streams; 512 as published.")
    layers: int = Field(8, ge=1, le=64, description="ConvNeXt blocks of each stream; 8 as published.")
    n_fft: int = Field(1024, ge=16, le=16_384, description="Samples of a spectrum.")
    hop: int = Field(80, ge=1, le=8192, description="Samples from one frame to the next.")
    window: int = Field(320, ge=2, le=16_384, description="Samples of the window.")

    waveform: float = Field(0.0, ge=0, le=1e6, description="Weight of the waveform's root mean square error.")
    amplitude: float = Field(45.0, ge=0, le=1e6, description="Weight of the log amplitudes' mean square error.")
    phase: float = Field(100.0, ge=0, le=1e6, description="Weight of the phases' distance.")
    complex: float = Field(90.0, ge=0, le=1e6, description="Weight of the complex spectrum's mean square error.")
    consistency: float = Field(90.0, ge=0, le=1e6, description="Weight of what synthesis does not keep.")
    energy: float = Field(0.0, ge=0, le=1e6, description="Weight of the spectral energy distance; twice the work.")
    critics: float = Field(1.0, ge=0, le=1e6, description="Weight of what the critics say; 0: none are made.")
    critics_width: float = Field(1.0, gt=0, le=4, description="Their filters, as a share of the published ones.")
    critics_crops: int = Field(2**20, ge=1, le=2**20, description="Crops of a batch that they judge, at most.")
    critics_from: int = Field(0, ge=0, le=10**9, description="Step from which they judge.")
    rate: float = Field(2e-4, gt=0, le=1, description="Highest learning rate.")


class AudioSpectral(AudioTask):
    """Training of the spectral network; see the module's docstring."""

    Config: ClassVar[type[TaskConfig]] = AudioSpectralConfig
    averaged = ("network",)

    def __init__(self, config: AudioSpectralConfig, setup: Setup) -> None:
        c = config
        self.spectrum = Config(c.channels, c.layers, c.n_fft, c.hop, c.window)
        super().__init__(config, setup, Spectral(self.spectrum))
        self.optimise("network", self.network.parameters(), (0.8, 0.99))
        self.critics: Discriminators | None = None
        if c.critics:
            self.critics = self.modules["critics"] = Discriminators(c.critics_width)
            self.optimise("critics", self.critics.parameters(), (0.8, 0.99))

    def step(self, batch: dict[str, Tensor], trainer: Any) -> dict[str, Tensor]:
        c, true = self.config, batch["true"]
        dull = batch["dull"]
        if c.energy:  # each crop twice, with other noise in its empty bands, whose phase the network hears
            true, dull = true.repeat(2, 1), dull.repeat(2, 1)
            dull = dull + NOISE * torch.randn_like(dull)
        log_amplitude, phase = self.network(*analyse(dull, self.spectrum))
        made = synthesise(log_amplitude, phase, self.spectrum, length=true.shape[-1])
        numbers = self.losses(log_amplitude, phase, made, true)
        if self.critics is not None and trainer.step >= c.critics_from:
            seen = slice(c.critics_crops)
            numbers |= (told := self._judge(self.critics, made[seen], true[seen], trainer))
            numbers["loss"] = numbers["loss"] + c.critics * (told["adversarial"] + told["features"])
        trainer.backward(numbers["loss"], "network")
        trainer.update("network")
        return numbers

    def losses(self, log_amplitude: Tensor, phase: Tensor, made: Tensor, true: Tensor) -> dict[str, Tensor]:
        """The loss without critics, and its terms. log_amplitude, phase: [B, F, N]; made, true: [B, T]."""
        c = self.config
        wanted, angle = analyse(true, self.spectrum)
        terms = {"amplitude": F.mse_loss(log_amplitude, wanted), "phase": phase_distance(phase, angle)}
        own = _parts(log_amplitude, phase)
        terms["complex"] = F.mse_loss(own, _parts(wanted, angle))
        terms["consistency"] = F.mse_loss(own, _parts(*analyse(made, self.spectrum)))
        if c.waveform:
            terms["waveform"] = waveform(made, true)
        if c.spectra:
            terms["spectra"] = spectra(made, true)
        if c.energy:
            one, other = made.chunk(2)
            terms["energy"] = energy_distance(one, other, true[: len(one)])
        return {"loss": torch.stack([getattr(c, name) * value for name, value in terms.items()]).sum(), **terms}

    def _judge(self, critics: Discriminators, made: Tensor, true: Tensor, trainer: Any) -> dict[str, Tensor]:
        """The critics' own step, and then what they say of the network's work."""
        told = discriminator_loss(critics(true), critics(made.detach()))
        trainer.backward(told, "critics")
        trainer.update("critics")
        with torch.no_grad():
            real = critics(true)
        opinion = critics(made)
        return {"critics": told, "adversarial": generator_loss(opinion), "features": feature_loss(real, opinion)}


def _parts(log_amplitude: Tensor, phase: Tensor) -> Tensor:
    """Real and imaginary part, [B, F, N, 2]."""
    return torch.view_as_real(torch.polar(log_amplitude.exp(), phase))
