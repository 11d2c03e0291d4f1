"""The 1x1 discriminator of pix2pix: it judges each pixel by itself (Isola et al. 2017, "PixelGAN").

Layout and key names are those of pytorch-CycleGAN-and-pix2pix (`PixelDiscriminator`).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from pipelines.image_translation.networks.resnet import Norm, norm_layer

__all__ = ["Layout", "PixelDiscriminator"]


@dataclass(frozen=True)
class Layout:
    """What tells one from another. The defaults are pix2pix's."""

    channels: int = 6
    width: int = 64
    norm: Norm = "batch"


class PixelDiscriminator(nn.Module):
    """[B, C, H, W] -> scores [B, 1, H, W], high for real; no squashing at the end."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        w, bias = layout.width, layout.norm == "instance"
        middle = [nn.Conv2d(w, 2 * w, 1, bias=bias), norm_layer(layout.norm, 2 * w), nn.LeakyReLU(0.2, True)]
        first = [nn.Conv2d(layout.channels, w, 1), nn.LeakyReLU(0.2, True)]
        self.net = nn.Sequential(*first, *middle, nn.Conv2d(2 * w, 1, 1, bias=bias))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)
