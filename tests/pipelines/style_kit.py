"""Tiny real components for the tests of style transfer: thin networks, pictures, and files as people have them.

Every network here is the real class at a small width with He-initialised random weights: enough for everything that is
mathematics, and for every path from a file to a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import PIL.Image
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from pipelines.style_transfer.losses import STYLE_LOSSES, moments
from pipelines.style_transfer.networks.adain import Decoder, Encoder
from pipelines.style_transfer.networks.features import FeatureNetwork, Small, SqueezeNet, Vgg
from pipelines.style_transfer.networks.transformer import TransformerNet
from pipelines.style_transfer.objective import Region

WIDTHS = (4, 8, 8, 16)
"""Of the tiny AdaIN pair."""


class ThinVgg(Vgg):
    """A VGG's geometry without its weight."""

    WIDTHS = (4, 8, 8, 8, 8)


NETWORKS: Mapping[str, Callable[[], FeatureNetwork]] = {
    "small": lambda: Small(4),
    "squeezenet1_0": SqueezeNet,
    "squeezenet1_0 as trained": lambda: SqueezeNet("max", dense=False),
    "vgg16": lambda: ThinVgg(16, "average"),
    "vgg19": lambda: ThinVgg(19),
}


def he(module: nn.Module, seed: int = 0) -> nn.Module:
    """He initialisation from a generator of its own, biases slightly above zero so that few units are dead."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            fan_in = layer.weight[0].numel()
            layer.weight.data = torch.randn(layer.weight.shape, generator=generator) * (2 / fan_in) ** 0.5
            layer.bias.data.fill_(0.05)
    return module


def network(name: str, seed: int = 0) -> FeatureNetwork:
    made = he(NETWORKS[name](), seed)
    assert isinstance(made, FeatureNetwork)
    return made.freeze()


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """A picture [1, 3, H, W] in 0..1 with coarse and fine structure."""
    generator = torch.Generator().manual_seed(seed)
    coarse = F.interpolate(torch.rand(1, 3, 4, 5, generator=generator), (height, width), mode="bicubic")
    return (coarse + 0.1 * torch.randn(1, 3, height, width, generator=generator)).clamp(0, 1)


def regions(eyes: FeatureNetwork, loss: str, *masks: Tensor) -> list[Region]:
    """One region of a random style everywhere, or one style for each mask."""
    made = []
    for seed, mask in enumerate(masks or (None,), 10):
        with torch.no_grad():
            seen = eyes(picture(70, 61, seed), list(eyes.defaults.style))
        made.append(Region(mask, {name: STYLE_LOSSES[loss](moments(f)) for name, f in seen.items()}))
    return made


def save(path: Path, height: int, width: int, seed: int = 0) -> Path:
    """A random picture as a file."""
    pixels = (picture(height, width, seed)[0].permute(1, 2, 0) * 255).round().byte().numpy()
    PIL.Image.fromarray(pixels).save(path)
    return path


def small_file(path: Path, width: int = 4, seed: int = 0) -> Path:
    save_file(he(Small(width), seed).state_dict(), path)
    return path


def fast_file(path: Path, width: int = 4, seed: int = 0) -> Path:
    save_file(he(TransformerNet(width), seed).state_dict(), path)
    return path


def adain_tensors(seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Encoder and decoder under the published key names ("0.weight", ...)."""
    encoder, decoder = he(Encoder(WIDTHS), seed), he(Decoder(WIDTHS), seed + 1)
    assert isinstance(encoder, Encoder)
    assert isinstance(decoder, Decoder)
    return encoder.net.state_dict(), decoder.net.state_dict()


def adain_folder(path: Path, seed: int = 0) -> Path:
    """A folder with the published file names, pickled as published."""
    path.mkdir()
    encoder, decoder = adain_tensors(seed)
    torch.save(encoder, path / "vgg_normalised.pth")
    torch.save(decoder, path / "decoder.pth")
    return path
