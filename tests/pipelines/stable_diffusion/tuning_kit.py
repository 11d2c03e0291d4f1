"""Small folders of pictures; LoRA and textual inversion by their shipped recipes, at debug size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genkit.training import loading
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


def trainer(recipe: str, out: Path, *settings: str, progress: Any = None, say: Any = None) -> Trainer:
    """A trainer of a shipped recipe under --debug, with these settings laid over it."""
    loaded = loading.load(f"stable_diffusion/{recipe}", overrides=list(settings), debug=True)
    more = {"progress": progress} if progress else {}
    return Trainer(
        loaded.task,
        loaded.recipe,
        out,
        config=loaded.config,
        device="cpu",
        say=say or (lambda text: None),
        **more,
    )


def metrics(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def everything(run: Trainer) -> dict[str, Any]:
    """All that a run consists of, flat."""
    state: dict[str, Any] = {"step": run.step, "position": run.position, "random": torch.get_rng_state()}
    for name, module in run.task.modules.items():
        state |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    state |= {f"ema.{key}": value for key, value in (run.average.weights if run.average else {}).items()}
    optimizers = {name: optimizer.state_dict() for name, optimizer in run.task.optimizers.items()}
    return state | _flat(optimizers, "optimizers")


def _flat(value: Any, path: str) -> dict[str, Any]:
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, item in pairs for k, v in _flat(item, f"{path}.{key}").items()}
    return {path: value}


def assert_the_same(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert one.keys() == two.keys()
    for key, value in one.items():
        same = torch.equal(value, two[key]) if isinstance(value, Tensor) else value == two[key]
        assert same, key


def painted(pipe: Any, prompt: str) -> Tensor:
    """One picture [3, 64, 64] in 0..1 by diffusers alone, of a few steps, at seed 5."""
    pipe.set_progress_bar_config(disable=True)
    return pipe(prompt, generator=torch.Generator().manual_seed(5), output_type="pt", **SETTINGS).images[0]


def weights_of(pipe: Any) -> dict[str, Tensor]:
    """A copy of every weight of a model, by component and name."""
    modules = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {f"{name}.{key}": t.clone() for name, part in modules.items() for key, t in part.state_dict().items()}
