"""`diffusion-vae`: the autoencoder whose latents a diffusion model works in (Rombach et al. 2022, section 3.1).

Diffusers' own `AutoencoderKL`, and what comes out is a folder that it loads. The loss is L1, the squared error of
pictures averaged over 8 x 8 px, a perceptual distance if a feature network is named, and a little of the divergence
from a standard normal distribution:

    |x - y| + colours (A x - A y)^2 + perceptual P(x, y) + kl KL(q(z | x) || N(0, 1)) / (3 S S)    y = D(z), z ~ q(z|x)

Choices made here:
- `kl` is the weight beside a *sum* over pixels, as in the published configurations (1e-6 there).
- Whoever reads a folder divides latents by its `scaling_factor` and knows no mean. So on export the latents are brought
  to mean 0 and deviation 1, channel by channel, over the training pictures, by changing the 1x1 convolutions on both
  sides of them: the pictures that come out stay as they were, and `scaling_factor` is 1.
- `begin` goes on from a folder, and `decoder_only` leaves the latents as they are: diffusion models that were trained
  on them still fit.
- `colours`: in a short run edges come right long before hues do (green stays brown), as both L1 and P see edges first
  and L1 is content with the commonest hue. Averages are hues alone, and squares mind those that are far off.
- There is no discriminator: what ships was trained without, and is a little soft for it.

B: pictures; S: side in pixels; C: latent channels; h: side of the latents.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from genkit.errors import InputError, ModelError
from genkit.metrics.features import Features
from genkit.training.schedules import scheduled
from genkit.training.task import Folder, Setup, Task, TaskConfig
from pipelines.stable_diffusion.folders import quiet
from pipelines.stable_diffusion.train.captioned import Captioned, CaptionedConfig, Pair, in_rows
from pipelines.stable_diffusion.train.losses import Perceptual

__all__ = ["VAE", "VAEConfig", "standardise"]

SHOWN = 8
BATCH = 16
BLOCK = 8  # px


class VAEConfig(CaptionedConfig):
    channels: list[int] = Field(
        [32, 64, 128, 128],
        min_length=1,
        max_length=6,
        description="Channels of each level; each after the first halves the sides.",
    )
    layers: int = Field(1, ge=1, le=4, description="Residual blocks a level.")
    latent_channels: int = Field(4, ge=1, le=64, description="Channels of the latents.")
    groups: int = Field(8, ge=1, le=64, description="Groups of the normalisation; divides all channels.")
    kl: float = Field(1e-6, ge=0, le=1, description="Weight of the divergence; see the training's docstring.")
    perceptual: float = Field(0.0, ge=0, le=100, description="Weight of the perceptual distance; needs `features`.")
    colours: float = Field(0.0, ge=0, le=100, description="Weight of the squared error of averages over 8 x 8 px.")
    features: str | None = Field(None, description="Its network: torchvision:squeezenet1_0 or a file.")
    rate: float = Field(5e-4, gt=0, le=1, description="Highest learning rate of AdamW.")
    warmup: float = Field(0.02, ge=0, le=1, description="Share of the run in which the rate rises.")
    load_size: int | None = Field(None, ge=16, le=4096, description="Side brought to before a random crop; null: none.")
    flip: bool = Field(True, description="Mirror half of the pictures.")
    begin: Folder | None = Field(None, description="A folder of an autoencoder to go on from.")
    decoder_only: bool = Field(False, description="Leave the latents of `begin` as they are.")


class VAE(Task):
    """See the module's docstring."""

    Config: ClassVar[type[TaskConfig]] = VAEConfig
    best = ("l1", "min")

    def __init__(self, config: VAEConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        if config.perceptual and not config.features:
            raise InputError("`perceptual` needs `features`: torchvision:squeezenet1_0 or a file")
        if config.decoder_only and not config.begin:
            raise InputError("`decoder_only` needs `begin`, the folder of the autoencoder whose decoder is trained")
        self.data = Captioned(config, setup, load_size=config.load_size, flip=config.flip, crop="random")
        self.vae = _begin(config.begin) if config.begin else _build(config)
        if config.decoder_only:
            for part in (self.vae.encoder, self.vae.quant_conv):
                part.requires_grad_(False)
        self.modules = {"vae": self.vae}
        if config.perceptual and config.features:
            self.frozen = {"perceptual": Perceptual(Features.load(config.features))}
        trained = [p for p in self.vae.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, config.rate, betas=(0.9, 0.99), weight_decay=0.0)
        self.optimizers = {"vae": optimizer}
        self.schedules = {"vae": scheduled(optimizer, "cosine", setup.steps, config.warmup)}

    def dataset(self) -> Captioned:
        return self.data

    def step(self, batch: dict[str, Tensor], trainer: Any) -> dict[str, Tensor]:
        x = batch["picture"]
        with torch.set_grad_enabled(not self.config.decoder_only):
            found = self.vae.encode(x).latent_dist
        y = self.vae.decode(found.sample()).sample.float()
        pixels = x[0].numel()
        numbers = {"l1": F.l1_loss(y, x), "kl": found.kl().float().mean() / pixels}
        loss = numbers["l1"]
        if not self.config.decoder_only:
            loss = loss + self.config.kl * numbers["kl"]
        if self.config.colours:
            numbers["colours"] = F.mse_loss(F.avg_pool2d(y, BLOCK), F.avg_pool2d(x, BLOCK))
            loss = loss + self.config.colours * numbers["colours"]
        if self.frozen:
            numbers["perceptual"] = self.frozen["perceptual"](y, x)
            loss = loss + self.config.perceptual * numbers["perceptual"]
        trainer.backward(loss)
        trainer.update()
        return {"loss": loss, **numbers, "noise": found.std.float().mean(), "spread": found.mean.float().std()}

    def validate(self) -> dict[str, float]:
        """L1 and PSNR (dB, of 0..1) of held-out pictures, or of the first trained on where none is held out."""
        pairs = self.data.held or self.data.pairs[:100]
        errors, squares = [], []
        for x in self._pictures(pairs):
            y = self.vae.decode(self.vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
            errors.append((y - x).abs().mean((1, 2, 3)))
            squares.append(((y - x) / 2).square().mean((1, 2, 3)))
        psnr = -10 * torch.cat(squares).clamp(1e-10).log10()
        return {"l1": float(torch.cat(errors).mean()), "psnr": float(psnr.mean())}

    def _pictures(self, pairs: list[Pair]) -> Iterator[Tensor]:
        for start in range(0, len(pairs), BATCH):
            yield self.data.show(pairs[start : start + BATCH]).to(self.setup.device)

    def sample(self) -> dict[str, Any]:
        """Pictures above what is made of them."""
        x = self.data.show((self.data.held or self.data.pairs)[:SHOWN]).to(self.setup.device)
        y = self.vae.decode(self.vae.encode(x).latent_dist.mode()).sample
        return {"there-and-back": (in_rows(x, y).clamp(-1, 1) + 1) / 2}

    def export(self, folder: Path) -> None:
        vae = copy.deepcopy(self.vae).float()
        if not self.config.decoder_only:
            standardise(vae, self._pictures(self.data.pairs))
        with quiet():
            vae.half().cpu().save_pretrained(folder, safe_serialization=True)


def _build(config: VAEConfig) -> Any:
    from diffusers import AutoencoderKL

    if any(c % config.groups for c in config.channels):
        raise InputError(f"groups {config.groups} does not divide channels {config.channels}; choose others")
    if config.size % 2 ** (len(config.channels) - 1):
        raise InputError(f"size {config.size} cannot be halved {len(config.channels) - 1} times; give fewer channels")
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(config.channels),
        up_block_types=("UpDecoderBlock2D",) * len(config.channels),
        block_out_channels=tuple(config.channels),
        layers_per_block=config.layers,
        latent_channels=config.latent_channels,
        norm_num_groups=config.groups,
        sample_size=config.size,
        scaling_factor=1.0,
    )


def _begin(folder: Path) -> Any:
    from diffusers import AutoencoderKL

    try:
        return AutoencoderKL.from_pretrained(folder, use_safetensors=True, local_files_only=True).float()
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{folder} holds no autoencoder of diffusers': {str(error).splitlines()[0]}") from None


@torch.no_grad()
def standardise(vae: Any, pictures: Iterator[Tensor]) -> None:
    """Brings the latents' mean over all pictures, [B, 3, S, S] in -1..1, to mean 0 and deviation 1 in every channel.

    The first half of `quant_conv` makes the mean m of a latent, the second the logarithm of its variance; with m' =
    (m - mu) / sd and log var' = log var - 2 log sd, and sd z' + mu at the door of the decoder, nothing else changes.
    """
    z = torch.cat([vae.encode(x).latent_dist.mean.cpu() for x in pictures])  # [B, C, h, h]
    device = vae.quant_conv.weight.device
    mean, sd = z.mean((0, 2, 3)).to(device), z.std((0, 2, 3)).clamp(1e-6).to(device)
    c = len(mean)
    into, out = vae.quant_conv, vae.post_quant_conv
    into.weight[:c] /= sd.view(-1, 1, 1, 1)
    into.bias[:c] = (into.bias[:c] - mean) / sd
    into.bias[c:] -= 2 * sd.log()
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight *= sd.view(1, -1, 1, 1)
    vae.register_to_config(scaling_factor=1.0)
