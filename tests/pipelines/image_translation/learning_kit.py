"""Small folders of pictures to learn from, and the trainings by their shipped recipes, at debug size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import runs_kit
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from genkit.training.data import open_image
from genkit.training.trainer import Trainer

GROUND, PATCH = (30, 70, 130), (220, 170, 60)  # means of red, green and blue, 25 up or down


def blobs(folder: Path, count: int, *, side: int = 40, seed: int = 0, inverted: bool = False, first: int = 0) -> Path:
    """Pictures 000.png, ...: an orange round patch on a blue ground, more or less; inverted: the negative."""
    folder.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:side, :side]
    for i in range(first, first + count):
        rng = np.random.default_rng((seed, i))
        (cx, cy), radius = rng.uniform(side / 4, 3 * side / 4, 2), rng.uniform(side / 8, side / 4)
        inside = np.clip(radius - np.hypot(x - cx, y - cy) + 0.5, 0, 1)[..., None]
        ground, patch = (rng.uniform(-25, 25, 3) + mean for mean in (GROUND, PATCH))
        picture = (1 - inside) * ground + inside * patch
        picture = 255 - picture if inverted else picture
        Image.fromarray(picture.round().astype(np.uint8)).save(folder / f"{i:03}.png")
    return folder


def trainer(recipe: str, out: Path, *settings: str, **more: Any) -> Trainer:
    """A trainer of a recipe of this pipeline; see `runs_kit.trainer`."""
    return runs_kit.trainer(f"image_translation/{recipe}", out, *settings, **more)


def loaded(folder: Path) -> Tensor:
    """The pictures of a folder, [B, 3, H, W] in -1..1."""
    return torch.stack([open_image(path).float() / 127.5 - 1 for path in sorted(folder.glob("*.png"))])


def distances_to_the_negative(recipe: str, home: Path, *settings: str) -> tuple[float, float, float]:
    """Trains on blobs and on the negatives of others; how far pictures never seen are from their negatives (L1) when an
    untrained generator translates them, when the trained one does, and as they are."""
    a, b = blobs(home / "a", 24, side=36), blobs(home / "b", 24, side=36, seed=1, inverted=True)
    small = ("width=8", "blocks=1", "discriminator_width=8", "discriminator_layers=2", "batch_size=2", "rate=0.002")
    data = (f"data.a={a}", f"data.b={b}", "held_out=0", "sample_every=null", "checkpoint.every=10000")
    run = trainer(recipe, home / "run", *data, *small, *settings)
    modules = run.task.modules
    network = modules["G"] if "G" in modules else modules["G_A"]
    held = loaded(blobs(home / "held", 8, side=32, seed=9))

    def distance() -> float:
        with torch.no_grad():
            return F.l1_loss(network(held), -held).item()

    untrained = distance()
    run.train()
    return untrained, distance(), F.l1_loss(held, -held).item()
