"""What a checkpoint of a run holds: from a trainer to files, and back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from genkit._version import __version__
from genkit.errors import ModelError
from genkit.training import checkpoint, randomness
from genkit.training.recipe import differences

if TYPE_CHECKING:
    from genkit.training.checkpoint import Checkpoint
    from genkit.training.trainer import Trainer

__all__ = ["fill", "info", "restore", "restore_weights"]


def info(trainer: Trainer) -> dict[str, Any]:
    """The manifest: JSON values."""
    return {
        "step": trainer.step,
        "position": trainer.position,
        "processes": trainer.processes,
        "best": trainer.best,
        "ema_updates": trainer.average.updates if trainer.average else 0,
        "task": f"{type(trainer.task).__module__}:{type(trainer.task).__qualname__}",
        "recipe": trainer.record(),
        "versions": {"genkit": __version__, "torch": torch.__version__, "python": sys.version.split()[0]},
    }


def fill(trainer: Trainer, folder: Path) -> None:
    """Writes this process's files of a checkpoint; the main one's are the most."""
    task = trainer.task
    own = {"random": randomness.state(trainer.device), "task": task.state_dict()}
    checkpoint.write_state(folder / f"process-{trainer.rank}.pt", own)
    if not trainer.main:
        return
    for name, module in task.modules.items():
        checkpoint.write_tensors(folder / "modules" / f"{name}.safetensors", module.state_dict())
    if trainer.average:
        checkpoint.write_tensors(folder / "ema.safetensors", trainer.average.weights)
    state = {
        "optimizers": {name: optimizer.state_dict() for name, optimizer in task.optimizers.items()},
        "schedules": {name: schedule.state_dict() for name, schedule in task.schedules.items()},
        "scaler": trainer.gradients.scaler.state_dict(),
    }
    checkpoint.write_state(folder / "optimizers.pt", state)


def restore(trainer: Trainer, found: Checkpoint) -> None:
    """Takes everything back, and says what of the recipe has changed. Raises ModelError where it does not fit."""
    for line in differences(found.info["recipe"], trainer.record()):
        trainer.say(f"the recipe has changed: {line}")
    restore_weights(trainer, found)
    _restore_optimizers(trainer, found)
    trainer.step, trainer.position, trainer.best = found.step, found.info["position"], found.info["best"]
    if found.info["processes"] != trainer.processes:
        trainer.say(
            f"written by {found.info['processes']} process(es), now {trainer.processes}: random states, image pools "
            "and memories begin anew, so the numbers will not be the same"
        )
        return
    own = found.state(f"process-{trainer.rank}.pt")
    trainer.task.load_state_dict(own["task"])
    randomness.restore(own["random"], trainer.device)


def restore_weights(trainer: Trainer, found: Checkpoint) -> None:
    """Weights and averages only: what an export needs."""
    for name, module in trainer.task.modules.items():
        _load_module(module, found, name)
    if trainer.average and found.has("ema.safetensors"):
        trainer.average.load(found.tensors("ema.safetensors"), found.info["ema_updates"])
    elif trainer.average:
        trainer.say("the checkpoint holds no averaged weights; averaging begins from its weights")
        trainer.average.restart()


def _restore_optimizers(trainer: Trainer, found: Checkpoint) -> None:
    state = found.state("optimizers.pt")
    task = trainer.task
    try:
        for name, optimizer in task.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        for name, schedule in task.schedules.items():
            schedule.load_state_dict(state["schedules"][name])
    except (KeyError, ValueError) as error:
        raise ModelError(f"{found.path} does not fit the recipe's optimisers: {error}; start anew with --out") from None
    if state["scaler"]:  # empty if that run was not in fp16
        trainer.gradients.scaler.load_state_dict(state["scaler"])


def _load_module(module: nn.Module, found: Checkpoint, name: str) -> None:
    file = f"modules/{name}.safetensors"
    if not found.has(file):
        raise ModelError(f"{found.path} has no module {name!r}; it belongs to another task ({found.info['task']})")
    try:
        module.load_state_dict(found.tensors(file))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{found.path} does not fit the recipe's network: {reason}; start anew with --out") from None
