"""What the trainings of image translation have in common: settings, networks, pictures to look at, what comes out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genkit import weights
from genkit.errors import InputError
from genkit.training.data import ImageFolder
from genkit.training.task import Setup, Task
from pipelines.image_translation.networks.patch import PatchDiscriminator
from pipelines.image_translation.networks.resnet import Layout, Norm
from pipelines.image_translation.networks.unet import UnetGenerator
from pipelines.image_translation.recognise import header
from pipelines.image_translation.train.adversarial import GAN, Initial, initialise, rate_schedule
from pipelines.image_translation.train.pictures import Cropping, whole
from pipelines.image_translation.train.quality import FeatureRef, Generator, Quality

__all__ = ["TranslationConfig", "TranslationTask", "grid", "l1"]

SHOWN = 8  # pictures in a grid


class TranslationConfig(Cropping):
    width: int = Field(64, ge=4, le=256, description="Channels of the generators' first layer.")
    blocks: int = Field(9, ge=0, le=32, description="Residual blocks of the generators; 6 for 128 px.")
    halvings: int = Field(2, ge=1, le=10, description="How often the generators halve the sides.")
    norm: Norm = Field("instance", description="Normalisation of all networks.")
    dropout: bool = Field(False, description="Dropout in the generators.")
    residual: bool = Field(False, description="Generators add to the picture instead of drawing it anew.")
    discriminator_width: int = Field(64, ge=4, le=256, description="Channels of the discriminators' first layer.")
    discriminator_layers: int = Field(3, ge=1, le=6, description="Layers of the discriminators.")
    gan: GAN = Field("lsgan", description="The adversarial loss.")
    rate: float = Field(2e-4, gt=0, le=1, description="Learning rate of Adam (0.5, 0.999).")
    constant: float = Field(0.5, ge=0, le=1, description="Share of the run before the rate begins to fall.")
    features: FeatureRef = None
    float32: bool = Field(False, description="Export weights of 32 bits; of 16 they take half the room.")

    def layout(self, *, antialias: bool = False) -> Layout:
        """The ResNet generator that these settings describe. Raises InputError where `size` is too small for it."""
        multiple = 2**self.halvings
        if self.size % multiple or self.size < 4 * multiple:
            raise InputError(
                f"size {self.size} does not fit halvings {self.halvings}: give a multiple of {multiple} from "
                f"{4 * multiple} on"
            )
        return Layout(
            width=self.width,
            blocks=self.blocks,
            norm=self.norm,
            dropout=self.dropout,
            antialias_down=antialias,
            antialias_up=antialias,
            halvings=self.halvings,
            residual=self.residual,
        )


class TranslationTask(Task):
    """Generators against discriminators; a subclass makes them and says what else they are to learn.

    data: pictures of A and of B to train on, and the files of each that are held out.
    """

    best = ("kid", "min")
    name: ClassVar[str]
    """The training, as recipes call it."""
    a: ImageFolder
    b: ImageFolder

    def __init__(
        self, config: Any, setup: Setup, data: tuple[ImageFolder, ImageFolder, list[Path], list[Path]]
    ) -> None:
        super().__init__(config, setup)
        self.a, self.b, self.held_a, self.held_b = data
        self.quality = Quality.of(config.features, setup.device)
        self.epoch = max(1, -(-len(self.dataset()) // setup.batch_size))
        """Steps in which every picture is seen once."""
        setup.say(
            f"{len(self.a)} and {len(self.b)} pictures to learn from, {len(self.held_a)} and {len(self.held_b)} held "
            f"out; {setup.steps} steps are {setup.steps / self.epoch:.3g} epochs"
        )
        if self.quality:
            setup.say(f"KID and FID by the features of {config.features}")

    def add_generator(self, name: str, network: nn.Module, kind: Initial = "normal") -> None:
        initialise(network, kind=kind)
        self.modules[name] = network

    def add_discriminator(
        self, name: str, channels: int = 3, kind: Initial = "normal", *, antialias: bool = False
    ) -> None:
        """A PatchGAN for `channels`. Raises InputError where nothing of a crop would be left at its end."""
        c = self.config
        if c.size < 3 * 2**c.discriminator_layers:
            raise InputError(
                f"size {c.size} is too small for {c.discriminator_layers} discriminator_layers; lower them"
            )
        network = PatchDiscriminator(
            channels, c.discriminator_width, c.discriminator_layers, c.norm, antialias=antialias
        )
        initialise(network, kind=kind)
        self.modules[name] = network

    def optimise(self, name: str, *modules: str) -> None:
        """Adam and its schedule, as published, for some modules together."""
        c = self.config
        parameters = itertools.chain(*(self.modules[module].parameters() for module in modules))
        optimizer = torch.optim.Adam(parameters, c.rate, betas=(0.5, 0.999))
        self.optimizers[name] = optimizer
        self.schedules[name] = rate_schedule(optimizer, steps=self.setup.steps, epoch=self.epoch, constant=c.constant)

    def makers(self) -> dict[str, Generator]:
        """What makes pictures of a look ("a", "b") from pictures of the other, in eval mode."""
        raise NotImplementedError(f"{type(self).__name__} has no makers()")

    def validate(self) -> dict[str, float]:
        return self.quality.measure(self, self.makers()) if self.quality else {}

    def shown(self, look: str) -> Tensor:
        """The first pictures of a look that are held out, or else trained on, [B, 3, H, W] on the device."""
        pictures, held = (self.a, self.held_a) if look == "a" else (self.b, self.held_b)
        return whole(pictures, (held or pictures.paths)[:SHOWN]).to(self.setup.device)

    def write(self, path: Path, name: str, direction: str) -> None:
        """A generator as a file that says itself what it is: its layout and how it was trained are in the header."""
        network = self.modules[name]
        halved = set() if self.config.float32 else {key for key, _ in network.named_parameters()}
        tensors = {key: t.half() if key in halved else t for key, t in network.state_dict().items()}
        setup = self.setup
        run = {"task": self.name, "steps": setup.steps, "batch_size": setup.batch_size, "seed": setup.seed}
        training = run | self.config.model_dump(mode="json", exclude={"data", "features"})
        if training.get("discriminator_features"):  # which network it was; not where this machine keeps it
            training["discriminator_features"] = Path(training["discriminator_features"]).stem
        kind = "unet" if isinstance(network, UnetGenerator) else "resnet"
        weights.write(path, tensors, header(kind, network.layout, training=training, direction=direction))


def l1(x: Tensor, y: Tensor) -> Tensor:
    return F.l1_loss(x.float(), y.float())


def grid(rows: Sequence[Tensor]) -> Tensor:
    """Rows of pictures [B, 3, H, W] in -1..1 as one picture [3, rows x H, B x W] in 0..1."""
    lines = [torch.cat(list(row.float()), 2) for row in rows]
    return (torch.cat(lines, 1).clamp(-1, 1) + 1) / 2
