"""`lora`: low-rank changes to a model's weights, learned from captioned pictures (Hu et al. 2021).

A matrix W [O, I] of the model becomes W + alpha / rank B A with A [rank, I] and B [O, rank], B zero at the beginning
(section 4.1). Only A and B are trained, and only they are in checkpoints and in what comes out:

    pytorch_lora_weights.safetensors    as diffusers' `load_lora_weights` reads it, alpha in its metadata
    kohya.safetensors                   as A1111, ComfyUI and others read it

Choices made here:
- The layers are peft's own, put in by diffusers and transformers, so that what is trained is what they load.
- `caption: a photo of sks dog` gives all pictures one text (DreamBooth's way). `prior` may name pictures of other
  things of the kind, whose loss under `prior_caption` is added, so that the kind is not forgotten (Ruiz et al. 2023,
  section 3.2).
- Texts are read once, unless the text encoders are trained too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import Dataset

from genkit import weights
from genkit.errors import InputError
from genkit.training.data import Draw
from genkit.training.task import Folders, Setup, TaskConfig
from pipelines.stable_diffusion.train.tuning import (
    Latents,
    Templates,
    Text,
    Tuning,
    TuningConfig,
    read_pictures,
)

__all__ = ["LoRA", "LoRAConfig"]

TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
ADAPTER = "default"


class LoRAConfig(TuningConfig):
    caption: Templates = Field(
        ["{text}"],
        min_length=1,
        max_length=100,
        description="Templates of captions, or one text for all: {text}, {folder}.",
    )
    held_out: int = Field(0, ge=0, le=10**6, description="Pictures that are not trained on but measured.")
    rank: int = Field(16, ge=1, le=1024, description="Rank of the changes.")
    alpha: float | None = Field(None, gt=0, le=10**4, description="They count alpha / rank; null: alpha is the rank.")
    targets: list[Text] = Field(
        ["to_q", "to_k", "to_v", "to_out.0"], min_length=1, max_length=100, description="Names of the layers to change."
    )
    text_encoder: bool = Field(False, description="Change the attention of the text encoders too.")
    caption_dropout: float = Field(0.0, ge=0, le=1, description="Share of captions that are left empty.")
    prior: Folders = Field([], description="Pictures of other things of the kind, for DreamBooth.")
    prior_caption: Text | None = Field(None, description="Their caption: a photo of a dog.")
    prior_weight: float = Field(1.0, ge=0, le=100, description="Weight of their loss.")


class LoRA(Tuning):
    """See the module's docstring."""

    Config: ClassVar[type[TaskConfig]] = LoRAConfig

    def __init__(self, config: LoRAConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        if bool(config.prior) != bool(config.prior_caption):
            raise InputError("`prior` and `prior_caption` go together: a folder, and what all of its pictures show")
        self.networks: dict[str, Any] = {"unet": self.pipe.unet}
        if config.text_encoder:
            self.networks |= self.encoders
        self.layers = {name: self._changed(name, network) for name, network in self.networks.items()}
        held = nn.ModuleDict(
            {
                f"{part}_{name.replace('.', '_')}": nn.ModuleDict(
                    {"down": layer.lora_A[ADAPTER], "up": layer.lora_B[ADAPTER]}
                )
                for part, layers in self.layers.items()
                for name, layer in layers.items()
            }
        )
        self._optimise("lora", held)
        self.seen, self.held = read_pictures(self, config.data, config.caption, held_out=config.held_out)
        self.prior = read_pictures(self, config.prior, [config.prior_caption])[0] if config.prior_caption else None
        count = sum(p.numel() for p in held.parameters())
        setup.say(f"{count / 1e6:.2f} M parameters to train in {len(held)} layers")

    def _changed(self, part: str, network: Any) -> dict[str, Any]:
        """Puts layers into a network; them by name. Raises InputError for names and ranks that do not fit."""
        from peft import LoraConfig
        from peft.tuners.lora import LoraLayer

        config = self.config
        targets = config.targets if part == "unet" else list(TEXT_TARGETS)
        for target in targets:
            _check_target(network, part, target, config.rank)
        alpha: Any = self.alpha  # peft says int, and counts with any number
        network.add_adapter(LoraConfig(r=config.rank, lora_alpha=alpha, target_modules=targets), adapter_name=ADAPTER)
        return {name: layer for name, layer in network.named_modules() if isinstance(layer, LoraLayer)}

    @property
    def alpha(self) -> float:
        return self.config.alpha or self.config.rank

    def dataset(self) -> Any:
        return _Beside(self.seen, self.prior) if self.prior else self.seen

    def step(self, batch: dict[str, Any], trainer: Any) -> dict[str, Tensor]:
        kept = not self.config.text_encoder
        dropped = (torch.rand(len(batch["text"])) < self.config.caption_dropout).tolist()
        texts = ["" if drop else text for text, drop in zip(self.seen.said(batch["text"]), dropped, strict=True)]
        loss = own = self._loss(batch, texts, kept=kept)
        numbers = {"own": own}
        if self.prior:
            numbers["prior"] = self._loss(batch["prior"], self.prior.said(batch["prior"]["text"]), kept=kept)
            loss = own + self.config.prior_weight * numbers["prior"]
        trainer.backward(loss)
        trainer.update()
        return {"loss": loss, **(numbers if self.prior else {})}

    def validate(self) -> dict[str, float]:
        """The loss on pictures that are held out, or on those that are trained on where none are."""
        return {"loss": self._measured(self.held or self.seen, kept=not self.config.text_encoder)}

    def export(self, folder: Path) -> None:
        about = {"format": "pt", "lora_adapter_metadata": json.dumps(dict(self._settings()), indent=2, sort_keys=True)}
        weights.write(folder / "pytorch_lora_weights.safetensors", dict(self._diffusers()), about)
        dim, alpha = str(self.config.rank), str(float(self.alpha))
        about = {"ss_network_module": "networks.lora", "ss_network_dim": dim, "ss_network_alpha": alpha}
        weights.write(folder / "kohya.safetensors", dict(self._kohya()), about)

    def _diffusers(self) -> Iterator[tuple[str, Tensor]]:
        from diffusers.utils import convert_state_dict_to_diffusers

        for part, layers in self.layers.items():
            matrices = {
                f"{_published(part, name)}.lora_{letter}.weight": matrix[ADAPTER].weight
                for name, layer in layers.items()
                for letter, matrix in (("A", layer.lora_A), ("B", layer.lora_B))
            }
            # Of a U-Net it renames attention alone, and a file of two kinds of names is read by halves.
            for key, value in (matrices if part == "unet" else convert_state_dict_to_diffusers(matrices)).items():
                yield f"{part}.{key}", value

    def _settings(self) -> Iterator[tuple[str, Any]]:
        """What diffusers makes the same layers from, alpha among it."""
        for part, network in self.networks.items():
            for key, value in network.peft_config[ADAPTER].to_dict().items():
                yield f"{part}.{key}", sorted(value) if isinstance(value, set) else value

    def _kohya(self) -> Iterator[tuple[str, Tensor]]:
        encoders = {"text_encoder": "te1" if len(self.encoders) > 1 else "te", "text_encoder_2": "te2"}
        for part, layers in self.layers.items():
            for name, layer in layers.items():
                key = f"lora_{encoders.get(part, part)}_{_published(part, name).replace('.', '_')}"
                yield f"{key}.lora_down.weight", layer.lora_A[ADAPTER].weight
                yield f"{key}.lora_up.weight", layer.lora_B[ADAPTER].weight
                yield f"{key}.alpha", torch.tensor(float(self.alpha))


class _Beside(Dataset[dict[str, Any]]):
    """Each picture with one of another set, drawn anew every epoch."""

    def __init__(self, own: Latents, other: Latents) -> None:
        self.own, self.other = own, other

    def __len__(self) -> int:
        return len(self.own)

    def __getitem__(self, draw: int) -> dict[str, Any]:
        draw = draw if isinstance(draw, Draw) else Draw(draw)
        index = int(torch.randint(len(self.other), (), generator=draw.generator("prior")))
        return {**self.own[draw], "prior": self.other[Draw(index, draw.epoch, draw.seed)]}


def _check_target(network: nn.Module, part: str, target: str, rank: int) -> None:
    found = [m for name, m in network.named_modules() if name == target or name.endswith(f".{target}")]
    if not found:
        raise InputError(f"targets: no layer of the {part} is called {target!r}; known are to_q, to_k, to_v, to_out.0")
    for layer in found:
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            raise InputError(f"targets: {target!r} is a {type(layer).__name__}; name linear layers or convolutions")
        most = min(layer.weight.shape[0], layer.weight[0].numel())
        if rank > most:
            raise InputError(f"rank {rank} is more than {target!r} of the {part} has, {most}; give a lower one")


def _published(part: str, name: str) -> str:
    """A layer's name as files have it: below `text_model`, which newer encoders leave out."""
    return name if part == "unet" or name.startswith("text_model.") else f"text_model.{name}"
