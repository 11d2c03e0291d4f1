"""Published checkpoints made at random: the names and shapes of each layout, written down without the networks.

The places are those of the authors' own sequences, counted by hand; `test_translation_recognise.py` holds them against
the list of real keys where ../shared is beside the checkout.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


def convolution(name: str, out: int, into: int, kernel: int, *, bias: bool = True, transposed: bool = False) -> Shapes:
    weight = (into, out, kernel, kernel) if transposed else (out, into, kernel, kernel)
    return {f"{name}.weight": weight, **({f"{name}.bias": (out,)} if bias else {})}


def statistics(name: str, width: int) -> Shapes:
    return {
        f"{name}.running_mean": (width,),
        f"{name}.running_var": (width,),
        f"{name}.num_batches_tracked": (),
    }


def batch_norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,), **statistics(name, width)}


def normed(name: str, width: int, norm: str) -> Shapes:
    """What a normalisation leaves in a file: "instance" nothing, "old" (before PyTorch 0.4) statistics nobody reads."""
    return {"instance": {}, "old": statistics(name, width), "batch": batch_norm(name, width)}[norm]


def resnet(
    width: int = 64,
    blocks: int = 9,
    norm: str = "instance",
    *,
    dropout: bool = False,
    antialias: bool = False,
    into: int = 3,
    out: int = 3,
) -> Shapes:
    bias, w = norm != "batch", width
    found: Shapes = {**convolution("model.1", w, into, 7, bias=bias), **normed("model.2", w, norm)}
    at = 4
    for c in (2 * w, 4 * w):
        found |= {**convolution(f"model.{at}", c, c // 2, 3, bias=bias), **normed(f"model.{at + 1}", c, norm)}
        at += 3
        if antialias:
            found[f"model.{at}.filt"] = (c, 1, 3, 3)
            at += 1
    second = 6 if dropout else 5
    for _ in range(blocks):
        for place in (1, second):
            name = f"model.{at}.conv_block."
            found |= convolution(f"{name}{place}", 4 * w, 4 * w, 3, bias=bias)
            found |= normed(f"{name}{place + 1}", 4 * w, norm)
        at += 1
    for c in (2 * w, w):
        if antialias:
            found[f"model.{at}.filt"] = (2 * c, 1, 4, 4)
            at += 1
        found |= convolution(f"model.{at}", c, 2 * c, 3, bias=bias, transposed=not antialias)
        found |= normed(f"model.{at + 1}", c, norm)
        at += 3
    return found | convolution(f"model.{at + 1}", out, w, 7)


def unet(width: int = 64, downs: int = 8, norm: str = "batch", *, into: int = 3, out: int = 3) -> Shapes:
    bias = norm != "batch"
    widths = [min(2**level, 8) * width for level in range(downs)]
    found: Shapes = convolution("model.model.0", width, into, 4, bias=bias)
    name = "model.model"
    for level in range(1, downs):
        name += ".1.model" if level == 1 else ".3.model"
        inner, outer = widths[level], widths[level - 1]
        found |= convolution(f"{name}.1", inner, outer, 4, bias=bias)
        last = level == downs - 1
        up = 3 if last else 5
        found |= {} if last else normed(f"{name}.2", inner, norm)
        found |= convolution(f"{name}.{up}", outer, inner if last else 2 * inner, 4, bias=bias, transposed=True)
        found |= normed(f"{name}.{up + 1}", outer, norm)
    return found | convolution("model.model.3", out, 2 * width, 4, transposed=True)


def patch(
    channels: int = 3, width: int = 64, norm: str = "instance", *, layers: int = 3, antialias: bool = False
) -> Shapes:
    bias = norm != "batch"
    found: Shapes = convolution("model.0", width, channels, 4)
    at, c = 2, width
    for layer in range(1, layers + 1):
        if antialias:
            found[f"model.{at}.filt"] = (c, 1, 3, 3)
            at += 1
        to = min(2**layer, 8) * width
        found |= {**convolution(f"model.{at}", to, c, 4, bias=bias), **normed(f"model.{at + 1}", to, norm)}
        at, c = at + 3, to
    return found | convolution(f"model.{at}", 1, c, 4)


def pixel(channels: int = 6, width: int = 64, norm: str = "batch") -> Shapes:
    bias = norm != "batch"
    found = {**convolution("net.0", width, channels, 1), **convolution("net.2", 2 * width, width, 1, bias=bias)}
    return found | normed("net.3", 2 * width, norm) | convolution("net.5", 1, 2 * width, 1, bias=bias)


def stargan(labels: int = 5, width: int = 64, blocks: int = 6) -> Shapes:
    def step(name: str, number: int, out: int, into: int, kernel: int, transposed: bool = False) -> Shapes:
        weight = convolution(f"{name}.{number}", out, into, kernel, bias=False, transposed=transposed)
        return weight | batch_norm(f"{name}.{number + 1}", out)  # instance norm here, with the same tensors

    w = width
    found = step("main", 0, w, 3 + labels, 7) | step("main", 3, 2 * w, w, 4) | step("main", 6, 4 * w, 2 * w, 4)
    for block in range(9, 9 + blocks):
        found |= step(f"main.{block}.main", 0, 4 * w, 4 * w, 3) | step(f"main.{block}.main", 3, 4 * w, 4 * w, 3)
    at = 9 + blocks
    found |= step("main", at, 2 * w, 4 * w, 4, True) | step("main", at + 3, w, 2 * w, 4, True)
    return found | convolution(f"main.{at + 6}", 3, w, 7, bias=False)


def stargan_critic(labels: int = 5, width: int = 64, layers: int = 6, side: int = 128) -> Shapes:
    found: Shapes = {}
    c = 3
    for layer in range(layers):
        to = width * 2**layer
        found |= convolution(f"main.{2 * layer}", to, c, 4)
        c = to
    return (
        found
        | convolution("conv1", 1, c, 3, bias=False)
        | convolution("conv2", labels, c, side // 2**layers, bias=False)
    )


class Case(NamedTuple):
    """A published layout: the shapes at full size, how many values are trained, and what it is recognised as."""

    shapes: Callable[..., Shapes]
    options: Mapping[str, object]
    parameters: int
    kind: str
    words: str


CASES = {
    "cyclegan 9": Case(
        resnet, {}, 11_378_179, "resnet", "CycleGAN ResNet generator, 9 blocks, 64 channels, instance norm, no dropout"
    ),
    "cyclegan 6": Case(
        resnet,
        {"blocks": 6},
        7_837_699,
        "resnet",
        "CycleGAN ResNet generator, 6 blocks, 64 channels, instance norm, no dropout",
    ),
    "dropout": Case(
        resnet,
        {"dropout": True},
        11_378_179,
        "resnet",
        "CycleGAN ResNet generator, 9 blocks, 64 channels, instance norm, dropout",
    ),
    "batch": Case(
        resnet,
        {"norm": "batch"},
        11_383_427,
        "resnet",
        "CycleGAN ResNet generator, 9 blocks, 64 channels, batch norm, no dropout",
    ),
    "batch dropout": Case(
        resnet,
        {"norm": "batch", "dropout": True},
        11_383_427,
        "resnet",
        "CycleGAN ResNet generator, 9 blocks, 64 channels, batch norm, dropout",
    ),
    "before 0.4": Case(
        resnet,
        {"norm": "old"},
        11_378_179,
        "resnet",
        "CycleGAN ResNet generator, 9 blocks, 64 channels, instance norm, no dropout",
    ),
    "cut": Case(
        resnet,
        {"antialias": True},
        11_378_179,
        "resnet",
        "CUT ResNet generator, 9 blocks, antialiased, 64 channels, instance norm, no dropout",
    ),
    "unet 256": Case(
        unet,
        {},
        54_413_955,
        "unet",
        "pix2pix U-Net generator for multiples of 256 px, 64 channels, batch norm, dropout",
    ),
    "unet 256 instance": Case(
        unet,
        {"norm": "instance"},
        54_409_603,
        "unet",
        "pix2pix U-Net generator for multiples of 256 px, 64 channels, instance norm, no dropout",
    ),
    "unet 128": Case(
        unet,
        {"downs": 7},
        41_828_995,
        "unet",
        "pix2pix U-Net generator for multiples of 128 px, 64 channels, batch norm, dropout",
    ),
    "stargan": Case(stargan, {}, 8_430_528, "stargan", "StarGAN generator, 5 labels, 6 blocks, 64 channels"),
    "cyclegan D": Case(
        patch, {}, 2_764_737, "patch", "PatchGAN discriminator, 3 layers, 64 channels, instance norm, 3 planes in"
    ),
    "pix2pix D": Case(
        patch,
        {"channels": 6, "norm": "batch"},
        2_768_705,
        "patch",
        "PatchGAN discriminator, 3 layers, 64 channels, batch norm, 6 planes in",
    ),
    "cut D": Case(
        patch,
        {"antialias": True},
        2_764_737,
        "patch",
        "PatchGAN discriminator, 3 layers, 64 channels, instance norm, 3 planes in, antialiased",
    ),
    "pixel D": Case(pixel, {}, 9_024, "pixel", "pixel discriminator, 64 channels, batch norm, 6 planes in"),
    "stargan D": Case(
        stargan_critic, {}, 44_762_048, "stargan-critic", "StarGAN discriminator for 128 px, 5 labels, 64 channels"
    ),
}
GENERATORS = [name for name, case in CASES.items() if case.kind in ("resnet", "unet", "stargan")]


def blank(shapes: Shapes) -> dict[str, Tensor]:
    """Tensors of these shapes that take no memory."""
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def drawn(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Tensors of these shapes, drawn so that a network made of them keeps its values in range."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            found[name] = torch.tensor(7)
        elif name.endswith("running_var"):
            found[name] = values.abs() + 0.5
        elif len(shape) == 4:
            found[name] = values / (shape[1] * shape[2] * shape[3]) ** 0.5
        else:
            found[name] = 0.2 * values + (1.0 if name.endswith("weight") else 0.0)
    return found


def thin(name: str, width: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """A published layout at random with few channels."""
    case = CASES[name]
    return drawn(case.shapes(width=width, **case.options), seed)


def listed(path: Path) -> Iterator[tuple[str, int, Shapes]]:
    """Title, number of parameters and shapes of each section of `checkpoint_keys.md`."""
    for section in path.read_text("utf-8").split("\n### ")[1:]:
        title, _, text = section.partition("\n")
        count = re.search(r"params ([\d,]+)", text)
        assert count is not None
        rows = re.findall(r"^ {4}(\S+) \(([\d, ]*)\)$", text, re.MULTILINE)
        yield (
            title,
            int(count[1].replace(",", "")),
            {key: tuple(int(n) for n in shape.split(",") if n.strip()) for key, shape in rows},
        )
