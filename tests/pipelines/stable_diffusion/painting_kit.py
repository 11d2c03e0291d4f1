"""What the tests of generating share: pipelines loaded once, plain diffusers beside them, pictures and masks."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

import genkit
from genkit.pipeline import Output

STEPS = 3
PROMPT = "a red apple"


@functools.cache
def loaded(folder: Path, dtype: str = "float32") -> Any:
    """genkit's pipeline around a model, in the exact mode."""
    return genkit.load("stable-diffusion", model=folder, device="cpu", dtype=dtype)


@functools.cache
def plain(folder: Path, name: str) -> Any:
    """diffusers' own pipeline of that class, as anybody would load it."""
    import diffusers

    pipe = getattr(diffusers, name).from_pretrained(folder, use_safetensors=True, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def floats(output: Output) -> np.ndarray:
    """[B, H, W, 3] in 0..1."""
    return np.stack([image.deep for image in output.images])


def apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference of two batches of pictures in 0..1."""
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max())


def photo(width: int = 64, height: int = 64, seed: int = 0) -> PIL.Image.Image:
    """A picture with soft shapes and some noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    waves = np.stack([np.sin(9 * x + k) * np.cos(7 * y - k) for k in range(3)], 2)
    return PIL.Image.fromarray(np.uint8(np.clip(127 + 90 * waves + rng.normal(0, 9, waves.shape), 1, 254)))


def mask(width: int = 64, height: int = 64, box: Sequence[int] = (16, 16, 48, 48)) -> PIL.Image.Image:
    """White in a box (left, top, right, bottom), black elsewhere."""
    made = PIL.Image.new("L", (width, height), 0)
    made.paste(255, tuple(box))
    return made
