"""`cyclegan`: two looks learned from pictures that are not paired (Zhu, Park, Isola & Efros 2017).

Two generators, A -> B and B -> A, each against a discriminator of its own; a picture sent there and back must come out
as it was (equation 2), and may be asked to stay as it is where it has the look already (section 5.2). By default
everything is as published: LSGAN, weights 10, 10 and 0.5, pools of 50, generators before discriminators, Adam 2e-4
(0.5, 0.999).

`discriminator_features` adds, to each discriminator, one that looks at the picture through a network trained on
photographs (Sauer et al. 2021): in short runs, what tells two hands apart has not to be learned from nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from genkit.metrics.features import Features
from genkit.training.task import Setup, TaskConfig
from pipelines.image_translation.networks.perceptive import FeatureDiscriminator, Scales
from pipelines.image_translation.networks.resnet import ResnetGenerator
from pipelines.image_translation.train.adversarial import Pool, gan_loss, judged, scale_loss
from pipelines.image_translation.train.pictures import Looks, Unpaired, two_folders, whole
from pipelines.image_translation.train.quality import Generator
from pipelines.image_translation.train.task import TranslationConfig, TranslationTask, grid, l1

__all__ = ["CycleGAN"]

SOME = 64  # pictures of each look that features are measured on


class CycleGANConfig(TranslationConfig):
    data: Looks = Field(description="The two folders: data.a and data.b.")
    cycle: float = Field(10.0, ge=0, le=1e4, description="Weight of coming back from there and back, both ways.")
    identity: float = Field(
        0.5, ge=0, le=100, description="Weight, beside `cycle`, of leaving a picture of the look alone."
    )
    pool: int = Field(50, ge=0, le=10**4, description="Pictures made before that discriminators may be shown.")
    discriminator_features: str | None = Field(
        None,
        description="A frozen network whose features more discriminators look at: torchvision:squeezenet1_0 or a file.",
    )


class CycleGAN(TranslationTask):
    """Training of both directions at once; see the module's docstring."""

    Config: ClassVar[type[TaskConfig]] = CycleGANConfig
    name = "cyclegan"
    averaged = ("G_A", "G_B")

    def __init__(self, config: CycleGANConfig, setup: Setup) -> None:
        super().__init__(config, setup, two_folders(config.data, config, setup))
        for name in ("G_A", "G_B"):
            self.add_generator(name, ResnetGenerator(config.layout()))
        for name in ("D_A", "D_B"):
            self.add_discriminator(name)
        self.perception = self._perceive(config.discriminator_features)
        self.optimise("generators", "G_A", "G_B")
        self.optimise("discriminators", *(name for name in self.modules if name not in self.averaged))
        self.pools = {"A": Pool(config.pool), "B": Pool(config.pool)}

    def _perceive(self, ref: str | None) -> Scales | None:
        """The frozen network of a reference and discriminators that see through it, or None."""
        if not ref:
            return None
        found = Features.load(ref)
        scales = Scales(found.layers, found.mean, found.std)
        some = [whole(look, look.paths[:: max(1, len(look) // SOME)][:SOME]) for look in (self.a, self.b)]
        scales.measure(torch.cat(some))
        self.frozen["scales"] = scales
        for name in ("F_A", "F_B"):
            self.modules[name] = FeatureDiscriminator(scales.channels)
        return scales

    def dataset(self) -> Unpaired:
        return Unpaired(self.a, self.b)

    def step(self, batch: dict[str, Tensor], trainer: Any) -> dict[str, Tensor]:
        a, b = batch["a"], batch["b"]
        # As published, D_A is the one that judges pictures of B: it belongs to the cycle that begins at A.
        real, made = {"A": b, "B": a}, {"A": self.modules["G_A"](a), "B": self.modules["G_B"](b)}
        seen = {name: self.perception(picture) for name, picture in made.items()} if self.perception else {}
        numbers = self._generators(real, made, seen)
        trainer.backward(numbers["generators"], "generators")
        trainer.update("generators")
        for name in ("A", "B"):
            shown = self.pools[name].swap(made[name])
            numbers[f"D_{name}"] = loss = judged(self.modules[f"D_{name}"], real[name], shown, self.config.gan)
            if self.perception:
                numbers[f"F_{name}"] = self._perceived(name, real[name], seen[name])
                loss = loss + numbers[f"F_{name}"]
            trainer.backward(loss, "discriminators")
        trainer.update("discriminators")
        return numbers

    def _generators(
        self, real: dict[str, Tensor], made: dict[str, Tensor], seen: dict[str, list[Tensor]]
    ) -> dict[str, Tensor]:
        """The generators' loss, "generators", and its terms. seen: the maps of what was made."""
        to_b, to_a = self.modules["G_A"], self.modules["G_B"]
        c = self.config
        terms = {f"G_{name}": gan_loss(self.modules[f"D_{name}"](made[name]), True, c.gan) for name in made}
        for name, maps in seen.items():
            terms[f"GF_{name}"] = scale_loss(self.modules[f"F_{name}"](maps), True, c.gan)
        loss = torch.stack(list(terms.values())).sum()
        terms["cycle_A"], terms["cycle_B"] = l1(to_a(made["A"]), real["B"]), l1(to_b(made["B"]), real["A"])
        loss = loss + c.cycle * (terms["cycle_A"] + terms["cycle_B"])
        if c.identity:
            terms["identity"] = l1(to_b(real["A"]), real["A"]) + l1(to_a(real["B"]), real["B"])
            loss = loss + c.cycle * c.identity * terms["identity"]
        return {"generators": loss, **terms}

    def _perceived(self, name: str, real: Tensor, seen: list[Tensor]) -> Tensor:
        """The loss of the discriminator that sees features, on a real picture and on the maps of one made."""
        head = self.modules[f"F_{name}"]
        with torch.no_grad():
            true = self.frozen["scales"](real)
        made = head([maps.detach() for maps in seen])
        return (scale_loss(head(true), True, self.config.gan) + scale_loss(made, False, self.config.gan)) / 2

    def state_dict(self) -> dict[str, Any]:
        return {name: pool.state_dict() for name, pool in self.pools.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, pool in self.pools.items():
            pool.load_state_dict(state[name], self.setup.device)

    def makers(self) -> dict[str, Generator]:
        return {"b": self.modules["G_A"], "a": self.modules["G_B"]}

    def sample(self) -> dict[str, Any]:
        """Grids of three rows: pictures, what is made of them, and what is made of that on the way back."""
        to_b, to_a = self.modules["G_A"], self.modules["G_B"]
        return {"A-B-A": self._there_and_back("a", to_b, to_a), "B-A-B": self._there_and_back("b", to_a, to_b)}

    def _there_and_back(self, look: str, there: nn.Module, back: nn.Module) -> Tensor:
        shown = self.shown(look)
        made = there(shown)
        return grid([shown, made, back(made)])

    def export(self, folder: Path) -> None:
        self.write(folder / "a-to-b.safetensors", "G_A", "a-to-b")
        self.write(folder / "b-to-a.safetensors", "G_B", "b-to-a")
