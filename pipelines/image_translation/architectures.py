"""The architectures of image translation: how each is told, read off tensors, built, and put into words.

The first of `KINDS` whose telling tensors are all there is the one. Reading takes shapes only; whether every tensor
then fits is for `recognise` to see. What no tensor shows is taken as its authors have it by default: dropout in a
U-Net, which pix2pix has (batch norm) and CycleGAN has not (instance norm).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from pipelines.image_translation.networks import patch, pixel, resnet, stargan, unet

__all__ = ["KINDS", "Kind", "kind_of"]

STARGAN_HEADS = ("main.0.weight", "conv1.weight", "conv2.weight")
DEEPEST = 12  # halvings or layers; a file that claims more is made to harm

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Kind:
    """An architecture: how it is told, read, built and put into words."""

    name: str
    telling: tuple[str, ...]
    """Names of tensors that must all be there; the first kind whose are is the one."""
    read: Callable[[Shapes], Any]
    """The layout, from the shapes of the tensors. Raises KeyError or IndexError where one is not as it must be."""
    network: Callable[[Any], nn.Module]
    words: Callable[[Any], str]
    unseen: tuple[str, ...] = ()
    """Fields of the layout that no tensor shows; only a header states them."""
    generates: bool = True


# Layouts, read off shapes.


def _convolutions(shapes: Shapes, prefix: str) -> list[tuple[int, ...]]:
    """Shapes of the convolutions right under a prefix, in order: "model." finds `model.4.weight`, nothing deeper."""
    found = [
        (int(key.removeprefix(prefix).removesuffix(".weight")), shape)
        for key, shape in shapes.items()
        if re.fullmatch(rf"{re.escape(prefix)}\d{{1,4}}\.weight", key) and len(shape) == 4
    ]
    return [shape for _, shape in sorted(found)]


def _depth(number: int, least: int) -> int:
    if not least <= number <= DEEPEST:
        raise ValueError(f"it has {number} scales, where {least} to {DEEPEST} are possible")
    return number


def _places(shapes: Shapes, pattern: str) -> list[int]:
    """The numbers in names that match, in order, each once."""
    return sorted({int(found[1]) for key in shapes if (found := re.fullmatch(pattern, key))})


def _resnet(shapes: Shapes) -> resnet.Layout:
    convolutions = _convolutions(shapes, "model.")
    first, last = convolutions[0], convolutions[-1]
    blocks = _places(shapes, r"model\.(\d{1,4})\.conv_block\..*")
    filters = {shape[-1] for key, shape in shapes.items() if key.endswith(".filt")}  # sides: 3 halve, 4 double
    halvings = _depth((len(convolutions) - 2) // 2, 1)
    return resnet.Layout(
        channels_in=first[1],
        channels_out=last[0],
        width=first[0],
        blocks=len(blocks),
        norm=_norm(shapes, "model.2"),
        dropout=bool(blocks) and len(shapes.get(f"model.{blocks[0]}.conv_block.6.weight", ())) == 4,
        antialias_down=3 in filters,
        antialias_up=4 in filters,
        halvings=halvings,
    )


def _unet(shapes: Shapes) -> unet.Layout:
    first, last = shapes["model.model.0.weight"], shapes["model.model.3.weight"]
    levels = [key for key in shapes if re.fullmatch(r"model\.model\.1(\.model\.3)*\.model\.1\.weight", key)]
    norm = _norm(shapes, "model.model.1.model.6")
    return unet.Layout(
        channels_in=first[1],
        channels_out=last[1],
        width=first[0],
        downs=_depth(1 + len(levels), 2),
        norm=norm,
        dropout=norm == "batch",
    )


def _patch(shapes: Shapes) -> patch.Layout:
    convolutions = _convolutions(shapes, "model.")
    antialias = "model.2.filt" in shapes
    return patch.Layout(
        channels=convolutions[0][1],
        width=convolutions[0][0],
        layers=_depth(len(convolutions) - 2, 1),
        norm=_norm(shapes, "model.4" if antialias else "model.3"),
        antialias=antialias,
    )


def _pixel(shapes: Shapes) -> pixel.Layout:
    width, channels = shapes["net.0.weight"][:2]
    return pixel.Layout(channels=channels, width=width, norm=_norm(shapes, "net.3"))


def _stargan(shapes: Shapes) -> stargan.Layout:
    convolutions = _convolutions(shapes, "main.")
    first, last = convolutions[0], convolutions[-1]
    blocks = _places(shapes, r"main\.(\d{1,4})\.main\..*")
    return stargan.Layout(channels=last[0], labels=first[1] - last[0], width=first[0], blocks=len(blocks))


def _critic(shapes: Shapes) -> stargan.CriticLayout:
    convolutions = _convolutions(shapes, "main.")
    layers = _depth(len(convolutions), 1)
    labels, _, sees, _ = shapes["conv2.weight"]
    return stargan.CriticLayout(
        channels=convolutions[0][1], labels=labels, width=convolutions[0][0], layers=layers, side=sees * 2**layers
    )


def _patch_network(layout: patch.Layout) -> patch.PatchDiscriminator:
    return patch.PatchDiscriminator(**asdict(layout))


def _norm(shapes: Shapes, place: str) -> resnet.Norm:
    return "batch" if len(shapes.get(f"{place}.weight", ())) == 1 else "instance"


# Layouts in words.


def _resnet_words(layout: resnet.Layout) -> str:
    whose = "CUT" if layout.antialias_down or layout.antialias_up else "CycleGAN"
    whose = "genkit" if layout.residual else whose
    extra = [] if layout.halvings == 2 else [f"{layout.halvings} halving{'s' if layout.halvings > 1 else ''}"]
    if layout.antialias_down or layout.antialias_up:
        both = layout.antialias_down and layout.antialias_up
        extra.append("antialiased" if both else f"antialiased {'down' if layout.antialias_down else 'up'} only")
    extra += ["adding to its picture"] if layout.residual else []
    return _sentence(f"{whose} ResNet generator", layout, f"{layout.blocks} blocks", *extra)


def _unet_words(layout: unet.Layout) -> str:
    return _sentence(f"pix2pix U-Net generator for multiples of {2**layout.downs} px", layout)


def _sentence(what: str, layout: resnet.Layout | unet.Layout, *more: str) -> str:
    parts = [what, *more, f"{layout.width} channels", f"{layout.norm} norm"]
    parts.append("dropout" if layout.dropout else "no dropout")
    if (layout.channels_in, layout.channels_out) != (3, 3):
        parts.append(f"from {layout.channels_in} to {layout.channels_out} planes")
    return ", ".join(parts)


def _patch_words(layout: patch.Layout) -> str:
    end = ", antialiased" if layout.antialias else ""
    return (
        f"PatchGAN discriminator, {layout.layers} layers, {layout.width} channels, {layout.norm} norm, "
        f"{layout.channels} planes in{end}"
    )


def _pixel_words(layout: pixel.Layout) -> str:
    return f"pixel discriminator, {layout.width} channels, {layout.norm} norm, {layout.channels} planes in"


def _stargan_words(layout: stargan.Layout) -> str:
    return f"StarGAN generator, {layout.labels} labels, {layout.blocks} blocks, {layout.width} channels"


def _critic_words(layout: stargan.CriticLayout) -> str:
    return f"StarGAN discriminator for {layout.side} px, {layout.labels} labels, {layout.width} channels"


KINDS = {
    kind.name: kind
    for kind in (
        Kind("unet", ("model.model.0.weight",), _unet, unet.UnetGenerator, _unet_words, unseen=("dropout",)),
        Kind("resnet", ("model.1.weight",), _resnet, resnet.ResnetGenerator, _resnet_words, unseen=("residual",)),
        Kind("patch", ("model.0.weight",), _patch, _patch_network, _patch_words, generates=False),
        Kind("pixel", ("net.0.weight",), _pixel, pixel.PixelDiscriminator, _pixel_words, generates=False),
        Kind("stargan-critic", STARGAN_HEADS, _critic, stargan.StarganDiscriminator, _critic_words, generates=False),
        Kind("stargan", ("main.0.weight",), _stargan, stargan.StarganGenerator, _stargan_words),
    )
}


def kind_of(names: Collection[str]) -> Kind | None:
    """The kind whose telling tensors are all among these names."""
    return next((kind for kind in KINDS.values() if all(name in names for name in kind.telling)), None)
