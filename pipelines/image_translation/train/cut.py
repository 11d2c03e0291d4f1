"""`cut`: one look into another without pairs and without a way back (Park, Efros, Zhang & Zhu 2020).

What a picture shows is kept by contrast: a patch of the result must be nearer to the patch of the picture at the same
place than to 255 others of that picture (PatchNCE, equations 2 to 4), seen by the generator's own encoder and heads on
top. By default everything is as the authors run CUT: antialiased networks, Xavier, LSGAN, places 0, 4, 8, 12 and 16 of
the generator, weight 1 shared evenly with the contrast of pictures of the look itself (their code takes the mean of the
two terms that equation 5 adds), the discriminator before the generator and the heads, Adam 2e-4 (0.5, 0.999).
FastCUT is contrast 10, identity off, equivariance to mirroring, and a shorter run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from genkit.errors import InputError
from genkit.training.task import Setup, TaskConfig
from pipelines.image_translation.networks.resnet import ResnetGenerator
from pipelines.image_translation.networks.sampler import PatchSampler, features
from pipelines.image_translation.train.adversarial import gan_loss, initialise, judged
from pipelines.image_translation.train.pictures import Looks, Unpaired, two_folders
from pipelines.image_translation.train.quality import Generator
from pipelines.image_translation.train.task import TranslationConfig, TranslationTask, grid

__all__ = ["CUT", "patch_nce"]


class CUTConfig(TranslationConfig):
    data: Looks = Field(description="The two folders: data.a and data.b.")
    antialias: bool = Field(True, description="Halve and double by blurs instead of strides.")
    contrast: float = Field(1.0, ge=0, le=1e4, description="Weight of PatchNCE.")
    identity: bool = Field(True, description="Half of that weight for pictures of B, which are to stay as they are.")
    equivariance: bool = Field(False, description="Mirror A half of the time, and what comes of it back to compare.")
    places: list[int] = Field([0, 4, 8, 12, 16], min_length=1, description="Places in the generator to compare at.")
    patches: int = Field(256, ge=2, le=2**16, description="Patches compared at each place.")
    head_width: int = Field(256, ge=4, le=4096, description="Length of the vectors compared.")
    temperature: float = Field(0.07, gt=0, le=100, description="Temperature of the comparison.")


class CUT(TranslationTask):
    """Training of A to B; see the module's docstring."""

    Config: ClassVar[type[TaskConfig]] = CUTConfig
    name = "cut"
    averaged = ("G",)

    def __init__(self, config: CUTConfig, setup: Setup) -> None:
        super().__init__(config, setup, two_folders(config.data, config, setup))
        generator = ResnetGenerator(config.layout(antialias=config.antialias))
        if not 0 <= min(config.places) <= max(config.places) < generator.added[0]:
            raise InputError(f"places {config.places}: this generator has the places 0 to {generator.added[0] - 1}")
        self.add_generator("G", generator, "xavier")
        self.add_discriminator("D", kind="xavier", antialias=config.antialias)
        with torch.no_grad():
            seen = features(generator, torch.zeros(1, 3, config.size, config.size), config.places)
        self.modules["F"] = PatchSampler([x.shape[1] for x in seen], config.head_width)
        initialise(self.modules["F"], kind="xavier")
        for name, module in (("generator", "G"), ("discriminator", "D"), ("heads", "F")):
            self.optimise(name, module)

    def dataset(self) -> Unpaired:
        return Unpaired(self.a, self.b)

    def step(self, batch: dict[str, Tensor], trainer: Any) -> dict[str, Tensor]:
        a, b, c = batch["a"], batch["b"], self.config
        mirrored = c.equivariance and bool(torch.rand(()) < 0.5)
        made, kept = self._made(a, b, mirrored)
        judging = judged(self.modules["D"], b, made, c.gan)
        trainer.backward(judging, "discriminator")
        trainer.update("discriminator")

        adversarial = gan_loss(self.modules["D"](made), True, c.gan)
        numbers = {"G": adversarial, "D": judging, "NCE": self.contrast(a, made, mirrored)}
        contrast = numbers["NCE"]
        if kept is not None:
            numbers["NCE_B"] = self.contrast(b, kept, mirrored)
            contrast = (contrast + numbers["NCE_B"]) / 2
        loss = adversarial + c.contrast * contrast
        trainer.backward(loss, "generator", "heads")
        trainer.update("generator", "heads")
        return {"generator": loss, **numbers}

    def _made(self, a: Tensor, b: Tensor, mirrored: bool) -> tuple[Tensor, Tensor | None]:
        """What the generator makes of A, and of B if that is to stay as it is; in one pass."""
        given = torch.cat([a, b]) if self.config.identity else a
        made = self.modules["G"](given.flip(3) if mirrored else given)
        return made[: len(a)], made[len(a) :] if self.config.identity else None

    def contrast(self, source: Tensor, made: Tensor, mirrored: bool = False) -> Tensor:
        """PatchNCE over the places, its mean (equation 4). mirrored: `made` is of the mirrored source."""
        generator, heads, c = cast("ResnetGenerator", self.modules["G"]), self.modules["F"], self.config
        found = features(generator, made, c.places)
        found = [x.flip(3) for x in found] if mirrored else found
        chosen = PatchSampler.choose(found, c.patches)
        queries = heads(found, chosen)
        with torch.no_grad():
            keys = heads(features(generator, source, c.places), chosen)
        return torch.stack([patch_nce(q, k, c.temperature) for q, k in zip(queries, keys, strict=True)]).mean()

    def makers(self) -> dict[str, Generator]:
        return {"b": self.modules["G"]}

    def sample(self) -> dict[str, Any]:
        """A grid of two rows: pictures, and what is made of them."""
        shown = self.shown("a")
        return {"A-B": grid([shown, self.modules["G"](shown)])}

    def export(self, folder: Path) -> None:
        self.write(folder / "a-to-b.safetensors", "G", "a-to-b")


def patch_nce(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """How hard it is to tell for a patch of the result which patch of the source it comes from (equation 3): the cross
    entropy over the patches of its own picture. queries, keys: unit vectors [B, P, C]; no gradient reaches the keys."""
    with torch.autocast(queries.device.type, enabled=False):
        logits = queries @ keys.detach().transpose(1, 2) / temperature  # [B, P, P], its diagonal is right
    right = torch.arange(logits.shape[1], device=logits.device).expand(logits.shape[:2])
    return F.cross_entropy(logits.flatten(0, 1), right.flatten())
