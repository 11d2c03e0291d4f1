"""`style-features`: distils the feature network `small` from SqueezeNet 1.0.

The student predicts the teacher's activations at five taps, position by position, and their Gram matrices. Both terms
are relative, 0 for a perfect copy and 1 for a student that predicts the mean (or nothing).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from genkit import weights
from genkit.fields import ModelFile
from genkit.training.task import Folder, Folders, Setup, Task, TaskConfig
from pipelines.style_transfer.loading import feature_network
from pipelines.style_transfer.losses import Gram, moments
from pipelines.style_transfer.models import MODELS
from pipelines.style_transfer.networks.features import Small
from pipelines.style_transfer.train.pictures import Crops, Variety, whole_pictures

__all__ = ["StyleFeatures", "agreement"]

TAPS = list(Small.HEADS)


class FeaturesConfig(TaskConfig):
    data: Folders = Field(description="Folders of pictures to learn from; several take equal turns.")
    valid: Folder | None = Field(None, description="Folder of pictures for validation, none of them in `data`.")
    teacher: ModelFile | None = Field(None, description="SqueezeNet 1.0 weights (default: torchvision's, fetched).")
    width: int = Field(32, ge=4, le=128, description="Channels behind the student's first convolution.")
    size: int = Field(128, ge=32, le=512, multiple_of=16, description="Side of the crops, px.")
    drawn: float = Field(0.25, ge=0, le=1, description="Share of pictures drawn by rule (dead leaves).")
    rate: float = Field(3e-3, gt=0, le=1, description="Peak learning rate of the one-cycle schedule.")
    gram_weight: float = Field(0.3, ge=0, le=100, description="Weight of the Gram term beside the feature term.")


class StyleFeatures(Task):
    """Distillation of `small`; see the module's docstring."""

    Config: ClassVar[type[TaskConfig]] = FeaturesConfig
    best = ("feature_error", "min")

    def __init__(self, config: FeaturesConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        teacher = feature_network("squeezenet1_0", MODELS, path=config.teacher, pooling="max", dense=False)
        student = initialised(Small(config.width))
        self.frozen = {"teacher": teacher.to(memory_format=torch.channels_last)}
        self.modules = {"student": student.to(memory_format=torch.channels_last)}
        optimizer = torch.optim.Adam(student.parameters(), config.rate, betas=(0.9, 0.99))
        self.optimizers = {"student": optimizer}
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.rate, total_steps=setup.steps + 1, pct_start=0.05)
        self.schedules = {"student": cycle}
        self.pictures = whole_pictures(config.valid, setup) if config.valid else []

    def dataset(self) -> Crops:
        variety = Variety(scale=(0.25, 1.0), colour=0.6, mixed=0.3, drawn=self.config.drawn)
        return Crops(self.config.data, self.config.size, variety, self.setup)

    def step(self, batch: Tensor, trainer: Any) -> dict[str, Tensor]:
        batch = batch.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            wanted = self.frozen["teacher"](batch, TAPS)
        found = self.modules["student"](batch, TAPS)
        features = torch.stack([feature_error(found[name], wanted[name]) for name in TAPS]).mean()
        grams = torch.stack([Gram(moments(wanted[name]))(moments(found[name])) for name in TAPS]).mean()
        loss = features + self.config.gram_weight * grams
        trainer.backward(loss, "student")
        trainer.update("student")
        return {"loss": loss, "feature_error": features, "gram_error": grams}

    def validate(self) -> dict[str, float]:
        if not self.pictures:
            return {}
        by_tap = agreement(self.modules["student"], self.frozen["teacher"], self.pictures, self.setup.device)
        mean = {key: sum(tap[key] for tap in by_tap.values()) / len(by_tap) for key in ("feature_error", "gram_error")}
        return mean | {f"{name}/{key}": value for name, tap in by_tap.items() for key, value in tap.items()}

    def export(self, folder: Path) -> None:
        tensors = {key: value.half().contiguous() for key, value in self.modules["student"].state_dict().items()}
        weights.write(folder / "small.safetensors", tensors, {"architecture": "genkit.style-transfer.small"})


def feature_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Squared distance relative to the variance of what is wanted, over batch and positions: 1 - R^2."""
    found, wanted = found.float(), wanted.float()
    variance = (wanted - wanted.mean((0, 2, 3), keepdim=True)).square().sum()
    return (found - wanted).square().sum() / variance.clamp_min(1e-12)


@torch.no_grad()
def agreement(
    student: nn.Module, teacher: nn.Module, pictures: list[Tensor], device: torch.device
) -> dict[str, dict[str, float]]:
    """Feature and Gram error of each tap, mean over pictures [1, 3, H, W]."""
    rows = []
    for picture in pictures:
        found, wanted = student(picture.to(device), TAPS), teacher(picture.to(device), TAPS)
        sizes = {
            name: [min(a, b) for a, b in zip(found[name].shape[2:], wanted[name].shape[2:], strict=True)]
            for name in TAPS
        }
        pairs = {name: [f[name][:, :, : sizes[name][0], : sizes[name][1]] for f in (found, wanted)] for name in TAPS}
        rows.append({
            name: {"feature_error": float(feature_error(a, b)), "gram_error": float(Gram(moments(b))(moments(a)))}
            for name, (a, b) in pairs.items()
        })  # fmt: skip
    return {name: {key: sum(row[name][key] for row in rows) / len(rows) for key in rows[0][name]} for name in TAPS}


def initialised(network: nn.Module) -> nn.Module:
    """He initialisation (He et al. 2015, equation 10), biases zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    return network
