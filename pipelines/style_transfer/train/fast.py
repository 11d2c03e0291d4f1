"""`style-fast`: one style into a transformation network (Johnson et al. 2016).

The network learns to do in one pass what `method: optimize` does in hundreds of steps: the same losses, on the features
of any of the feature networks, averaged over crops of a folder of pictures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from genkit import weights
from genkit.fields import ImageFile, ModelFile
from genkit.training.data import fit, open_image
from genkit.training.task import Folder, Folders, Setup, Task, TaskConfig
from pipelines.style_transfer.loading import feature_network
from pipelines.style_transfer.losses import STYLE_LOSSES, moments, mse, total_variation
from pipelines.style_transfer.models import MODELS
from pipelines.style_transfer.networks.transformer import TransformerNet
from pipelines.style_transfer.objective import normalised
from pipelines.style_transfer.train.pictures import Crops, Variety, whole_pictures

__all__ = ["StyleFast"]


class FastConfig(TaskConfig):
    data: Folders = Field(description="Folders of pictures to learn on; several take equal turns.")
    style: ImageFile = Field(description="The style picture.")
    valid: Folder | None = Field(
        None, description="Folder of pictures for validation and samples, none of them in `data`."
    )
    features: Literal["small", "squeezenet1_0", "vgg16", "vgg19"] = Field(
        "small", description="Feature network of the losses."
    )
    features_weights: ModelFile | None = Field(None, description="Its weights in a file of one's own.")
    width: int = Field(32, ge=4, le=128, description="Channels of the network's first layer; 32 as published.")
    size: int = Field(256, ge=64, le=1024, description="Side of the crops, px.")
    style_size: int = Field(
        256, ge=64, le=2048, description="Shorter side of the style picture, px: the scale of its strokes."
    )
    style_loss: Literal["wasserstein", "gram"] = Field("wasserstein", description="What style is.")
    content_weight: float = Field(0.05, ge=0, le=1e6, description="Weight of the content loss; the style's is 1.")
    tv_weight: float = Field(1.0, ge=0, le=1e6, description="Weight of the total variation.")
    drawn: float = Field(0.1, ge=0, le=1, description="Share of pictures drawn by rule (dead leaves).")
    rate: float = Field(1e-3, gt=0, le=1, description="Learning rate; falls to zero along a cosine.")


class StyleFast(Task):
    """Training of a transformation network; see the module's docstring."""

    Config: ClassVar[type[TaskConfig]] = FastConfig
    best = ("loss", "min")

    def __init__(self, config: FastConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        network = TransformerNet(config.width).to(memory_format=torch.channels_last)
        eyes = feature_network(config.features, MODELS, path=config.features_weights, dense=False)
        self.modules = {"transformer": network}
        self.frozen = {"features": eyes.to(memory_format=torch.channels_last)}
        optimizer = torch.optim.Adam(network.parameters(), config.rate)
        self.optimizers = {"transformer": optimizer}
        self.schedules = {"transformer": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, setup.steps)}
        self.content_taps = normalised(eyes.defaults.content)
        self.style_taps = normalised(eyes.defaults.style)
        self.taps = list(dict.fromkeys([*self.style_taps, *self.content_taps]))
        style = fit(open_image(Path(config.style)), config.style_size)[None].float() / 255
        with torch.no_grad():
            seen = eyes(style, list(self.style_taps))
        loss = STYLE_LOSSES[config.style_loss]
        self.targets = {name: loss(moments(f)).to(setup.device) for name, f in seen.items()}
        self.pictures = whole_pictures(config.valid, setup) if config.valid else []

    def dataset(self) -> Crops:
        variety = Variety(scale=(0.4, 1.0), colour=0.3, drawn=self.config.drawn, flattest=0.02)
        return Crops(self.config.data, self.config.size, variety, self.setup)

    def losses(self, batch: Tensor) -> dict[str, Tensor]:
        """The loss and its terms for pictures [B, 3, H, W] in 0..1."""
        made = cast("TransformerNet", self.modules["transformer"]).raw(batch)
        with torch.no_grad():
            kept = self.frozen["features"](batch, list(self.content_taps))
        found = self.frozen["features"](made, self.taps)
        style = torch.stack([w * self.targets[n](moments(found[n])) for n, w in self.style_taps.items()]).sum()
        content = torch.stack([w * mse(found[n], kept[n]) for n, w in self.content_taps.items()]).sum()
        # The picture is clamped in the end: stay where that does nothing.
        outside = (made - made.clamp(0, 1)).square().mean()
        c = self.config
        loss = style + c.content_weight * content + c.tv_weight * total_variation(made) + 10 * outside
        return {"loss": loss, "style": style, "content": content}

    def step(self, batch: Tensor, trainer: Any) -> dict[str, Tensor]:
        numbers = self.losses(batch.contiguous(memory_format=torch.channels_last))
        trainer.backward(numbers["loss"], "transformer")
        trainer.update("transformer")
        return numbers

    def validate(self) -> dict[str, float]:
        rows = [self.losses(picture.to(self.setup.device)) for picture in self.pictures]
        return {key: sum(float(row[key]) for row in rows) / len(rows) for key in rows[0]} if rows else {}

    def sample(self) -> dict[str, Any]:
        network = self.modules["transformer"]
        return {f"picture-{i}": network(p.to(self.setup.device))[0] for i, p in enumerate(self.pictures[:4])}

    def export(self, folder: Path) -> None:
        tensors = {key: value.half().contiguous() for key, value in self.modules["transformer"].state_dict().items()}
        about = {"architecture": "genkit.style-transfer.fast", "style": Path(self.config.style).stem}
        weights.write(folder / "fast.safetensors", tensors, about)
