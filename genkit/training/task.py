"""What a training task is. The trainer knows no task; a task knows nothing of devices, processes or files.

A task is a class named in its pipeline's `trainings` ("style-fast" -> "pipelines.style_transfer.train.fast:StyleFast"):

    class Denoise(Task):
        class Config(TaskConfig):
            data: Folders = Field(description="Pictures to learn from.")
            rate: float = Field(1e-3, gt=0, le=1, description="Learning rate.")

        def __init__(self, config, setup):
            super().__init__(config, setup)
            net = UNet()
            self.modules = {"net": net}                              # trained, saved, averaged
            self.frozen = {"vgg": features()}                        # moved to the device, eval, never saved
            self.optimizers = {"net": torch.optim.Adam(net.parameters(), config.rate)}
            self.schedules = {"net": LambdaLR(self.optimizers["net"], ...)}   # stepped with their optimiser

        def dataset(self):
            return ImageFolder(self.config.data, size=256, setup=self.setup)  # any map-style dataset

        def step(self, batch, trainer):
            loss = F.l1_loss(self.modules["net"](noisy(batch)), batch)
            trainer.backward(loss, "net")
            trainer.update("net")
            return {"loss": loss}

        def export(self, folder):
            save_file(..., folder / "net.safetensors")

The rules, which are what makes a resumed run equal to one that never stopped:
- Items: the trainer indexes the dataset with a `Draw`: an int that also carries `seed` and `epoch`. An item is a pure
  function of it; randomness comes from `draw.generator()`, seeded by (seed, epoch, index), so resuming needs only a
  position. `sampler()` says which items make the batch at a position (default: every item once an epoch, shuffled).
- Randomness inside `step` (diffusion noise, dropout) comes from torch's, numpy's or Python's global generators. They
  are seeded by the trainer and saved, one set for each process.
- What else must survive (image pools, Transformer-XL memory) goes through `state_dict`/`load_state_dict`: tensors,
  numbers, strings, lists and dicts of them; saved for each process. Tensors come back on the CPU.

`trainer.backward(loss, *names)` adds gradients to the parameters of the named optimisers only (of all if none is
named), so a generator's loss leaves no trace in its discriminator, and needs no `requires_grad` dance.
`trainer.update(*names)` averages over processes, clips, steps the optimisers and their schedules and zeroes the
gradients; inside an accumulation it waits for the last batch. Losses are means over the batch. `step` runs under the
run's autocast, modules in train mode; `trainer.step` is its number (from 0), `trainer.device` its device.

`validate`, `sample` and `export` run with averaged weights (if the recipe has `ema`), in eval mode, without gradients,
in the main process only, and leave the random generators as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from genkit.training.data import Sampler, Shuffled
from genkit.training.recipe import Folder, Folders, TaskConfig

if TYPE_CHECKING:
    from genkit.training.trainer import Trainer

__all__ = ["Folder", "Folders", "Setup", "Task", "TaskConfig"]


@dataclass(frozen=True)
class Setup:
    """What the trainer tells a task about the run."""

    device: torch.device
    seed: int = 0
    steps: int = 1
    """Optimiser steps of the whole run, for schedules."""
    batch_size: int = 1
    """Items a batch over all processes."""
    rank: int = 0
    processes: int = 1
    strict: bool = False
    """Unreadable data files are an error instead of being left out."""
    say: Callable[[str], None] = lambda text: None
    """Prints a note to the person who runs this."""


class Task:
    """One thing to train. See the module's docstring for the rules."""

    Config: ClassVar[type[TaskConfig]] = TaskConfig
    best: ClassVar[tuple[str, str] | None] = None
    """The number of `validate` that tells the best checkpoint, and "min" or "max"."""

    modules: dict[str, nn.Module]
    frozen: dict[str, nn.Module]
    optimizers: dict[str, Optimizer]
    schedules: dict[str, LRScheduler]
    averaged: tuple[str, ...] | None = None
    """The modules that `ema` averages; None for all."""

    def __init__(self, config: Any, setup: Setup) -> None:
        self.config = config
        self.setup = setup
        self.modules, self.frozen, self.optimizers, self.schedules = {}, {}, {}, {}

    def dataset(self) -> Any:
        """Something with `len()` that is indexed by a `Draw`. Built once, before anything is trained."""
        raise NotImplementedError(f"{type(self).__name__} has no dataset()")

    def sampler(self, dataset: Any) -> Sampler:
        """Which items make the batch at a position; `Lanes` for data whose order matters."""
        return Shuffled(len(dataset), self.setup.batch_size, self.setup.seed)

    def collate(self, items: list[Any]) -> Any:
        """Makes a batch of items, on the CPU."""
        return torch.utils.data.default_collate(items)

    def step(self, batch: Any, trainer: Trainer) -> Mapping[str, float | Tensor]:
        """One training step on a batch that is on the device. Returns the numbers to log."""
        raise NotImplementedError(f"{type(self).__name__} has no step()")

    def state_dict(self) -> dict[str, Any]:
        """What must survive besides modules, optimisers and schedules."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""

    def validate(self) -> dict[str, float]:
        """Numbers on held-out data."""
        return {}

    def sample(self) -> dict[str, Any]:
        """Pictures ([3, H, W] tensors or Image), sounds (Audio) or pieces (Midi) to look at and hear, by name."""
        return {}

    def export(self, folder: Path) -> None:
        """Writes the trained model into an empty folder, as its pipeline loads it."""
        from safetensors.torch import save_file

        for name, module in self.modules.items():
            tensors = {key: value.detach().cpu().clone() for key, value in module.state_dict().items()}
            save_file(tensors, folder / f"{name}.safetensors")
