"""Feature networks: frozen convolutional networks whose activations say what a picture shows and how it is painted.

Four are known by name. `vgg19` and `vgg16` are the ones of Gatys et al. and Johnson et al.; `squeezenet1_0` is twenty
times smaller; `small` is genkit's own, distilled from it (see `weights/README.md`) and shipped, so that style transfer
works offline.

Choices made here:
- A network is one `nn.Sequential` under torchvision's key names, so published weights load as they are; a *tap* is the
  activation behind one of its layers, known by the field's name for it ("relu4_1", "fire5").
- Pooling is exchangeable. Max pooling gives the strongest features and the roughest gradients, average pooling smoother
  pictures (Gatys et al. 2016, section 2); the factors keep the mean activation of the deeper layers where max pooling
  had it.
- The first convolution of a VGG pads by replication: zero padding is a black frame to it, and shows in the result.

Shapes: B batch, C channels, H height, W width. Pictures are sRGB in 0..1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.style_transfer.networks.frozen import average_pool, conv_relu
from pipelines.style_transfer.networks.shapes import conv_widths

__all__ = ["ARCHITECTURES", "FeatureNetwork", "Pool", "Small", "SqueezeNet", "Vgg"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Padding = Literal["zeros", "replicate"]


class Pool(nn.Module):
    """Pooling with stride 2 over 2x2 (VGG) or 3x3 windows (SqueezeNet): "max", "average" or "l2".

    The factors are those of crowsonkb/style-transfer-pytorch.
    """

    FACTORS: Mapping[str, float] = {"max": 1.0, "average": 2.0, "l2": 0.78}

    def __init__(self, kind: str, window: int = 2, factor: float | None = None) -> None:
        super().__init__()
        self.kind, self.window = kind, window
        self.factor = self.FACTORS[kind] if factor is None else factor

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "max":
            return F.max_pool2d(x, self.window, 2, ceil_mode=True)
        if self.kind == "l2":
            mean = average_pool(x * x, self.window, 2)
            return mean.mul(self.window**2).add(1e-12).sqrt() * self.factor
        y = average_pool(x, self.window, 2)
        return y if self.factor == 1 else y * self.factor


@dataclass(frozen=True)
class Layers:
    """Which taps a network is read at by default: `style` with a weight each (normalised by the loss), `content`."""

    content: Mapping[str, float]
    style: Mapping[str, float]


class FeatureNetwork(nn.Module):
    """Base of the feature networks. A subclass fills `features` and `taps`.

    A convolution in `features` is followed by a ReLU, which is done with it (see frozen.py); the ReLU keeps
    torchvision's numbering.

    forward(x [B, 3, H, W] in 0..1, names) -> {name: [B, C, H', W']}, computed no deeper than the deepest name.
    """

    defaults: Layers
    margin: int
    """Pixels around a tile that can change a tap inside it: half the receptive field of the deepest default tap."""
    stride: int
    """Pixels per step of the deepest default tap; tiles start at multiples of it."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential()
        self.taps: dict[str, int] = {}

    def normalise(self, x: Tensor) -> Tensor:
        """ImageNet's, in the picture's own precision, then the weights' dtype."""
        mean = x.new_tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
        std = x.new_tensor(IMAGENET_STD).view(1, 3, 1, 1)
        return ((x - mean) / std).to(next(self.parameters()).dtype)

    def forward(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        wanted = {self.taps[name]: name for name in names}
        x = self.normalise(x)
        found: dict[str, Tensor] = {}
        for index, layer in enumerate(self.features):
            if isinstance(layer, nn.Conv2d):
                x = conv_relu(x, layer)
            elif not isinstance(layer, nn.ReLU):
                x = layer(x)
            if index in wanted:
                found[wanted[index]] = x
                if len(found) == len(wanted):
                    break
        return found

    def freeze(self) -> FeatureNetwork:
        return self.eval().requires_grad_(False)


class Vgg(FeatureNetwork):
    """VGG-16 or VGG-19 (Simonyan & Zisserman 2015), convolutions only. Taps `relu1_1` .. `relu5_x`.

    depth: 16 or 19. Layers: content relu4_2 and style relu1_1 .. relu5_1 with weights 256:64:16:4:1 for 19 (crowsonkb's
    choice), relu2_2 and relu1_2, 2_2, 3_3, 4_3 in equal parts for 16 (Johnson et al. 2016).
    """

    PLANS: Mapping[int, Sequence[int]] = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
    WIDTHS = (64, 128, 256, 512, 512)

    def __init__(self, depth: int = 19, pooling: str = "max") -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for block, (count, width) in enumerate(zip(self.PLANS[depth], self.WIDTHS, strict=True), 1):
            for conv in range(1, count + 1):
                mode: Padding = "zeros" if layers else "replicate"
                layers += [nn.Conv2d(channels, width, 3, padding=1, padding_mode=mode), nn.ReLU(inplace=True)]
                self.taps[f"relu{block}_{conv}"] = len(layers) - 1
                channels = width
            layers.append(Pool(pooling))
        self.features = nn.Sequential(*layers)
        self.margin, self.stride = (80, 16) if depth == 19 else (48, 8)
        if depth == 19:
            style = dict(zip((f"relu{i}_1" for i in range(1, 6)), (256.0, 64.0, 16.0, 4.0, 1.0), strict=True))
            self.defaults = Layers({"relu4_2": 1.0}, style)
        else:
            self.defaults = Layers({"relu2_2": 1.0}, dict.fromkeys(("relu1_2", "relu2_2", "relu3_3", "relu4_3"), 1.0))


class Fire(nn.Module):
    """SqueezeNet's block (Iandola et al. 2016, figure 1): squeeze to s channels, expand by 1x1 and by 3x3 to e each."""

    def __init__(self, channels: int, s: int, e: int, padding_mode: Padding = "zeros") -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, s, 1)
        self.expand1x1 = nn.Conv2d(s, e, 1)
        self.expand3x3 = nn.Conv2d(s, e, 3, padding=1, padding_mode=padding_mode)

    def forward(self, x: Tensor) -> Tensor:
        x = conv_relu(x, self.squeeze)
        return torch.cat([conv_relu(x, self.expand1x1), conv_relu(x, self.expand3x3)], 1)


class SqueezeNet(FeatureNetwork):
    """SqueezeNet 1.0, features only. Taps `conv1`, `fire2` .. `fire9`.

    dense: run the first convolution with stride 1, which makes smoother pictures at four times the cost (its stride of
    2 leaves a grid in the gradient), and pad by replication throughout (zero padding shows as a frame in the result).
    The distillation of `small` uses the network as it was trained: dense=False, max pooling.
    """

    def __init__(self, pooling: str = "average", dense: bool = True) -> None:
        super().__init__()
        first = nn.Conv2d(3, 96, 7, stride=1 if dense else 2, padding=3, padding_mode="replicate")
        layers: list[nn.Module] = [first, nn.ReLU(), Pool(pooling, 3)]
        self.taps["conv1"] = 1
        plan: list[tuple[int, int, int] | None] = [(96, 16, 64), (128, 16, 64), (128, 32, 128), None]
        plan += [(256, 32, 128), (256, 48, 192), (384, 48, 192), (384, 64, 256), None, (512, 64, 256)]
        fire = 2
        for entry in plan:
            layers.append(Fire(*entry, padding_mode="replicate" if dense else "zeros") if entry else Pool(pooling, 3))
            if entry:
                self.taps[f"fire{fire}"] = len(layers) - 1
                fire += 1
        self.features = nn.Sequential(*layers)
        self.margin, self.stride = (16, 4) if dense else (32, 8)
        style = dict.fromkeys(("conv1", "fire2", "fire3", "fire4", "fire5"), 1.0)
        self.defaults = Layers({"fire5": 1.0}, style)


class ConvRelu(nn.Sequential):
    """A 3x3 convolution that keeps the size, and a ReLU."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(nn.Conv2d(channels, width, 3, padding=1, padding_mode="replicate"))

    def forward(self, x: Tensor) -> Tensor:
        return conv_relu(x, cast("nn.Conv2d", self[0]))


class Small(FeatureNetwork):
    """genkit's own: seven plain convolutions at four scales, distilled from SqueezeNet 1.0.

    Each tap has a 1x1 head that predicts the teacher's activation of that name, so a tap has the teacher's channels and
    its Gram matrix means what the teacher's does. Average pooling and a stride-1 first convolution are part of the
    design: they leave no grid in the gradient. 0.9 M parameters, 1.7 MB in fp16.
    """

    HEADS: Mapping[str, int] = {"conv1": 96, "fire2": 128, "fire4": 256, "fire5": 256, "fire8": 512}

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        plan: list[tuple[int, str] | None] = [(width, ""), None, (width * 3 // 2, ""), (width * 2, "conv1"), None]
        plan += [(width * 3, "fire2"), (width * 4, "fire4"), None, (width * 5, "fire5"), (width * 6, "fire8")]
        layers: list[nn.Module] = []
        heads: dict[str, nn.Module] = {}
        channels = 3
        for entry in plan:
            if entry is None:
                layers.append(Pool("average", factor=1))
                continue
            layers.append(ConvRelu(channels, entry[0]))
            channels = entry[0]
            if entry[1]:
                self.taps[entry[1]] = len(layers) - 1
                heads[entry[1]] = nn.Conv2d(channels, self.HEADS[entry[1]], 1)
        self.features = nn.Sequential(*layers)
        self.heads = nn.ModuleDict(heads)
        self.margin, self.stride = 24, 8
        style = {"conv1": 0.25, "fire2": 0.5, "fire4": 1.0, "fire5": 1.0}  # weight on the deep taps: longer strokes
        self.defaults = Layers({"fire5": 1.0}, style)

    def forward(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        heads = cast("dict[str, nn.Conv2d]", self.heads)
        return {name: conv_relu(h, heads[name]) for name, h in super().forward(x, names).items()}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> tuple[Small, Mapping[str, Tensor]]:
        """The network whose width is read off its tensors, and these. Raises ModelError."""
        return cls(conv_widths(tensors, "features.0.0.weight")[0]), tensors


ARCHITECTURES = ("small", "squeezenet1_0", "vgg16", "vgg19")
