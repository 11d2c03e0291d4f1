"""Trainings by their shipped recipes at debug size, and whether two runs came to the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genkit.training import loading
from genkit.training.trainer import Trainer


def trainer(recipe: str, out: Path, *settings: str, progress: Any = None, say: Any = None) -> Trainer:
    """A trainer of a shipped recipe ("stable_diffusion/vae") under --debug, with these settings laid over it."""
    loaded = loading.load(recipe, overrides=list(settings), debug=True)
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
    schedules = {name: schedule.state_dict()["_last_lr"] for name, schedule in run.task.schedules.items()}
    return state | _flat({"task": run.task.state_dict(), "optimizers": optimizers, "schedules": schedules})


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, item in pairs for k, v in _flat(item, f"{path}.{key}").items()}
    return {path: value}


def assert_the_same(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert one.keys() == two.keys()
    for key, value in one.items():
        same = torch.equal(value, two[key]) if isinstance(value, Tensor) else value == two[key]
        assert same, key
