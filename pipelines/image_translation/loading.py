"""From a name, a file or a folder to a generator that is ready to run.

A folder may be one of pytorch-CycleGAN-and-pix2pix's or StarGAN's checkpoints: `latest_net_G.pth` is taken from among
the discriminators and the other epochs. One with both directions in it is refused: which is meant has to be said.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from genkit import weights
from genkit.errors import ModelError
from genkit.weights import Model
from pipelines.image_translation.architectures import kind_of
from pipelines.image_translation.models import MODELS
from pipelines.image_translation.networks.modes import has_modes
from pipelines.image_translation.recognise import recognise

__all__ = ["Generator", "describe", "load_generator"]

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
NO_GENERATOR = re.compile(r"((^|[_-])(net)?_?D(_[AB])?|(^|_)net_F)$")  # latest_net_D_A, 200000-D, latest_net_F


@dataclass(frozen=True)
class Generator:
    """A generator, in eval mode and float32 on the CPU, and what it takes."""

    network: nn.Module
    """[B, C, H, W] in -1..1 -> [B, C, H, W] in -1..1; StarGAN's takes labels [B, L] beside the picture."""
    kind: str
    """"resnet", "unet" or "stargan"."""
    layout: Any
    """The kind's layout, a dataclass."""
    words: str
    """What it is, in one line."""
    path: Path
    about: Mapping[str, str]
    """What its file says about it: `training`, `direction`; empty for another's file."""
    multiple: int
    """px; both sides must be multiples of it."""
    smallest: int
    """px; neither side may be smaller."""
    channels_in: int
    channels_out: int
    labels: int
    """How many labels it takes beside the picture; 0 but for StarGAN's."""
    modes: bool
    """Whether `networks.modes.as_published` makes another picture than eval mode."""


def load_generator(ref: str | Path, models: Mapping[str, Model] = MODELS) -> Generator:
    """The generator that a reference (alias, hub id, folder, file) names.

    Raises ModelError: there is none, it is a discriminator, it does not fit any known architecture, it is damaged.
    """
    path = file_of(weights.locate(ref, models, patterns=[f"*{suffix}" for suffix in SUFFIXES]))
    about = weights.metadata(path)
    found = recognise(weights.read(path), about, name=str(path))
    if not found.generates:
        raise ModelError(f"{path} is no generator but a discriminator ({found.words}); name the generator, net_G")
    network: Any = found.build()
    layout = found.layout
    return Generator(
        network=network,
        kind=found.kind,
        layout=layout,
        words=found.words,
        path=path,
        about=about,
        multiple=network.multiple,
        smallest=network.smallest,
        channels_in=layout.channels if found.kind == "stargan" else layout.channels_in,
        channels_out=layout.channels if found.kind == "stargan" else layout.channels_out,
        labels=layout.labels if found.kind == "stargan" else 0,
        modes=has_modes(network),
    )


def describe(path: Path) -> dict[str, Any] | None:
    """What a file or a folder holds, for `genkit inspect`; None where it is nothing of these. Raises ModelError."""
    path = file_of(path)
    tensors, about = weights.read(path), weights.metadata(path)
    if kind_of(tensors) is None:
        return None
    found = recognise(tensors, about, name=str(path))
    network = found.build()
    facts: dict[str, Any] = {"is": found.words, "parameters": sum(p.numel() for p in network.parameters())}
    if found.generates:
        facts["sides"] = f"multiples of {network.multiple} px from {network.smallest} px; others are padded"
    else:
        facts["use"] = "in training only: it judges pictures and makes none"
    facts["layout"] = asdict(found.layout)
    return facts | {name: _plain(about[name]) for name in ("direction", "training") if name in about}


def _plain(text: str) -> Any:
    """A header's value: JSON where it is JSON, else as it stands."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def file_of(path: Path) -> Path:
    """The file of the one generator in a folder; a file is itself. Raises ModelError."""
    if not path.is_dir():
        return path
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    found = [file for file in files if not NO_GENERATOR.search(file.stem)]
    found = [file for file in found if file.stem.startswith("latest_")] or found
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(file.name for file in found[:5]) + (", ..." if len(found) > 5 else "")
        raise ModelError(f"folder {path} holds {len(found)} generators ({names}); name one")
    held = f"only {', '.join(file.name for file in files[:3])}" if files else "no model file"
    raise ModelError(f"folder {path} holds no generator ({held}); name one, such as latest_net_G.pth")
