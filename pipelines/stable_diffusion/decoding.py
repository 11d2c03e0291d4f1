"""From latents to pictures.

Choices made here:
- Pictures are decoded one by one on a CPU, where a batch gains nothing, and elsewhere as many as make up PIXELS: the
  decoder takes more memory than all the rest.
- A decoder in half precision may overflow: a picture that is NaN or black is decoded again in float32. One that still
  is no picture is an error, never a file.

B, C, h, w: latents; H, W: pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genkit.errors import GenkitError

if TYPE_CHECKING:
    from pipelines.stable_diffusion.loading import Model

__all__ = ["decode", "scaled", "unpacked"]

PIXELS = 2**21
"""Decoded at once, except on a CPU."""


def decode(model: Model, latents: Tensor, width: int, height: int) -> list[Tensor]:
    """Latents as a pipe hands them over -> pictures [3, H, W] in 0..1, float32 on the CPU. Raises GenkitError."""
    if not latents.isfinite().all():
        raise GenkitError(
            f"{model.path} made no picture but NaN: use --dtype float32 or bfloat16, fewer LoRAs, or less guidance"
        )
    latents = scaled(model.pipe.vae, unpacked(model, latents, width, height))
    at_once = 1 if latents.device.type == "cpu" else max(1, PIXELS // (width * height))
    return [picture for part in latents.split(at_once) for picture in _checked(model, part)]


def unpacked(model: Model, latents: Tensor, width: int, height: int) -> Tensor:
    """Flux works on patches of 2 x 2 latents in a row: [B, h w / 4, 4 C] -> [B, C, h, w]."""
    if model.family != "flux":
        return latents
    return model.pipe._unpack_latents(latents, height, width, model.pipe.vae_scale_factor)


def scaled(vae: Any, latents: Tensor) -> Tensor:
    """From the spread that a denoiser sees to the decoder's own."""
    config = vae.config
    mean, std = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is not None and std is not None:
        mean, std = (latents.new_tensor(values)[None, :, None, None] for values in (mean, std))
        return latents * std / config.scaling_factor + mean
    return latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0)


def _checked(model: Model, latents: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, 3, H, W] in 0..1, in float32 where half precision fails."""
    vae = model.pipe.vae
    pictures = None if model.upcasts else _decoded(vae, latents)
    if pictures is not None and _is_picture(pictures):
        return pictures
    dtype = vae.dtype
    vae.to(torch.float32)
    try:
        pictures = _decoded(vae, latents)
    finally:
        vae.to(dtype)
    if not _is_picture(pictures):
        raise GenkitError("the result is no picture (NaN or black all over): use another seed, or --dtype float32")
    return pictures


def _decoded(vae: Any, latents: Tensor) -> Tensor:
    made = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
    return (made.float().cpu() / 2 + 0.5).clamp(0, 1)


def _is_picture(pictures: Tensor) -> bool:
    """NaN goes through `clamp` as NaN, and is greater than nothing."""
    return bool((pictures.amax((1, 2, 3)) > 0).all())
