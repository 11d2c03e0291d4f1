"""`cyclegan`: two looks learned from pictures that are not paired (Zhu, Park, Isola & Efros 2017).

Two generators, A -> B and B -> A, each against a discriminator of its own; a picture sent there and back must come out
as it was (equation 2), and may be asked to stay as it is where it has the look already (section 5.2). By default
everything is as published: LSGAN, weights 10, 10 and 0.5, pools of 50, generators before discriminators, Adam 2e-4
(0.5, 0.999).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from genkit.training.task import Setup, TaskConfig
from pipelines.image_translation.networks.resnet import ResnetGenerator
from pipelines.image_translation.train.adversarial import Pool, gan_loss, judged
from pipelines.image_translation.train.pictures import Looks, Unpaired, two_folders
from pipelines.image_translation.train.quality import Generator
from pipelines.image_translation.train.task import TranslationConfig, TranslationTask, grid, l1

__all__ = ["CycleGAN"]


class CycleGANConfig(TranslationConfig):
    data: Looks = Field(description="The two folders: data.a and data.b.")
    cycle: float = Field(10.0, ge=0, le=1e4, description="Weight of coming back from there and back, both ways.")
    identity: float = Field(
        0.5, ge=0, le=100, description="Weight, beside `cycle`, of leaving a picture of the look alone."
    )
    pool: int = Field(50, ge=0, le=10**4, description="Pictures made before that discriminators may be shown.")


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
        self.optimise("generators", "G_A", "G_B")
        self.optimise("discriminators", "D_A", "D_B")
        self.pools = {"A": Pool(config.pool), "B": Pool(config.pool)}

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
