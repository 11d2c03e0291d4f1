"""`pix2pix`: one look into another, learned from pairs of pictures (Isola, Zhu, Zhou & Efros 2017).

A generator draws B from A near the true B (L1), and a discriminator that sees A beside it says whether it is real
(equations 1 to 4). By default everything is as published: a U-Net with batch norm, and dropout for its noise, vanilla
GAN on logits, L1 x 100, no pool, the discriminator before the generator, Adam 2e-4 (0.5, 0.999). Under `accumulate` the
discriminator waits for the last batch, and the earlier ones see it as it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from genkit.errors import InputError
from genkit.training.task import Setup, TaskConfig
from pipelines.image_translation.networks.modes import as_published
from pipelines.image_translation.networks.resnet import Norm, ResnetGenerator
from pipelines.image_translation.networks.unet import Layout, UnetGenerator
from pipelines.image_translation.train.adversarial import GAN, gan_loss, judged
from pipelines.image_translation.train.pictures import Paired, Pairs, paired_folders
from pipelines.image_translation.train.quality import Generator
from pipelines.image_translation.train.task import TranslationConfig, TranslationTask, grid, l1

__all__ = ["Pix2Pix"]


class Pix2PixConfig(TranslationConfig):
    data: Pairs = Field(Pairs(), description="The pairs: data.a and data.b, or data.ab.")
    direction: Literal["a-to-b", "b-to-a"] = Field("a-to-b", description="Which look is made of which.")
    generator: Literal["unet", "resnet"] = Field("unet", description="The generator's kind.")
    downs: int = Field(8, ge=2, le=11, description="How often a U-Net halves the sides; 7 for 128 px.")
    norm: Norm = Field("batch", description="Normalisation of all networks.")
    dropout: bool = Field(True, description="Dropout in the generator.")
    gan: GAN = Field("vanilla", description="The adversarial loss.")
    distance: float = Field(100.0, ge=0, le=1e6, description="Weight of the L1 distance to the true picture.")


class Pix2Pix(TranslationTask):
    """Training of one direction; see the module's docstring."""

    Config: ClassVar[type[TaskConfig]] = Pix2PixConfig
    name = "pix2pix"
    averaged = ("G",)

    def __init__(self, config: Pix2PixConfig, setup: Setup) -> None:
        super().__init__(config, setup, paired_folders(config.data, config, setup))
        self.add_generator("G", _generator(config))
        self.add_discriminator("D", 6)
        self.optimise("generator", "G")
        self.optimise("discriminator", "D")
        self.ends = ("a", "b") if config.direction == "a-to-b" else ("b", "a")

    def dataset(self) -> Paired:
        return Paired(self.a, self.b)

    def step(self, batch: dict[str, Tensor], trainer: Any) -> dict[str, Tensor]:
        given, wanted = (batch[look] for look in self.ends)
        d, gan = self.modules["D"], self.config.gan
        made = self.modules["G"](given)
        judging = judged(d, torch.cat([given, wanted], 1), torch.cat([given, made], 1), gan)
        trainer.backward(judging, "discriminator")
        trainer.update("discriminator")
        adversarial, distance = gan_loss(d(torch.cat([given, made], 1)), True, gan), l1(made, wanted)
        loss = adversarial + self.config.distance * distance
        trainer.backward(loss, "generator")
        trainer.update("generator")
        return {"generator": loss, "G": adversarial, "L1": distance, "D": judging}

    def sample(self) -> dict[str, Any]:
        """A grid of three rows: pictures, what is made of them, and what should be."""
        given, wanted = (self.shown(look) for look in self.ends)
        return {self.config.direction: grid([given, self._made(given), wanted])}

    def makers(self) -> dict[str, Generator]:
        return {self.ends[1]: self._made}

    def _made(self, given: Tensor) -> Tensor:
        """What the authors' test makes of pictures: by their own statistics, and with dropout."""
        with as_published(self.modules["G"], [torch.Generator().manual_seed(seed) for seed in range(len(given))]):
            return self.modules["G"](given)

    def export(self, folder: Path) -> None:
        self.write(folder / f"{self.config.direction}.safetensors", "G", self.config.direction)


def _generator(config: Pix2PixConfig) -> nn.Module:
    """The generator that the settings describe. Raises InputError where they do not go together."""
    c = config
    if c.generator == "resnet":
        return ResnetGenerator(c.layout())
    if c.residual:
        raise InputError("residual is for `generator: resnet`; a U-Net draws its picture anew")
    if c.size % 2**c.downs:
        raise InputError(f"size {c.size} does not fit downs {c.downs}: a U-Net needs a multiple of {2**c.downs}")
    return UnetGenerator(Layout(width=c.width, downs=c.downs, norm=c.norm, dropout=c.dropout))
