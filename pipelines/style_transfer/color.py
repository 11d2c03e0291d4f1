"""Keeping the photo's colours while taking the painting's manner (Gatys et al. 2016b, "Preserving Color").

Pictures are sRGB tensors [B, 3, H, W] in 0..1.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["coral", "keep_luminance", "luminance"]

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, what JPEG and the older style-transfer systems use


def luminance(x: Tensor) -> Tensor:
    """Y of BT.601, [B, 1, H, W]."""
    return torch.einsum("bchw,c->bhw", x, x.new_tensor(LUMA))[:, None]


def keep_luminance(result: Tensor, content: Tensor) -> Tensor:
    """The result's luminance with the content's colour differences (Cb and Cr stay those of the content)."""
    return (content + luminance(result) - luminance(content)).clamp(0, 1)


def coral(picture: Tensor, reference: Tensor) -> Tensor:
    """The picture recoloured so that its pixels have the reference's mean and covariance.

    CORAL (Sun et al. 2016): whiten with the picture's covariance, colour with the reference's; symmetric roots, which
    change the picture least. Applied to a style before the transfer, so that the result takes the photo's colours.
    """
    mean, root = _colour_statistics(picture)
    mean_r, root_r = _colour_statistics(reference)
    turn = root_r @ torch.linalg.inv(root)
    flat = picture.flatten(2).double() - mean[None, :, None]  # [B, 3, N]
    return (turn @ flat + mean_r[None, :, None]).view(picture.shape).clamp(0, 1).to(picture.dtype)


def _colour_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [3] and square root of the covariance [3, 3] of a picture's pixels."""
    flat = x.transpose(0, 1).flatten(1).double()  # [3, B*N]
    covariance = torch.cov(flat) + 1e-5 * torch.eye(3, dtype=flat.dtype, device=x.device)
    values, vectors = torch.linalg.eigh(covariance)
    return flat.mean(1), vectors @ torch.diag(values.clamp_min(0).sqrt()) @ vectors.T
