"""`diffusion-unet`: a text-to-image model from nothing, in the latents of a trained autoencoder and under a trained
text encoder, both of which stay as they are (Rombach et al. 2022, sections 3.2 and 3.3).

Diffusers' own `UNet2DConditionModel`; what comes out is a whole folder that `StableDiffusionPipeline.from_pretrained`
loads. Captions are dropped now and then, so that the model can be guided (Ho & Salimans 2022).

Choices made here:
- Latents and text embeddings are worked out once for each picture, one by one, and kept while there is room: they are
  then the same whatever batch a picture is in, and a resumed run repeats itself exactly. So nothing is cropped or
  mirrored.
- Latents are drawn anew each time from what the encoder says of the picture (its mean and deviation).
- v-prediction by default: noise of any strength teaches, and few steps of sampling do.

B: items; C, h: channels and side of the latents; T, D: tokens and width of the text.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from genkit.errors import InputError
from genkit.training.schedules import SCHEDULES, scheduled
from genkit.training.task import Folder, Setup, Task, TaskConfig
from pipelines.stable_diffusion.describing import STATED
from pipelines.stable_diffusion.folders import quiet
from pipelines.stable_diffusion.train import parts
from pipelines.stable_diffusion.train.captioned import Captioned, CaptionedConfig, Pair, in_rows
from pipelines.stable_diffusion.train.diffusion import denoising_loss, drawn_steps

__all__ = ["UNet", "UNetConfig"]

SHOWN = 8
VALIDATED = 100
PLAIN = 32  # the largest side of latents
KEPT = 2 << 30  # bytes of latents and embeddings that are kept


class UNetConfig(CaptionedConfig):
    vae: Folder = Field(description="The autoencoder: a folder of diffusers', as `diffusion-vae` exports it.")
    text: Folder = Field(description="A folder with tokenizer/ and text_encoder/, as `clip` exports it.")
    channels: list[int] = Field(
        [128, 256, 384],
        min_length=1,
        max_length=6,
        description="Channels of each level; each after the first halves the sides.",
    )
    attention: list[bool] = Field(
        [False, True, True], min_length=1, max_length=6, description="Whether a level attends to the text."
    )
    layers: int = Field(1, ge=1, le=4, description="Residual blocks a level.")
    head: int = Field(64, ge=8, le=256, description="Width of an attention head, at least.")
    groups: int = Field(16, ge=1, le=64, description="Groups of the normalisation; divides all channels.")
    prediction: Literal["v_prediction", "epsilon"] = Field("v_prediction", description="What is predicted.")
    min_snr: float | None = Field(5.0, gt=0, le=1e4, description="Gamma of the loss's weights; null: none.")
    caption_dropout: float = Field(0.1, ge=0, le=1, description="Share of captions that are left empty.")
    rate: float = Field(5e-4, gt=0, le=1, description="Highest learning rate of AdamW.")
    decay: float = Field(0.01, ge=0, le=1, description="Weight decay.")
    schedule: Literal[SCHEDULES] = Field("cosine", description="How the rate falls.")  # type: ignore[valid-type]
    warmup: float = Field(0.02, ge=0, le=1, description="Share of the run in which the rate rises.")
    sampling_steps: int = Field(20, ge=1, le=1000, description="Steps of the samples, and the model's default.")
    guidance: float = Field(4.0, ge=0, le=50, description="Guidance of the samples, and the model's default.")


class UNet(Task):
    """See the module's docstring."""

    Config: ClassVar[type[TaskConfig]] = UNetConfig

    def __init__(self, config: UNetConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        from diffusers import DDPMScheduler

        self.data = Captioned(config, setup)
        self.vae, self.text, self.tokenizer = parts.frozen(config.vae, config.text)
        self.beside = parts.beside(config.text)
        self.frozen = {"vae": self.vae, "text": self.text}
        self.scheduler: Any = DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=config.prediction
        )
        self.unet = _build(config, self.vae, self.text)
        # On a CPU fused attention is slow backwards on small maps: a sixth of a step. On large ones it saves memory.
        if setup.device.type == "cpu" and self.unet.config.sample_size <= PLAIN:
            self.unet.set_attn_processor(_plain_attention())
        self.modules = {"unet": self.unet}
        optimizer = torch.optim.AdamW(_groups(self.unet, config.decay), config.rate, betas=(0.9, 0.99))
        self.optimizers = {"unet": optimizer}
        self.schedules = {"unet": scheduled(optimizer, config.schedule, setup.steps, config.warmup)}
        self.kept = _Kept(KEPT)
        setup.say(f"{sum(p.numel() for p in self.unet.parameters()) / 1e6:.2f} M parameters to train")

    def dataset(self) -> Captioned:
        return self.data

    # Latents and embeddings.

    def latents(self, pair: Pair, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of one picture's latents, [C, h, h] each; picture: [3, S, S] in -1..1."""
        mean, std = self.kept.of(("latents", pair.path), lambda: self._encode(picture))
        return mean, std

    @torch.no_grad()
    def _encode(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.setup.device.type, enabled=False):
            found = self.vae.encode(picture[None].float()).latent_dist
        scale = self.vae.config.scaling_factor
        return found.mean[0] * scale, found.std[0] * scale

    def embedding(self, caption: str) -> Tensor:
        """What the text encoder makes of one caption, [T, D]."""
        return self.kept.of(("text", caption), lambda: (self._read(caption),))[0]

    @torch.no_grad()
    def _read(self, caption: str) -> Tensor:
        length = self.tokenizer.model_max_length
        ids = self.tokenizer(caption, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        with torch.autocast(self.setup.device.type, enabled=False):
            return self.text(ids.input_ids.to(self.setup.device))[0][0]

    def _drawn(self, pictures: Tensor, pairs: list[Pair]) -> Tensor:
        """Latents [B, C, h, h] drawn from what the encoder says of each picture."""
        found = [self.latents(pair, picture) for pair, picture in zip(pairs, pictures, strict=True)]
        mean, std = (torch.stack(part) for part in zip(*found, strict=True))
        return mean + std * torch.randn_like(mean)

    # Training.

    def step(self, batch: dict[str, Tensor], trainer: Any) -> dict[str, Tensor]:
        pairs = [self.data.pairs[i] for i in batch["index"].tolist()]
        z = self._drawn(batch["picture"], pairs)
        dropped = torch.rand(len(pairs)) < self.config.caption_dropout
        captions = ["" if d else pair.caption for pair, d in zip(pairs, dropped.tolist(), strict=True)]
        loss = self._loss(z, captions)
        trainer.backward(loss)
        trainer.update()
        return {"loss": loss}

    def _loss(self, z: Tensor, captions: list[str]) -> Tensor:
        context = torch.stack([self.embedding(caption) for caption in captions])  # [B, T, D]
        t = drawn_steps(len(z), self.scheduler.config.num_train_timesteps, z.device)
        return denoising_loss(
            lambda x, t: self.unet(x, t, encoder_hidden_states=context).sample,
            self.scheduler,
            z,
            torch.randn_like(z),
            t,
            self.config.min_snr,
        )

    def validate(self) -> dict[str, float]:
        """The loss on pictures that are held out, and on as many that are not; the same noise every time."""
        seen = self.data.pairs[:: max(1, len(self.data.pairs) // VALIDATED)][:VALIDATED]
        numbers = {"loss_seen": self._measured(seen)}
        return numbers | ({"loss": self._measured(self.data.held)} if self.data.held else {})

    def _measured(self, pairs: list[Pair]) -> float:
        losses = []
        for start in range(0, len(pairs), 50):
            part = pairs[start : start + 50]
            z = self._drawn(self.data.show(part).to(self.setup.device), part)
            losses += [self._loss(z, [pair.caption for pair in part]) * len(part)]
        return float(torch.stack(losses).sum() / len(pairs))

    def sample(self) -> dict[str, Any]:
        """Pictures above what the model makes of their captions: seen ones, and held-out ones if there are any."""
        some = self.data.pairs[:: max(1, len(self.data.pairs) // SHOWN)][:SHOWN]
        shown = {"seen": self._grid(some)}
        return shown | ({"held-out": self._grid(self.data.held[:SHOWN])} if self.data.held else {})

    def _grid(self, pairs: list[Pair]) -> Tensor:
        made = self.pipeline()(
            [pair.caption for pair in pairs],
            num_inference_steps=self.config.sampling_steps,
            guidance_scale=self.config.guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in range(len(pairs))],
            height=self.config.size,
            width=self.config.size,
            output_type="pt",
        ).images.cpu()
        true = (self.data.show(pairs) + 1) / 2
        return in_rows(true, made).clamp(0, 1)

    def pipeline(self, unet: nn.Module | None = None) -> Any:
        """The whole model, as diffusers has it."""
        from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

        pipe: Any = StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text,
            tokenizer=self.tokenizer,
            unet=unet or self.unet,
            scheduler=DPMSolverMultistepScheduler.from_config(
                self.scheduler.config,
                steps_offset=1,  # diffusers complains of another, though the spacing that follows makes no use of it
                timestep_spacing="trailing",  # begins at pure noise (Lin et al. 2024, section 3.3)
            ),
            safety_checker=None,
            requires_safety_checker=False,
            **self.beside,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def export(self, folder: Path) -> None:
        """A folder of diffusers', in 16 bits."""
        pipe = self.pipeline(copy.deepcopy(self.unet))
        for name in ("vae", "text_encoder", "image_encoder"):
            if getattr(pipe, name, None) is not None:
                setattr(pipe, name, copy.deepcopy(getattr(pipe, name)))
        with quiet():
            pipe.to(dtype=torch.float16).save_pretrained(folder, safe_serialization=True)
        for config in folder.rglob("config.json"):
            parts.tidy(config)
        (folder / STATED).write_text(json.dumps(self._stated(), indent=2) + "\n", "utf-8")

    def _stated(self) -> dict[str, Any]:
        """What the folder says of itself, to genkit; nothing of where anything lay."""
        c, setup = self.config, self.setup
        run = {"task": "diffusion-unet", "steps": setup.steps, "batch_size": setup.batch_size, "seed": setup.seed}
        return {
            "num_inference_steps": c.sampling_steps,
            "guidance_scale": c.guidance,
            "training": run | c.model_dump(mode="json", exclude={"data", "vae", "text"}),
        }


class _Kept:
    """Tensors by key, kept until they take `room` bytes; beyond it they are made anew each time."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.tensors: dict[Any, tuple[Tensor, ...]] = {}

    def of(self, key: Any, make: Any) -> tuple[Tensor, ...]:
        if key in self.tensors:
            return self.tensors[key]
        made = tuple(make())
        size = sum(t.numel() * t.element_size() for t in made)
        if size <= self.room:
            self.room -= size
            self.tensors[key] = made
        return made


def _build(config: UNetConfig, vae: Any, text: Any) -> Any:
    from diffusers import UNet2DConditionModel

    c = config
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    if len(c.channels) != len(c.attention):
        raise InputError(f"channels has {len(c.channels)} levels and attention {len(c.attention)}; give as many")
    if any(width % c.groups for width in c.channels):
        raise InputError(f"groups {c.groups} does not divide channels {c.channels}; choose others")
    if c.size % (factor * 2 ** (len(c.channels) - 1)):
        raise InputError(f"size {c.size} does not fit {len(c.channels)} levels on latents of {c.size // factor}")
    return UNet2DConditionModel(
        sample_size=c.size // factor,
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        block_out_channels=tuple(c.channels),
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in c.attention),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(c.attention)),
        layers_per_block=c.layers,
        cross_attention_dim=text.config.hidden_size,
        attention_head_dim=tuple(_heads(width, c.head) for width in c.channels),  # diffusers' name for their number
        norm_num_groups=c.groups,
        use_linear_projection=True,
    )


def _plain_attention() -> Any:
    from diffusers.models.attention_processor import AttnProcessor

    return AttnProcessor()


def _heads(width: int, head: int) -> int:
    """How many heads of about `head` channels: the most that divide the width evenly and are not narrower."""
    return max(n for n in range(1, max(1, width // head) + 1) if width % n == 0)


def _groups(network: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Matrices and kernels decay; gains and biases do not."""
    parameters = list(network.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
