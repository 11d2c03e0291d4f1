"""The discriminator of pix2pix and CycleGAN: a PatchGAN judges each patch of a picture by itself (Isola et al. 2017).

Layout and key names are those of pytorch-CycleGAN-and-pix2pix (`NLayerDiscriminator`), with `antialias` those of CUT.
With three layers a value of the map sees 70x70 px, and a picture of 256 px gives a map of 30x30.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from pipelines.image_translation.networks.resnet import Down, Norm, norm_layer

__all__ = ["Layout", "PatchDiscriminator"]


@dataclass(frozen=True)
class Layout:
    """What tells one from another: what `PatchDiscriminator` takes. The defaults are CycleGAN's."""

    channels: int = 3
    width: int = 64
    layers: int = 3
    norm: Norm = "instance"
    antialias: bool = False


class PatchDiscriminator(nn.Module):
    """[B, C, H, W] -> a map of scores [B, 1, H / 2^layers - 2, ...], high for real; no squashing at the end.

    width: channels of the first layer (`ndf`), doubled up to eight times that; antialias: halves by a blur, as in CUT.
    """

    def __init__(
        self, channels: int = 3, width: int = 64, layers: int = 3, norm: Norm = "instance", *, antialias: bool = False
    ) -> None:
        super().__init__()
        bias = norm == "instance"
        stride = 1 if antialias else 2

        def halved(c: int) -> list[nn.Module]:
            return [Down(c)] if antialias else []

        first = nn.Conv2d(channels, width, 4, stride, padding=1)
        body: list[nn.Module] = [first, nn.LeakyReLU(0.2, True), *halved(width)]
        c = width
        for layer in range(1, layers + 1):
            to = width * min(2**layer, 8)
            last = layer == layers
            body += [nn.Conv2d(c, to, 4, 1 if last else stride, padding=1, bias=bias), norm_layer(norm, to)]
            body += [nn.LeakyReLU(0.2, True), *([] if last else halved(to))]
            c = to
        self.model = nn.Sequential(*body, nn.Conv2d(c, 1, 4, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)
