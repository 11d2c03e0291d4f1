"""What LoRA and textual inversion share: a model that stays as it is, the pictures that something beside it learns
from, the loss, and samples.

Choices made here:
- The model's own weights are in no checkpoint, as nothing changes them: a task's `modules` hold only what is trained,
  and share those parameters with the model they were put into.
- What the autoencoder says of a picture, and of its mirror image where `flip` asks for it, is worked out once, one by
  one, before the training begins. So pictures are cut out of the middle, and the decoder is not needed until a sample.
- A caption is one of some templates, drawn anew each time. A template without {text} needs no metadata.jsonl: one text
  for all pictures of a folder is DreamBooth's way (Ruiz et al. 2023).
- The loss is that of training from nothing, under whatever the model predicts; see diffusion.py. Models that match
  flows (SD 3, Flux) are refused.

B: items; C, h: channels and side of the latents; S: side of the pictures in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor
from torch.utils.data import Dataset

from genkit.errors import DeviceError, InputError, ModelError
from genkit.runtime import Runtime
from genkit.training.data import IMAGE_SUFFIXES, Draw, ImageFolder, list_files
from genkit.training.schedules import SCHEDULES, scheduled
from genkit.training.task import Folders, Setup, Task, TaskConfig
from pipelines.stable_diffusion.train.captioned import (
    CaptionedConfig,
    Pair,
    filled,
    find_pairs,
    held_pairs,
    in_rows,
    picture,
)
from pipelines.stable_diffusion.train.diffusion import denoising_loss, drawn_steps

__all__ = ["Latents", "Templates", "Text", "Tuning", "TuningConfig"]

ENCODERS = ("text_encoder", "text_encoder_2")
SHOWN = 4
MEASURED = 64  # items a validation looks at: fewer pictures are looked at several times, each time at another step

Text = Annotated[str, Field(min_length=1, max_length=1000)]
Templates = Annotated[list[Text], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]


class TuningConfig(TaskConfig):
    """What the trainings that begin from a whole model share."""

    model: Text = Field("emoji", description="What to begin from: an alias, a hub id, a folder or a .safetensors file.")
    data: Folders = Field(description="Folders of pictures.")
    size: int | None = Field(None, ge=16, le=4096, description="Side of the pictures, px; null: the model's own.")
    flip: bool = Field(False, description="Mirror half of the pictures.")
    rate: float = Field(1e-4, gt=0, le=1, description="Highest learning rate of AdamW.")
    decay: float = Field(0.0, ge=0, le=1, description="Weight decay.")
    schedule: Literal[SCHEDULES] = Field("cosine", description="How the rate falls.")  # type: ignore[valid-type]
    warmup: float = Field(0.05, ge=0, le=1, description="Share of the run in which the rate rises.")
    min_snr: float | None = Field(5.0, gt=0, le=1e4, description="Gamma of the loss's weights; null: none.")
    weights: Literal["float32", "bfloat16"] = Field(
        "float32", description="What the model's own weights are held in; what is trained is float32."
    )
    recompute: bool = Field(False, description="Work activations out twice instead of keeping them: slower, smaller.")
    prompts: list[Text] = Field([], max_length=16, description="Prompts of the samples; none: the first captions.")
    sampling_steps: int | None = Field(None, ge=1, le=1000, description="Steps of the samples; null: the model's own.")
    guidance: float | None = Field(None, ge=0, le=50, description="Guidance of the samples; null: the model's own.")


class Tuning(Task):
    """A model, and pictures as it sees them. A subclass puts what it trains into `pipe`, and calls `_optimise`."""

    Config: ClassVar[type[TaskConfig]] = TuningConfig
    best = ("loss", "min")

    def __init__(self, config: Any, setup: Setup) -> None:
        super().__init__(config, setup)
        from diffusers import DDPMScheduler

        self.model = opened(config.model, Runtime.pick(device=setup.device, dtype=config.weights))
        self.pipe = self.model.pipe
        if config.recompute:
            self.pipe.unet.enable_gradient_checkpointing()
        self.encoders = {name: getattr(self.pipe, name) for name in ENCODERS if getattr(self.pipe, name, None)}
        self.scheduler = DDPMScheduler.from_config(self.pipe.scheduler.config)
        self.size = config.size or self.model.defaults.width
        if self.size % self.model.multiple:
            raise InputError(f"size {self.size} is no multiple of {self.model.multiple}, which this model needs")
        self._embeddings: dict[str, tuple[Tensor, ...]] = {}
        self.seen: Latents
        self.held: Latents | None = None

    def _optimise(self, name: str, module: torch.nn.Module) -> None:
        """What is trained, in float32, and how."""
        config = self.config
        self.modules = {name: module.float()}
        optimizer = torch.optim.AdamW(module.parameters(), config.rate, weight_decay=config.decay)
        self.optimizers = {name: optimizer}
        self.schedules = {name: scheduled(optimizer, config.schedule, self.setup.steps, config.warmup)}

    # Text.

    def conditions(self, texts: Sequence[str], *, kept: bool) -> dict[str, Any]:
        """What the U-Net takes of some texts. kept: as worked out once, one by one, without gradients."""
        if kept:
            parts = [self._embedding(text) for text in texts]
            found = tuple(torch.cat(part) for part in zip(*parts, strict=True))
        else:
            found = self._read(list(texts))
        more: dict[str, Any] = {"encoder_hidden_states": found[0]}  # [B, T, D]
        if len(found) > 1:  # SDXL: the whole text as one vector [B, P]; sizes and the corner of the cut
            times = torch.tensor([[self.size, self.size, 0, 0, self.size, self.size]]).repeat(len(texts), 1)
            more["added_cond_kwargs"] = {"text_embeds": found[1], "time_ids": times.to(found[1])}
        return more

    def _read(self, texts: list[str]) -> tuple[Tensor, ...]:
        found = self.pipe.encode_prompt(
            texts, device=self.setup.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return tuple(part for part in found if part is not None)

    @torch.no_grad()
    def _embedding(self, text: str) -> tuple[Tensor, ...]:
        if text not in self._embeddings:
            with torch.autocast(self.setup.device.type, enabled=False):
                self._embeddings[text] = self._read([text])
        return self._embeddings[text]

    # Loss, numbers, pictures.

    def _loss(self, batch: dict[str, Tensor], texts: Sequence[str], *, kept: bool) -> Tensor:
        """batch: "mean" and "std" of latents, [B, C, h, h] each."""
        z = batch["mean"] + batch["std"] * torch.randn_like(batch["mean"])
        unet, conditions = self.pipe.unet, self.conditions(texts, kept=kept)
        return denoising_loss(
            lambda x, t: unet(x.to(unet.dtype), t, **conditions).sample,
            self.scheduler,
            z,
            torch.randn_like(z),
            drawn_steps(len(z), self.scheduler.config.num_train_timesteps, z.device),
            self.config.min_snr,
        )

    def _measured(self, latents: Latents, *, kept: bool) -> float:
        """The loss on some pictures; the trainer sees to it that noise and steps are the same every time."""
        numbers = [i % len(latents) for i in range(MEASURED)] if len(latents) < MEASURED else list(range(len(latents)))
        losses = []
        for part in (numbers[start : start + 8] for start in range(0, len(numbers), 8)):
            batch = torch.utils.data.default_collate([latents[number] for number in part])
            batch = {key: value.to(self.setup.device) for key, value in batch.items()}
            texts = [latents.texts[number][0] for number in part]
            losses.append(self._loss(batch, texts, kept=kept) * len(part))
        return float(torch.stack(losses).sum() / len(numbers))

    def sample(self) -> dict[str, Any]:
        """What the model makes of the prompts, or of the first captions, below their pictures."""
        if self.config.prompts:
            return {"prompts": self._grid(self.config.prompts, None)}
        latents = self.held or self.seen
        return {"captions": self._grid([texts[0] for texts in latents.texts[:SHOWN]], latents.shown(SHOWN))}

    def _grid(self, prompts: Sequence[str], above: Tensor | None) -> Tensor:
        """What the model makes of some prompts, side by side, below some pictures [B, 3, S, S] in -1..1."""
        defaults, config = self.model.defaults, self.config
        guidance = defaults.guidance_scale if config.guidance is None else config.guidance
        made = self.pipe(
            list(prompts),
            num_inference_steps=config.sampling_steps or defaults.num_inference_steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in range(len(prompts))],
            height=self.size,
            width=self.size,
            output_type="pt",
        ).images.cpu()
        rows = [made.float()] if above is None else [(above + 1) / 2, made.float()]
        return in_rows(*rows).clamp(0, 1)


class Latents(Dataset[dict[str, Tensor]]):
    """Pictures as a model's autoencoder sees them; indexed by a `Draw` it gives {"mean", "std": [C, h, h], "text": the
    number of a text of `sentences`}."""

    def __init__(self, task: Tuning, images: ImageFolder, pairs: Sequence[Pair], texts: Sequence[list[str]]) -> None:
        self.images, self.pairs, self.texts = images, list(pairs), list(texts)
        self.sentences = list(dict.fromkeys(text for some in texts for text in some))
        numbers = {text: number for number, text in enumerate(self.sentences)}
        self.choices = [[numbers[text] for text in some] for some in texts]
        self.items = [list(_encoded(task, picture(images, pair.path))) for pair in pairs]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, draw: int) -> dict[str, Tensor]:
        draw = draw if isinstance(draw, Draw) else Draw(draw)
        a, b = torch.rand(2, generator=draw.generator()).tolist()
        views, choices = self.items[draw], self.choices[draw]
        mean, std = views[int(a * len(views))]
        return {"mean": mean, "std": std, "text": torch.tensor(choices[int(b * len(choices))])}

    def said(self, numbers: Tensor) -> list[str]:
        """The texts of a batch."""
        return [self.sentences[number] for number in numbers.tolist()]

    def shown(self, count: int) -> Tensor:
        """The first pictures as they are, [B, 3, S, S] in -1..1."""
        return torch.stack([picture(self.images, pair.path) for pair in self.pairs[:count]])


@torch.no_grad()
def _encoded(task: Tuning, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Mean and deviation of the latents of a picture [3, S, S] in -1..1, and of its mirror image if `flip`."""
    vae = task.pipe.vae
    for view in (x, x.flip(2)) if task.config.flip else (x,):
        found = vae.encode(view[None].to(task.setup.device, vae.dtype)).latent_dist
        scale, shift = vae.config.scaling_factor, vae.config.shift_factor or 0.0
        yield ((found.mean[0].float() - shift) * scale).cpu(), (found.std[0].float() * scale).cpu()


def read_pictures(
    task: Tuning, folders: Folders, templates: Sequence[str], *, held_out: int = 0
) -> tuple[Latents, Latents | None]:
    """The pictures of some folders as latents with their captions, and those that are held out, if any.

    Raises InputError or MediaError where there is nothing to learn from."""
    setup = task.setup
    if any("{text}" in template for template in templates):
        pairs = find_pairs(CaptionedConfig(data=folders), setup)
    else:
        pairs = [Pair(path, "", "", path.parent.name) for path in list_files(folders, IMAGE_SUFFIXES)]
    images = ImageFolder(folders, size=task.size, crop="center", flip=False, value_range=(-1.0, 1.0), setup=setup)
    good = set(images.paths)
    pairs = [pair for pair in pairs if pair.path in good]
    held = held_pairs(pairs, held_out)
    without = {pair.path for pair in held}
    seen = [pair for pair in pairs if pair.path not in without]
    if not seen:
        raise InputError(f"{folders[0]}: all {len(pairs)} pictures are held out; lower held_out")
    setup.say(f"{len(seen)} pictures to learn from" + (f", {len(held)} held out" if held else ""))

    def latents(of: list[Pair]) -> Latents:
        texts = [[filled(template, pair.text, pair.folder) for template in templates] for pair in of]
        _tell_of_long_ones(task, texts)
        return Latents(task, images, of, texts)

    return latents(seen), latents(held) if held else None


def _tell_of_long_ones(task: Tuning, texts: Sequence[list[str]]) -> None:
    """Says how many captions the encoder will not see the end of."""
    tokenizer = task.pipe.tokenizer
    sentences = sorted({text for some in texts for text in some})
    long = [text for text in sentences if len(tokenizer(text).input_ids) > tokenizer.model_max_length]
    if long:
        most = tokenizer.model_max_length
        task.setup.say(f"{len(long)} caption(s) are longer than {most} tokens and are cut, as {long[0][:60]!r}")


def opened(ref: str, runtime: Runtime) -> Any:
    """The model to begin from, all of it frozen. Raises ModelError; DeviceError where it does not fit whole."""
    from pipelines.stable_diffusion.loading import load_model

    model = load_model(ref, runtime)
    if not hasattr(model.pipe, "unet"):
        raise ModelError(f"{ref} is of a family that cannot be tuned here; take a Stable Diffusion 1, 2 or XL")
    if model.kind != "text":
        raise ModelError(f"{ref} is a model for {model.kind}; tune the text-to-image model that it comes from")
    for part in model.pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
            if any(p.device.type != runtime.device.type for p in part.parameters()):
                raise DeviceError(f"{ref} does not fit whole into the memory of {runtime.device}; try weights=bfloat16")
    return model
