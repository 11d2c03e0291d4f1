"""`cyclegan`: two looks learned from pictures that are not paired (Zhu, Park, Isola & Efros 2017).

Two generators, A -> B and B -> A, each against a discriminator of its own; a picture sent there and back must come out as
it was (equation 2), and may be asked to stay as it is where it has the look already (section 5.2). By default everything
is as published: LSGAN, weights 10, 10 and 0.5, pools of 50, generators before discriminators, Adam 2e-4 (0.5, 0.999).
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from genkit import weights

from genkit.training.task import Setup, Task, TaskConfig
from pipelines.image_translation.networks.patch import PatchDiscriminator
from pipelines.image_translation.networks.resnet import Layout, Norm, ResnetGenerator
from pipelines.image_translation.train.adversarial import GAN, Pool, gan_loss, initialise, judged, rate_schedule
from pipelines.image_translation.train.pictures import Looks, Unpaired, two_folders

__all__ = ["CycleGAN"]


class CycleGANConfig(TaskConfig):
    data: Looks = Field(description="The two folders: data.a and data.b.")
    held_out: int = Field(0, ge=0, le=10**6, description="Names that are not trained on, over both folders.")
    size: int = Field(256, ge=32, le=2048, multiple_of=4, description="Side of the crops, px.")
    load_size: int = Field(286, ge=32, le=4096, description="Side that pictures are brought to before cropping, px.")
    flip: bool = Field(True, description="Mirror half of the pictures.")
    width: int = Field(64, ge=4, le=256, description="Channels of the generators' first layer.")
    blocks: int = Field(9, ge=0, le=32, description="Residual blocks of the generators; 6 for 128 px.")
    halvings: int = Field(2, ge=1, le=5, description="How often the generators halve the sides.")
    norm: Norm = Field("instance", description="Normalisation of all networks.")
    dropout: bool = Field(False, description="Dropout in the residual blocks.")
    residual: bool = Field(False, description="Generators add to the picture instead of drawing it anew.")
    discriminator_width: int = Field(64, ge=4, le=256, description="Channels of the discriminators' first layer.")
    discriminator_layers: int = Field(3, ge=1, le=6, description="Layers of the discriminators.")
    gan: GAN = Field("lsgan", description="The adversarial loss.")
    cycle: float = Field(10.0, ge=0, le=1e4, description="Weight of coming back from there and back, both ways.")
    identity: float = Field(0.5, ge=0, le=100, description="Weight, beside `cycle`, of leaving a picture of the look alone.")
    pool: int = Field(50, ge=0, le=10**4, description="Pictures made before that discriminators may be shown.")
    rate: float = Field(2e-4, gt=0, le=1, description="Learning rate of Adam (0.5, 0.999).")
    constant: float = Field(0.5, ge=0, le=1, description="Share of the run before the rate begins to fall.")


class CycleGAN(Task):
    """Training of both directions at once; see the module's docstring."""

    Config: ClassVar[type[TaskConfig]] = CycleGANConfig
    averaged = ("G_A", "G_B")

    def __init__(self, config: CycleGANConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        c = config
        self.a, self.b, self.held_a, self.held_b = two_folders(
            c.data, size=c.size, load_size=c.load_size, flip=c.flip, held_out=c.held_out, setup=setup
        )
        layout = Layout(
            width=c.width, blocks=c.blocks, halvings=c.halvings, norm=c.norm, dropout=c.dropout, residual=c.residual
        )
        self.modules = {name: ResnetGenerator(layout) for name in ("G_A", "G_B")}
        for name in ("D_A", "D_B"):
            self.modules[name] = PatchDiscriminator(3, c.discriminator_width, c.discriminator_layers, c.norm)
        for network in self.modules.values():
            initialise(network)
        self.optimizers = {"generators": self._adam("G_A", "G_B"), "discriminators": self._adam("D_A", "D_B")}
        epoch = max(1, max(len(self.a), len(self.b)) // setup.batch_size)
        self.schedules = {
            name: rate_schedule(optimizer, steps=setup.steps, epoch=epoch, constant=c.constant)
            for name, optimizer in self.optimizers.items()
        }
        self.pools = {"A": Pool(c.pool), "B": Pool(c.pool)}

    def _adam(self, *names: str) -> torch.optim.Adam:
        parameters = itertools.chain(*(self.modules[name].parameters() for name in names))
        return torch.optim.Adam(parameters, self.config.rate, betas=(0.5, 0.999))

    def dataset(self) -> Unpaired:
        return Unpaired(self.a, self.b)

    def step(self, batch: dict[str, Tensor], trainer: Any) -> dict[str, Tensor]:
        a, b = batch["a"], batch["b"]
        made_a, made_b, numbers = self._generate(a, b)
        trainer.backward(numbers["generators"], "generators")
        trainer.update("generators")
        # As published, D_A is the one that judges pictures of B: it belongs to the cycle that begins at A.
        for name, real, made in (("A", b, made_b), ("B", a, made_a)):
            loss = judged(self.modules[f"D_{name}"], real, self.pools[name].swap(made), self.config.gan)
            trainer.backward(loss, "discriminators")
            numbers[f"D_{name}"] = loss
        trainer.update("discriminators")
        return numbers

    def _generate(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Pictures made of b and of a, and the generators' loss with its terms."""
        to_b, to_a = self.modules["G_A"], self.modules["G_B"]
        c = self.config
        made_b, made_a = to_b(a), to_a(b)
        adversarial_a = gan_loss(self.modules["D_A"](made_b), True, c.gan)
        adversarial_b = gan_loss(self.modules["D_B"](made_a), True, c.gan)
        cycle_a, cycle_b = l1(to_a(made_b), a), l1(to_b(made_a), b)
        loss = adversarial_a + adversarial_b + c.cycle * (cycle_a + cycle_b)
        terms = {"G_A": adversarial_a, "G_B": adversarial_b, "cycle_A": cycle_a, "cycle_B": cycle_b}
        if c.identity:
            identity = l1(to_b(b), b) + l1(to_a(a), a)
            loss = loss + c.cycle * c.identity * identity
            terms["identity"] = identity
        return made_a, made_b, {"generators": loss, **terms}

    def state_dict(self) -> dict[str, Any]:
        return {name: pool.state_dict() for name, pool in self.pools.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, pool in self.pools.items():
            pool.load_state_dict(state[name], self.setup.device)

    def sample(self) -> dict[str, Any]:
        """Grids of four rows: a picture, there, and back."""
        return {
            "A-B-A": self._there_and_back(self.held_a or self.a.paths, self.modules["G_A"], self.modules["G_B"]),
            "B-A-B": self._there_and_back(self.held_b or self.b.paths, self.modules["G_B"], self.modules["G_A"]),
        }

    def _there_and_back(self, paths: list[Path], there: torch.nn.Module, back: torch.nn.Module) -> Tensor:
        shown = whole(paths[:8], self.config.size).to(self.setup.device)
        made = there(shown)
        rows = [torch.cat(list(row.float()), 2) for row in (shown, made, back(made))]
        return (torch.cat(rows, 1).clamp(-1, 1) + 1) / 2

    def export(self, folder: Path) -> None:
        for name, file in (("G_A", "a-to-b"), ("G_B", "b-to-a")):
            network = self.modules[name]
            tensors = {key: value.half() for key, value in network.state_dict().items()}
            weights.write(folder / f"{file}.safetensors", tensors, {"architecture": "genkit.image-translation.resnet"})


def l1(x: Tensor, y: Tensor) -> Tensor:
    return F.l1_loss(x.float(), y.float())


def whole(paths: list[Path], size: int) -> Tensor:
    """Pictures [B, 3, size, size] in -1..1, cut from their middles."""
    from genkit.training.data import fit, open_image

    found = []
    for path in paths:
        picture = fit(open_image(path), size)
        top, left = ((side - size) // 2 for side in picture.shape[1:])
        found.append(picture[:, top : top + size, left : left + size].float() / 127.5 - 1)
    return torch.stack(found)
