"""Fits a model and its pictures into the memory there is, and says how.

Of a device that is not the CPU, in this order: the whole model; its parts in turn (diffusers' model offload); its
layers in turn (group offload), which is slow and fits nearly always. What is chosen follows from the sizes of the
parts, the size of the picture and what is free, before anything is moved. A picture too large to be decoded at once is
decoded in tiles.

Where memory runs out all the same for a single picture, pictures of its size and more are decoded in tiles; then the
next placement is taken (`Painter.relieve`). Slices are no step of this: pictures are decoded one by one before it comes
to that, and torch's attention never holds the whole matrix of weights that slicing would cut up.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import nn

from genkit.errors import DeviceError
from genkit.runtime import Runtime

__all__ = ["Placement", "check", "choose", "decoding", "follow", "lower", "move", "parts_of", "tile_side", "tiled"]

Placement = Literal["whole", "parts", "layers"]
ORDER: tuple[Placement, ...] = ("whole", "parts", "layers")
WORDS: Mapping[str, str] = {
    "whole": "the whole model is on {device}",
    "parts": "the parts of the model take turns on {device}, which has {free} free for {total}: slower",
    "layers": "the layers of the model take turns on {device}, which has {free} free for {total}: much slower",
}
COPIES = 4.5
"""Of its widest output the decoder holds so many copies at work, by the peaks of Stable Diffusion 1's."""
SHARE = 0.85
"""Of free memory that is counted on: the rest goes to gaps, kernels, and other programs."""
SMALLEST = 64
"""px of a tile."""
RESERVE = 2**29
"""Bytes that a GPU's libraries take for themselves."""
STATE = ("_all_hooks", "_offload_gpu_id", "_offload_device")
"""What a pipeline of diffusers' knows about its offloading."""


def parts_of(pipe: Any) -> dict[str, int]:
    """Bytes of each network of a pipeline, by name."""
    networks = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    return {
        name: sum(t.numel() * t.element_size() for t in (*network.parameters(), *network.buffers()))
        for name, network in networks.items()
    }


def decoding(vae: Any, width: int, height: int) -> int:
    """Bytes that the decoder takes for one picture of this size, px, beside its weights."""
    widths = vae.config.block_out_channels
    widest = max(
        widths[0], widths[min(1, len(widths) - 1)]
    )  # the last block begins with the channels of the one before
    return math.ceil(COPIES * widest * width * height * vae.dtype.itemsize)


def choose(parts: Mapping[str, int], work: int, free: int) -> Placement:
    """How parts of these sizes, and work beside them, go into `free`, all in bytes."""
    room = SHARE * free - work - RESERVE
    if sum(parts.values()) <= room:
        return "whole"
    return "parts" if max(parts.values()) <= room else "layers"


def check(name: str, need: int, runtime: Runtime) -> None:
    """Raises DeviceError where a model's weights, in bytes, are more than this machine has room for."""
    free = Runtime(torch.device("cpu")).free_memory()
    if need > free:
        remedy = (
            "--dtype bfloat16 halves that; or name a smaller model"
            if runtime.dtype.itemsize == 4
            else ("free some, or name a smaller model")
        )
        raise DeviceError(f"model {name} takes {_gb(need)} of memory, and {_gb(free)} are free: {remedy}")


def move(pipe: Any, runtime: Runtime, placement: Placement) -> str:
    """Puts a pipeline where it is to run; says in words where that is."""
    words = WORDS[placement].format(
        device=runtime.device, free=_gb(runtime.free_memory()), total=_gb(sum(parts_of(pipe).values()))
    )
    if placement == "whole":
        pipe.to(runtime.device)
        if runtime.device.type == "cuda":
            for name in ("unet", "vae"):
                if getattr(pipe, name, None) is not None:
                    getattr(pipe, name).to(memory_format=torch.channels_last)
    elif placement == "parts":
        pipe.enable_model_cpu_offload(device=runtime.device)
    else:
        pipe.remove_all_hooks()
        pipe.to("cpu")
        streams = runtime.device.type == "cuda"
        pipe.enable_group_offload(runtime.device, offload_type="leaf_level", use_stream=streams)
    return words


def lower(placement: Placement) -> Placement | None:
    """What takes less memory than this; None for what takes least."""
    place = ORDER.index(placement) + 1
    return ORDER[place] if place < len(ORDER) else None


def follow(pipe: Any, first: Any) -> None:
    """Lets a pipeline around another's networks know how these are offloaded."""
    for name in STATE:
        if hasattr(first, name):
            setattr(pipe, name, getattr(first, name))


def tile_side(vae: Any, width: int, height: int) -> int | None:
    """px of the tiles that a picture of this size is cut into: the autoencoder's own, for a picture that is no larger
    half of its longer side; None where there are none."""
    if not hasattr(vae, "tile_latent_min_size"):
        return None
    own, scale = _own_side(vae), _scale(vae)
    side = min(own, max(width, height) // 2) // scale * scale
    return side if side >= SMALLEST else None


@contextlib.contextmanager
def tiled(vae: Any, runtime: Runtime, width: int, height: int, ran_out: bool = False) -> Iterator[str]:
    """While this is open, pictures of this size, px, are decoded (and encoded) in tiles where memory needs it, or has
    run out before.

    Gives what there is to say about it. Tiles overlap and are blended: the result is close to that of one piece.
    """
    need, side = decoding(vae, width, height), tile_side(vae, width, height)
    enough = need <= SHARE * runtime.free_memory() and not ran_out
    if enough or side is None or vae.use_tiling:
        yield ""
        return
    own = vae.tile_sample_min_size, vae.tile_latent_min_size
    vae.tile_sample_min_size, vae.tile_latent_min_size = side, side // _scale(vae)
    vae.enable_tiling()
    try:
        yield f"decoded in tiles of {side} px: {width}x{height} px in one piece takes {_gb(need)}, more than there was"
    finally:
        vae.disable_tiling()
        vae.tile_sample_min_size, vae.tile_latent_min_size = own


def _own_side(vae: Any) -> int:
    side = vae.tile_sample_min_size
    return side if isinstance(side, int) else side[0]


def _scale(vae: Any) -> int:
    """px to a latent."""
    return _own_side(vae) // vae.tile_latent_min_size


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
