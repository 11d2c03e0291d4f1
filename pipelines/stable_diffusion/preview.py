"""What a picture looks like so far, at next to no cost: latents -> a small picture, without the model's own decoder.

- A model whose folder has a small decoder (`AutoencoderTiny`, known as TAESD, in a folder beside `vae`), or to which
  one is named, is shown through that.
- Of any other, colours are read off the latents: each is close to linear in the channels of its place. What to weigh
  them with is found by least squares, once for each model and when the first preview is asked for: a few made-up
  pictures go through the model's own encoder, and the mean colour of each place is fitted to what comes out. So it
  serves fine-tuned VAEs, and families that nobody has published factors for.

Latents in between are noisy, of some schedulers by far beyond their final spread: they are brought back to that.

B pictures, C channels of latents, h, w: places; H, W: px.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genkit.errors import ModelError
from genkit.media.image import Image
from pipelines.stable_diffusion import folders
from pipelines.stable_diffusion.decoding import scaled, unpacked

if TYPE_CHECKING:
    from pipelines.stable_diffusion.loading import Model

__all__ = ["Preview", "fit_colours"]

SIDE = 256
"""px; what is smaller is enlarged to it."""
FITTED = 8
"""Made-up pictures, of 16 x 16 places each, that colours are fitted to."""


class Preview:
    """Of one loaded model. decoder: a folder with an AutoencoderTiny; by default one that the model has."""

    def __init__(self, model: Model, decoder: str | Path | None = None) -> None:
        self.model = model
        self.decoder = Path(decoder) if decoder else _tiny_beside(model.path)
        self._shown: Callable[[Tensor], Tensor] | None = None

    @torch.no_grad()
    def picture(self, latents: Tensor, width: int, height: int) -> Image:
        """Latents of one picture or several, as a pipe holds them between steps -> them side by side.

        width, height: of the pictures, px. Raises ModelError for a named decoder that cannot be read.
        """
        self._shown = self._shown or self._means()
        latents = unpacked(self.model, latents, width, height).float().nan_to_num(0, 0, 0)
        latents = latents / latents.std((1, 2, 3), keepdim=True).clamp_min(1)
        rows = _side_by_side(self._shown(latents).float().cpu().clamp(0, 1))
        grow = max(1.0, SIDE / max(rows.shape[1:]))
        return Image.from_tensor(F.interpolate(rows[None], scale_factor=grow, mode="bilinear")[0])

    def _means(self) -> Callable[[Tensor], Tensor]:
        """[B, C, h, w] as the denoiser sees them -> [B, 3, H, W] in 0..1."""
        vae, device = self.model.pipe.vae, self.model.runtime.device
        if self.decoder is not None:
            tiny = _tiny(self.decoder).to(device)
            return lambda latents: tiny.decode(latents.to(device), return_dict=False)[0] / 2 + 0.5
        weights = fit_colours(vae, device)
        return lambda latents: coloured(scaled(vae, latents.cpu()), weights)


def fit_colours(vae: Any, device: torch.device) -> Tensor:
    """Weights [C + 1, 3] that make the mean colour of each place, 0..1, from its C channels (as the VAE has them) and
    1."""
    generator = torch.Generator().manual_seed(0)
    shrinks = 2 ** (len(vae.config.block_out_channels) - 1)
    # Patches of a few colours, some wide and some a place wide, which is what latents know best.
    wide, fine = (torch.rand(FITTED, 3, side, side, generator=generator) for side in (4, 16))
    share = torch.linspace(0, 1, FITTED)[:, None, None, None]
    pictures = (F.interpolate(wide, size=(16, 16)) * (1 - share) + fine * share).mul_(1.4).sub_(0.2).clamp_(0, 1)
    large = F.interpolate(pictures, scale_factor=shrinks).to(device, vae.dtype)
    latents = torch.cat([vae.encode(2 * one - 1).latent_dist.mode() for one in large.split(1)]).float().cpu()
    colours = pictures.movedim(1, -1).reshape(-1, 3)
    return torch.linalg.lstsq(_places(latents), colours).solution


def coloured(latents: Tensor, weights: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, 3, h, w]."""
    b, _, h, w = latents.shape
    return (_places(latents) @ weights).view(b, h, w, 3).movedim(-1, 1)


def _places(latents: Tensor) -> Tensor:
    """[B, C, h, w] -> [B h w, C + 1], the last a one."""
    return F.pad(latents.movedim(1, -1), (0, 1), value=1.0).flatten(0, 2)


def _side_by_side(pictures: Tensor) -> Tensor:
    """[B, 3, H, W] -> [3, rows H, columns W], about as many rows as columns; what is left over is white."""
    b, c, h, w = pictures.shape
    columns = math.ceil(math.sqrt(b))
    rows = math.ceil(b / columns)
    filled = torch.cat([pictures, pictures.new_ones(rows * columns - b, c, h, w)])
    return filled.view(rows, columns, c, h, w).permute(2, 0, 3, 1, 4).reshape(c, rows * h, columns * w)


def _tiny_beside(path: Path) -> Path | None:
    """The folder of an AutoencoderTiny in a model's folder, if there is one."""
    configs = sorted(path.glob("*/config.json")) if path.is_dir() else []
    return next((config.parent for config in configs if _class_of(config) == "AutoencoderTiny"), None)


def _class_of(config: Path) -> str:
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
        return str(found.get("_class_name")) if isinstance(found, dict) else ""
    except (OSError, ValueError):
        return ""


def _tiny(folder: Path) -> Any:
    from diffusers import AutoencoderTiny

    if _class_of(folder / "config.json") != "AutoencoderTiny":
        raise ModelError(f"{folder} is no AutoencoderTiny: name a folder with one, or leave the decoder out")
    try:
        with folders.quiet():
            tiny = AutoencoderTiny.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{folder} cannot be read: {str(error).splitlines()[0][:200]}") from error
    return tiny.eval().requires_grad_(False)
