"""Johnson's transformation network: one style in its weights, one pass for a picture (Johnson, Alahi & Fei-Fei 2016).

Layout and key names are those of pytorch/examples fast_neural_style, so its published files load unchanged: convolution
9x9, two strided ones, five residual blocks, two nearest-neighbour upsamplings, convolution 9x9; instance normalisation
with affine weights; values 0..255 in and out, no squashing at the end. The width is read off the tensors (32 as
published; genkit's own is narrower, a quarter of the multiplications for each halving).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.style_transfer.networks.shapes import conv_widths

__all__ = ["TransformerNet", "recognise"]


class ConvLayer(nn.Module):
    """Convolution [B, C, H, W] with reflection padding, after an upsampling where one is stated."""

    def __init__(self, channels: int, width: int, kernel: int, *, stride: int = 1, upsample: int = 1) -> None:
        super().__init__()
        self.upsample = upsample
        self.pad = kernel // 2
        self.conv2d = nn.Conv2d(channels, width, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        if self.upsample > 1:
            x = F.interpolate(x, scale_factor=self.upsample, mode="nearest")
        return self.conv2d(F.pad(x, (self.pad,) * 4, mode="reflect"))


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = ConvLayer(width, width, 3)
        self.in1 = nn.InstanceNorm2d(width, affine=True)
        self.conv2 = ConvLayer(width, width, 3)
        self.in2 = nn.InstanceNorm2d(width, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.in2(self.conv2(F.relu(self.in1(self.conv1(x)))))


class TransformerNet(nn.Module):
    """[B, 3, H, W] in 0..1 -> the same size, in 0..1. Sides of at least 32 px.

    width: channels behind the first convolution; twice and four times that follow.
    """

    SMALLEST = 32

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.width = width
        self.conv1 = ConvLayer(3, width, 9)
        self.in1 = nn.InstanceNorm2d(width, affine=True)
        self.conv2 = ConvLayer(width, 2 * width, 3, stride=2)
        self.in2 = nn.InstanceNorm2d(2 * width, affine=True)
        self.conv3 = ConvLayer(2 * width, 4 * width, 3, stride=2)
        self.in3 = nn.InstanceNorm2d(4 * width, affine=True)
        self.res1, self.res2, self.res3, self.res4, self.res5 = (ResidualBlock(4 * width) for _ in range(5))
        self.deconv1 = ConvLayer(4 * width, 2 * width, 3, upsample=2)
        self.in4 = nn.InstanceNorm2d(2 * width, affine=True)
        self.deconv2 = ConvLayer(2 * width, width, 3, upsample=2)
        self.in5 = nn.InstanceNorm2d(width, affine=True)
        self.deconv3 = ConvLayer(width, 3, 9)

    def forward(self, x: Tensor) -> Tensor:
        return self.raw(x).clamp(0, 1)

    def raw(self, x: Tensor) -> Tensor:
        """Before the clamp, which would stop the gradient of whatever overshoots."""
        h, w = x.shape[-2:]
        # Two strided convolutions: sides that are no multiple of 4 are padded and cropped back.
        x = F.pad(x * 255, (0, -w % 4, 0, -h % 4), mode="reflect")
        x = F.relu(self.in1(self.conv1(x)))
        x = F.relu(self.in2(self.conv2(x)))
        x = F.relu(self.in3(self.conv3(x)))
        x = self.res5(self.res4(self.res3(self.res2(self.res1(x)))))
        x = F.relu(self.in4(self.deconv1(x)))
        x = F.relu(self.in5(self.deconv2(x)))
        return self.deconv3(x)[..., :h, :w] / 255

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> tuple[TransformerNet, dict[str, Tensor]]:
        """The network for a checkpoint's tensors, and the tensors without what files saved before PyTorch 0.4 carry too
        much."""
        kept = {key: value for key, value in tensors.items() if not re.search(r"in\d+\.(running_|num_batches)", key)}
        return cls(conv_widths(tensors, "conv1.conv2d.weight")[0]), kept


def recognise(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are a transformation network's tensors."""
    return {"conv1.conv2d.weight", "res5.in2.weight", "deconv3.conv2d.weight"} <= tensors.keys()
