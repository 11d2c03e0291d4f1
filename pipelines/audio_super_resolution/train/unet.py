"""`audio-unet`: the 1-D U-Net of Kuleshov, Enam & Ermon 2017, on the waveform's error and, if asked, the spectra's."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from genkit.training.task import Setup, TaskConfig
from pipelines.audio_super_resolution.networks.unet import Config, UNet
from pipelines.audio_super_resolution.train.losses import spectra, waveform
from pipelines.audio_super_resolution.train.task import AudioConfig, AudioTask

__all__ = ["AudioUNet"]


class AudioUNetConfig(AudioConfig):
    blocks: int = Field(8, ge=2, le=8, description="Blocks on the way down, and up.")
    width: int = Field(128, ge=1, le=1024, description="Filters of the first block; 128 as published.")
    dropout: float = Field(0.5, ge=0, le=0.95, description="Dropout, 0.5 as published; less for small networks.")


class AudioUNet(AudioTask):
    """Training of a U-Net; see the module's docstring."""

    Config: ClassVar[type[TaskConfig]] = AudioUNetConfig

    def __init__(self, config: AudioUNetConfig, setup: Setup) -> None:
        super().__init__(config, setup, UNet(Config(config.blocks, config.width, dropout=config.dropout)))
        self.optimise("network", self.network.parameters(), (0.9, 0.999))

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss and its terms."""
        c = self.config
        made = self.network(batch["dull"]).float()
        terms = {"waveform": waveform(made, batch["true"])}
        if c.spectra:
            terms["spectra"] = spectra(made, batch["true"])
        weighted = [getattr(c, name) * value for name, value in terms.items()]
        return {"loss": sum(weighted[1:], weighted[0]), **terms}

    def step(self, batch: dict[str, Tensor], trainer: Any) -> dict[str, Tensor]:
        numbers = self.losses(batch)
        trainer.backward(numbers["loss"], "network")
        trainer.update("network")
        return numbers
