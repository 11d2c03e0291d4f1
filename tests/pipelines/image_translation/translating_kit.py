"""Generators small enough for a test, with weights drawn at random, and pictures with something to see in them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn

from genkit import weights
from pipelines.image_translation.networks import resnet, stargan, unet

__all__ = ["LABELS", "NETWORKS", "old_file", "own_file", "picture", "pixels"]

LABELS = 3  # of the tiny StarGAN

NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "cyclegan": lambda: resnet.ResnetGenerator(resnet.Layout(width=6, blocks=6)),
    "batch norm and dropout": lambda: resnet.ResnetGenerator(
        resnet.Layout(width=6, blocks=2, norm="batch", dropout=True)
    ),
    "cut": lambda: resnet.ResnetGenerator(resnet.Layout(width=6, blocks=2, antialias_down=True, antialias_up=True)),
    "residual": lambda: resnet.ResnetGenerator(resnet.Layout(width=6, blocks=2, halvings=3, residual=True)),
    "grey": lambda: resnet.ResnetGenerator(resnet.Layout(channels_in=1, channels_out=1, width=6, blocks=1, halvings=1)),
    "unet": lambda: unet.UnetGenerator(unet.Layout(width=4, downs=7)),
    "stargan": lambda: stargan.StarganGenerator(stargan.Layout(labels=LABELS, width=6, blocks=2)),
}


def network(name: str, seed: int = 0) -> nn.Module:
    """In eval mode. He initialisation, and running statistics that are none of any picture's."""
    made = NETWORKS[name]().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for key, tensor in made.state_dict().items():
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 2, generator=generator)
        elif tensor.dim() == 4 and not key.endswith("filt"):
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
        elif tensor.dim() == 1:
            tensor.normal_(1 if key.endswith("weight") else 0, 0.1, generator=generator)
    return made


def old_file(path: Path, name: str, seed: int = 0) -> Path:
    """As the authors' own code saves it: the bare tensors, pickled."""
    torch.save(network(name, seed).state_dict(), path)
    return path


def own_file(path: Path, name: str, seed: int = 0) -> Path:
    """As `genkit train` exports it."""
    made = network(name, seed)
    layout = json.dumps({"kind": "resnet", **asdict(made.layout)})  # type: ignore[call-overload]
    weights.write(path, made.state_dict(), {"architecture": "genkit.image-translation", "layout": layout})
    return path


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """[3, H, W] in 0..1: a slow shade, a disc and a stripe."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.linspace(0, 1, height)[:, None].expand(height, width)
    x = torch.linspace(0, 1, width)[None, :].expand(height, width)
    made = torch.stack([x, y, 1 - x * y]) * 0.5 + 0.3
    for shape in ((x - 0.4) ** 2 + (y - 0.6) ** 2 < 0.06, (x - y).abs() < 0.05):
        colour = torch.rand(3, 1, 1, generator=generator)
        made = torch.where(shape[None], colour, made)
    return made


def pixels(height: int, width: int, seed: int = 0) -> PIL.Image.Image:
    array = (picture(height, width, seed) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return PIL.Image.fromarray(np.ascontiguousarray(array))
