"""AdaIN: any style in one pass (Huang & Belongie 2017).

Layout and key names are those of naoto0804/pytorch-AdaIN (`vgg_normalised.pth` cut behind relu4_1, and `decoder.pth`),
so that its published files load unchanged. The encoder's 1x1 first convolution turns RGB in 0..1 into what its VGG was
trained on. Widths are read off the tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pipelines.style_transfer.networks.shapes import conv_widths

__all__ = ["Decoder", "Encoder", "adain", "recognise_decoder", "recognise_encoder", "statistics"]

EPS = 1e-5


def statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (unbiased, as published) of features [B, C, H, W]: both [B, C, 1, 1]."""
    mean = features.mean((2, 3), keepdim=True)
    unbiased = features.shape[2] * features.shape[3] > 1
    return mean, (features.var((2, 3), keepdim=True, correction=int(unbiased)) + EPS).sqrt()


def adain(content: Tensor, styles: Sequence[tuple[Tensor, float]], alpha: float = 1.0) -> Tensor:
    """Content features [B, C, H, W] given the statistics of style features (equation 8); several styles blend by their
    weights (section 7.2), and alpha in 0..1 blends the result with the content (equation 14)."""
    mean, std = statistics(content)
    normalised = (content - mean) / std
    total = sum(weight for _, weight in styles)
    mixed = torch.zeros_like(content)
    for style, weight in styles:
        mean_s, std_s = statistics(style)
        mixed = mixed + (normalised * std_s + mean_s) * (weight / total)
    return alpha * mixed + (1 - alpha) * content


def _conv(channels: int, width: int) -> list[nn.Module]:
    return [nn.ReflectionPad2d(1), nn.Conv2d(channels, width, 3), nn.ReLU()]


class Encoder(nn.Module):
    """Normalised VGG-19 up to relu4_1. forward(x [B, 3, H, W] in 0..1) -> [relu1_1, relu2_1, relu3_1, relu4_1].

    widths: channels of the four blocks, (64, 128, 256, 512) as published. Sides of at least 16 px (reflection padding).
    """

    TAPS = (3, 10, 17, 30)
    SMALLEST = 16

    def __init__(self, widths: Sequence[int] = (64, 128, 256, 512)) -> None:
        super().__init__()
        self.widths = tuple(widths)
        a, b, c, d = widths
        pool = nn.MaxPool2d(2, ceil_mode=True)
        self.net = nn.Sequential(
            nn.Conv2d(3, 3, 1), *_conv(3, a), *_conv(a, a), pool, *_conv(a, b), *_conv(b, b), pool,
            *_conv(b, c), *_conv(c, c), *_conv(c, c), *_conv(c, c), pool, *_conv(c, d),
        )  # fmt: skip

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for index, layer in enumerate(self.net):
            x = layer(x)
            if index in self.TAPS:
                found.append(x)
        return found

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> tuple[Encoder, dict[str, Tensor]]:
        """The encoder for a normalised VGG's tensors, and the tensors up to relu4_1. Raises ModelError."""
        network = cls([conv_widths(tensors, f"{i}.weight")[0] for i in (2, 9, 16, 29)])
        kept = network.net.state_dict().keys()
        return network, {f"net.{key}": value for key, value in tensors.items() if key in kept}


class Decoder(nn.Module):
    """The encoder's mirror: relu4_1 features [B, C, h, w] -> picture [B, 3, 8h, 8w]."""

    def __init__(self, widths: Sequence[int] = (64, 128, 256, 512)) -> None:
        super().__init__()
        self.widths = tuple(widths)
        a, b, c, d = widths
        up = nn.Upsample(scale_factor=2, mode="nearest")
        self.net = nn.Sequential(
            *_conv(d, c), up, *_conv(c, c), *_conv(c, c), *_conv(c, c), *_conv(c, b), up,
            *_conv(b, b), *_conv(b, a), up, *_conv(a, a), *_conv(a, 3)[:-1],
        )  # fmt: skip

    def forward(self, features: Tensor) -> Tensor:
        return self.net(features)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> tuple[Decoder, dict[str, Tensor]]:
        """The decoder for a checkpoint's tensors, and these under the names used here. Raises ModelError."""
        c, d = conv_widths(tensors, "1.weight")
        a, b = (conv_widths(tensors, f"{i}.weight")[0] for i in (25, 14))
        network = cls((a, b, c, d))
        return network, {f"net.{key}": value for key, value in tensors.items()}


def recognise_encoder(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are a normalised VGG's tensors (its first convolution is 1x1)."""
    return {"0.weight", "29.weight"} <= tensors.keys() and tuple(tensors["0.weight"].shape) == (3, 3, 1, 1)


def recognise_decoder(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are an AdaIN decoder's tensors."""
    return {"1.weight", "28.weight"} <= tensors.keys() and tensors["28.weight"].shape[0] == 3
