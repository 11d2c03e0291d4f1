"""The loss that diffusion models are trained by, for training from nothing, LoRA and textual inversion alike.

With z the latents, e standard normal noise and a_t the share of signal that is left at step t (diffusers'
`alphas_cumprod`):

    z_t = sqrt(a_t) z + sqrt(1 - a_t) e                                 (Ho et al. 2020, equation 4)
    e-prediction:  target e                                             (equation 14)
    v-prediction:  target v = sqrt(a_t) e - sqrt(1 - a_t) z             (Salimans & Ho 2022, appendix D)

The squared error is weighted by min(SNR, gamma) over what the prediction already weighs it by, SNR for e and SNR + 1
for v, with SNR = a_t / (1 - a_t) (Hang et al. 2023, section 3.4). Steps are drawn evenly over a batch, one from each
of its B equal parts of the schedule (Kingma et al. 2021, appendix I.1), so that the loss varies less between batches.

B: items; C, h, w: channels and sides of the latents.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from genkit.errors import ModelError

__all__ = ["PREDICTIONS", "denoising_loss", "drawn_steps", "noised", "target", "weights"]

PREDICTIONS = ("epsilon", "v_prediction")

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(z_t [B, C, h, w], t [B]) -> prediction [B, C, h, w]."""


def drawn_steps(count: int, total: int, device: torch.device) -> Tensor:
    """[B] steps of 0..total-1, one from each of `count` equal parts, in the order of the items; torch's generator."""
    places = (torch.arange(count) + torch.rand(count)) / count
    return (places * total).long().clamp(max=total - 1)[torch.randperm(count)].to(device)


def _signal(scheduler: Any, t: Tensor) -> Tensor:
    """a_t, [B, 1, 1, 1] in float32."""
    return scheduler.alphas_cumprod.to(t.device)[t].float().view(-1, 1, 1, 1)


def noised(scheduler: Any, z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """z_t; scheduler: any of diffusers' that has `alphas_cumprod`."""
    a = _signal(scheduler, t)
    return a.sqrt() * z + (1 - a).sqrt() * noise


def target(scheduler: Any, z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """What the model is to predict. Raises ModelError for a kind of prediction that is not known."""
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind != "v_prediction":
        raise ModelError(f"this model predicts {kind!r}; models that predict {' or '.join(PREDICTIONS)} can be trained")
    a = _signal(scheduler, t)
    return a.sqrt() * noise - (1 - a).sqrt() * z


def weights(scheduler: Any, t: Tensor, gamma: float | None) -> Tensor:
    """[B] weights of the squared errors; ones where gamma is None."""
    a = _signal(scheduler, t).flatten()
    if gamma is None:
        return torch.ones_like(a)
    snr = a / (1 - a).clamp(1e-8)
    whole = snr + 1 if scheduler.config.prediction_type == "v_prediction" else snr
    return snr.clamp(max=gamma) / whole.clamp(1e-8)


def denoising_loss(
    denoise: Denoiser, scheduler: Any, z: Tensor, noise: Tensor, t: Tensor, gamma: float | None = None
) -> Tensor:
    """The weighted mean squared error of a denoiser, a scalar in float32."""
    predicted = denoise(noised(scheduler, z, noise, t), t).float()
    errors = (predicted - target(scheduler, z, noise, t)).square().mean((1, 2, 3))  # [B]
    return (errors * weights(scheduler, t, gamma)).mean()
