"""Small folders of pictures; LoRA and textual inversion by their shipped recipes, at debug size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import runs_kit
import torch
from PIL import Image
from torch import Tensor

from genkit.training.trainer import Trainer

SETTINGS: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 3.0, "height": 64, "width": 64}


def pictures(folder: Path, count: int = 3, *, seed: int = 0, captions: bool = True) -> Path:
    """Pictures 0.png, ... of 40 px: a patch of one colour on another, and what they show in metadata.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(count):
        rng = np.random.default_rng((seed, i))
        picture = np.tile(rng.integers(0, 255, 3), (40, 40, 1))
        picture[10:30, 5 + 3 * i : 25 + 3 * i] = rng.integers(0, 255, 3)
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": ("red apple", "green fox", "the snow")[i % 3]}))
    if captions:
        (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def trainer(recipe: str, out: Path, *settings: str, **more: Any) -> Trainer:
    """A trainer of a recipe of this pipeline; see `runs_kit.trainer`."""
    return runs_kit.trainer(f"stable_diffusion/{recipe}", out, *settings, **more)


def painted(pipe: Any, prompt: str) -> Tensor:
    """One picture [3, 64, 64] in 0..1 by diffusers alone, of a few steps, at seed 5."""
    pipe.set_progress_bar_config(disable=True)
    return pipe(prompt, generator=torch.Generator().manual_seed(5), output_type="pt", **SETTINGS).images[0]


def weights_of(pipe: Any) -> dict[str, Tensor]:
    """A copy of every weight of a model, by component and name."""
    modules = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {f"{name}.{key}": t.clone() for name, part in modules.items() for key, t in part.state_dict().items()}
