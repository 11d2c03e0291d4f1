"""`style-adain`: the decoder that lets AdaIN take on any style in one pass (Huang & Belongie 2017).

The encoder is a normalised VGG and stays as it is. Losses of the paper, equations 11 to 13: the content loss compares
with the AdaIN output itself, the style loss compares means and standard deviations at four taps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from genkit import weights
from genkit.fields import ModelFile
from genkit.training.data import Draw, ImageFolder
from genkit.training.task import Folder, Folders, Setup, Task, TaskConfig
from pipelines.style_transfer.loading import encoder_from
from pipelines.style_transfer.networks.adain import Decoder, adain, statistics

__all__ = ["StyleAdaIN"]


class AdaINConfig(TaskConfig):
    content: Folders = Field(description="Folders of photographs (MS-COCO in the paper).")
    style: Folders = Field(description="Folders of paintings (WikiArt in the paper).")
    valid: Folder | None = Field(None, description="Folder of pictures to show samples of.")
    encoder: ModelFile = Field(description="The normalised VGG: vgg_normalised.pth of pytorch-AdaIN.")
    size: int = Field(256, ge=32, le=1024, multiple_of=8, description="Side of the crops, px.")
    load_size: int = Field(
        512, ge=32, le=2048, description="Shorter side that pictures are brought to before cropping, px."
    )
    style_weight: float = Field(10.0, ge=0, le=1e6, description="Weight of the style loss beside the content loss.")
    rate: float = Field(1e-4, gt=0, le=1, description="Learning rate at the start.")
    decay: float = Field(5e-5, ge=0, le=1, description="The rate after i steps is rate / (1 + decay * i).")


class Pairs(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """A photograph and a painting each; the painting is drawn from the item's own generator."""

    def __init__(self, content: ImageFolder, style: ImageFolder) -> None:
        self.content, self.style = content, style

    def __len__(self) -> int:
        return len(self.content)

    def __getitem__(self, draw: int) -> tuple[Tensor, Tensor]:
        draw = draw if isinstance(draw, Draw) else Draw(draw)
        other = int(torch.randint(len(self.style), (), generator=draw.generator("style")))
        return self.content[draw], self.style[Draw(other, draw.epoch, draw.seed + 1)]


class StyleAdaIN(Task):
    """Training of the decoder; see the module's docstring."""

    Config: ClassVar[type[TaskConfig]] = AdaINConfig

    def __init__(self, config: AdaINConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        encoder = encoder_from(Path(config.encoder)).eval().requires_grad_(False)
        decoder = Decoder(encoder.widths)
        self.frozen, self.modules = {"encoder": encoder}, {"decoder": decoder}
        optimizer = torch.optim.Adam(decoder.parameters(), config.rate)
        self.optimizers = {"decoder": optimizer}
        self.schedules = {"decoder": torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 / (1 + config.decay * i))}
        self.pictures = (
            ImageFolder(config.valid, size=config.size, crop="center", setup=setup) if config.valid else None
        )

    def dataset(self) -> Pairs:
        c = self.config
        sides = {"size": c.size, "load_size": c.load_size, "setup": self.setup}
        return Pairs(ImageFolder(c.content, **sides), ImageFolder(c.style, **sides))

    def step(self, batch: tuple[Tensor, Tensor], trainer: Any) -> dict[str, Tensor]:
        content, style = batch
        encode = self.frozen["encoder"]
        with torch.no_grad():
            wanted = encode(style)
            target = adain(encode(content)[-1], [(wanted[-1], 1.0)])
        found = encode(self.modules["decoder"](target))
        content_loss = F.mse_loss(found[-1], target)
        style_loss = torch.stack([_statistics_loss(a, b) for a, b in zip(found, wanted, strict=True)]).sum()
        loss = content_loss + self.config.style_weight * style_loss
        trainer.backward(loss, "decoder")
        trainer.update("decoder")
        return {"loss": loss, "content": content_loss, "style": style_loss}

    def sample(self) -> dict[str, Any]:
        if self.pictures is None:
            return {}
        encode = self.frozen["encoder"]
        shown = [self.pictures[i][None].to(self.setup.device) for i in range(min(4, len(self.pictures)))]
        style = encode(shown[-1])[-1]
        return {
            f"picture-{i}": self.modules["decoder"](adain(encode(p)[-1], [(style, 1.0)]))[0].clamp(0, 1)
            for i, p in enumerate(shown)
        }

    def export(self, folder: Path) -> None:
        parts = {"encoder": self.frozen["encoder"], "decoder": self.modules["decoder"]}
        tensors = {
            f"{part}.{key.removeprefix('net.')}": value.half().contiguous()
            for part, network in parts.items()
            for key, value in network.state_dict().items()
        }
        weights.write(folder / "adain.safetensors", tensors, {"architecture": "genkit.style-transfer.adain"})


def _statistics_loss(found: Tensor, wanted: Tensor) -> Tensor:
    (mean, std), (mean_w, std_w) = statistics(found), statistics(wanted)
    return F.mse_loss(mean, mean_w) + F.mse_loss(std, std_w)
