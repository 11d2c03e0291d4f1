"""The trainer: a loop around a task's step that can be stopped anywhere and goes on as if it had not been.

Choices made here:
- Accelerate finds the device and joins the processes (`accelerate launch -m genkit train RECIPE`). Modules are not wrapped
  in DistributedDataParallel: gradients are averaged when an optimiser is updated, in one message. So a task may call its
  modules as often, in whatever order and by whatever method it likes (GANs, memories, several losses), and a step is the
  same sum on any number of processes.
- `backward(loss, "g")` adds gradients to the named optimisers' parameters and to nothing else.
- One gradient scaler (fp16) serves all optimisers and moves once a step.
- What is logged is the loss of that very step, averaged over its batches and processes, so that two runs compare exactly.
- Everything random in validation, samples and export happens on the side: training sees the same numbers with or without.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, send_to_device
from torch import Tensor, nn

from genkit._version import __version__
from genkit.errors import GenkitError, InputError
from genkit.pipeline import Progress, silent
from genkit.runtime import Runtime
from genkit.training import checkpoint as checkpoints
from genkit.training.data import batches
from genkit.training.ema import Average
from genkit.training.log import Log, Ticker
from genkit.training.recipe import TrainRecipe, differences
from genkit.training.stopping import Stop, Stopped, locked
from genkit.training.task import Setup, Task

__all__ = ["Result", "Trainer"]

DTYPES = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    step: int
    finished: bool
    best: dict[str, Any] | None = None
    """{"step", "name", "value"} of the best validation."""
    exported: Path | None = None


class Trainer:
    """Trains one task by one recipe in one folder.

    task: the class; config: its validated Config, or the values of one; out: the run's folder; progress: called after each step;
    say: prints notes. Raises InputError, MediaError or DeviceError before anything is trained.
    """

    def __init__(
        self,
        task: type[Task],
        recipe: TrainRecipe,
        out: str | Path,
        *,
        config: Any = None,
        device: str | None = None,
        progress: Progress = silent,
        say: Callable[[str], None] = _tell,
    ) -> None:
        self.recipe, self.out, self.progress = recipe, Path(out), progress
        runtime = Runtime.pick(device=device, deterministic=recipe.deterministic)
        self.state = PartialState(cpu=runtime.device.type == "cpu")
        self.processes, self.rank, self.main = (
            self.state.num_processes,
            self.state.process_index,
            self.state.is_main_process,
        )
        self.device = runtime.device if self.processes == 1 else self.state.device
        self.say = say if self.main else lambda text: None
        self._check_recipe()
        _seed(recipe.seed)
        setup = Setup(
            self.device,
            recipe.seed,
            recipe.steps,
            recipe.batch_size,
            self.rank,
            self.processes,
            recipe.strict,
            self.say,
        )
        self.config = config if config is not None else task.Config.parse(recipe.task)
        self.task = task(self.config, setup)
        self.dataset = self.task.dataset()
        self.sampler = self.task.sampler(self.dataset)
        self._place()
        # One set of generators for each process: the same weights to begin with, but noise of its own.
        _seed(recipe.seed + 1 + self.rank)
        self.step = 0
        """Optimiser steps done; inside `Task.step`, the number of the step being done."""
        self.position = 0
        """Batches drawn."""
        self.best: dict[str, Any] | None = None
        self.average = Average(self._averaged(), recipe.ema) if recipe.ema is not None else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.precision == "fp16")
        self._parameters = {
            name: [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
            for name, optimizer in self.task.optimizers.items()
        }
        self._micro = 0
        self._updated: set[str] = set()
        self._norms: dict[str, Tensor] = {}

    # What a task's step calls.

    def backward(self, loss: Tensor, *names: str, retain_graph: bool = False) -> None:
        """Adds the gradients of `loss` (a mean over the batch) to the parameters of the named optimisers, or of all."""
        inputs = [p for name in names or self.task.optimizers for p in self._parameters[name]]
        with torch.autocast(self.device.type, enabled=False):
            scaled = self.scaler.scale(loss / self.recipe.accumulate)
            scaled.backward(inputs=inputs, retain_graph=retain_graph)

    def update(self, *names: str) -> None:
        """Steps the named optimisers, or all, on what `backward` gathered; within an accumulation, waits for its last batch."""
        for name in names or self.task.optimizers:
            if name in self._updated and self.recipe.accumulate > 1:
                raise InputError(f"this task updates {name!r} several times a step, which needs `accumulate: 1`")
            if name in self._updated:
                self.scaler.update()
            if self.recipe.accumulate == 1:
                self._updated.add(name)
            if self._micro == self.recipe.accumulate - 1:
                self._updated.add(name)
                self._update(name)

    def _update(self, name: str) -> None:
        optimizer, parameters = self.task.optimizers[name], self._parameters[name]
        if self.processes > 1:
            _average_gradients(parameters, self.processes)
        if self.recipe.clip is not None:
            self.scaler.unscale_(optimizer)
            self._norms[name] = nn.utils.clip_grad_norm_(parameters, self.recipe.clip)
        stepped = []
        hook = optimizer.register_step_post_hook(lambda *_: stepped.append(True))
        self.scaler.step(optimizer)  # leaves the step out if a gradient overflowed
        hook.remove()
        optimizer.zero_grad(set_to_none=True)
        if stepped and name in self.task.schedules:
            self.task.schedules[name].step()

    # The run.

    def train(self, *, resume: bool = False, max_minutes: float | None = None) -> Result:
        """Trains to the recipe's last step, or until `max_minutes` are over, and exports the result.

        resume: goes on from the newest checkpoint, if there is one. Raises Stopped (exit status 130 or 143) at the first step
        after SIGINT or SIGTERM, once a checkpoint is saved; GenkitError when the loss is no longer a number.
        """
        deadline = time.monotonic() + 60 * max_minutes if max_minutes is not None else math.inf
        with locked(self.out) if self.main else contextlib.nullcontext(), Stop() as stop:
            if not self._begin(resume):
                return Result(self.step, True, self.best)
            log = Log(self.out, step=self.step, say=self.say) if self.main else None
            try:
                return self._loop(log, stop, deadline)
            finally:
                if log:
                    log.close()

    def _loop(self, log: Log | None, stop: Stop, deadline: float) -> Result:
        recipe, ticker = self.recipe, Ticker(self.step)
        self._batches = self._from(self.position)
        self._mode(True)
        while self.step < recipe.steps:
            numbers = self._advance()
            last = self.step == recipe.steps
            if last or self.step % recipe.log_every == 0:
                self._report(numbers, ticker, log)
            self.progress(self.step, recipe.steps, note=self._note)
            improved = self._validate(log) if self._due(recipe.validate_every, last) else False
            if log and self._due(recipe.sample_every, last):
                with self._aside():
                    log.samples(self.step, self.task.sample())
            ended = self._ended(stop, deadline)
            if last or improved or ended or self.step % recipe.checkpoint.every == 0:
                self.save()
            if ended and not last:
                return self._stopped(stop)
        return Result(self.step, True, self.best, self.export())

    def _advance(self) -> dict[str, Tensor]:
        """One optimiser step. Returns its numbers, averaged over its batches, still on the device."""
        sums: dict[str, Tensor] = {}
        self._updated, self._norms = set(), {}
        dtype = DTYPES[self.recipe.precision]
        for self._micro in range(self.recipe.accumulate):
            batch = send_to_device(next(self._batches), self.device)
            with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
                numbers = self.task.step(batch, self)
            for name, value in numbers.items():
                value = (
                    torch.as_tensor(value).detach().to(self.device, torch.float64 if self._doubles else torch.float32)
                )
                sums[name] = sums[name] + value if name in sums else value
            self.position += 1
        if self._updated and self.scaler.is_enabled():
            self.scaler.update()
        if self.processes > 1:
            self._share_buffers()
        if self.average and self._updated:
            self.average.update()
        self.step += 1
        return {name: value / self.recipe.accumulate for name, value in sums.items()}

    @property
    def _doubles(self) -> bool:
        return self.device.type != "mps"  # which has no float64

    def _due(self, every: int | None, last: bool) -> bool:
        return every is not None and (last or self.step % every == 0)

    def _from(self, position: int) -> Iterator[Any]:
        return batches(
            self.dataset,
            self.sampler,
            start=position,
            rank=self.rank,
            processes=self.processes,
            workers=self.recipe.workers,
            collate=self.task.collate,
        )

    _note = ""

    def _report(self, numbers: dict[str, Tensor], ticker: Ticker, log: Log | None) -> None:
        """Logs a step's numbers; raises GenkitError if one is not finite."""
        values = {f"train/{name}": value for name, value in self._over_processes(numbers).items()}
        bad = next((name for name, value in values.items() if not math.isfinite(value)), None)
        if bad:
            raise GenkitError(
                f"{bad} is {values[bad]} at step {self.step}; lower the learning rate or set `clip`, and go on from the last "
                "checkpoint with --resume"
            )
        rate = ticker.tick(self.step)
        words = [f"{name.removeprefix('train/')} {value:.4g}" for name, value in values.items()]
        self._note = f"{', '.join(words[:4])}, {rate:.3g} it/s"
        for name, optimizer in self.task.optimizers.items():
            values[f"lr/{name}"] = float(optimizer.param_groups[0]["lr"])
        values |= {f"norm/{name}": float(norm) for name, norm in self._norms.items() if math.isfinite(norm)}
        if log:
            log.scalars(self.step, values)
        if not sys.stderr.isatty() and (ticker.due() or self.step == self.recipe.steps):
            left = (self.recipe.steps - self.step) / rate / 60
            self.say(f"step {self.step}/{self.recipe.steps}: {self._note}, {left:.1f} min left")

    def _over_processes(self, numbers: dict[str, Tensor]) -> dict[str, float]:
        if not numbers:
            return {}
        together = torch.stack(list(numbers.values()))
        if self.processes > 1:
            torch.distributed.all_reduce(together)
            together = together / self.processes
        return dict(zip(numbers, together.tolist(), strict=True))

    def _validate(self, log: Log | None) -> bool:
        """Validates in the main process. True if this is the best so far; then it is saved."""
        improved = False
        if log:
            with self._aside():
                numbers = {name: float(value) for name, value in self.task.validate().items()}
            if numbers:
                log.scalars(self.step, {f"valid/{name}": value for name, value in numbers.items()})
                self.say(f"step {self.step}: " + ", ".join(f"{name} {value:.4g}" for name, value in numbers.items()))
            improved = self._better(numbers)
        improved, self.best = self._from_main((improved, self.best))
        return improved

    def _better(self, numbers: Mapping[str, float]) -> bool:
        if not self.task.best or self.task.best[0] not in numbers:
            return False
        name, direction = self.task.best
        value = numbers[name]
        sign = -1 if direction == "max" else 1
        if not math.isfinite(value) or (self.best and sign * value >= sign * self.best["value"]):
            return False
        self.best = {"step": self.step, "name": name, "value": value}
        return True

    def _ended(self, stop: Stop, deadline: float) -> bool:
        """Whether to stop after this step; all processes agree on it, every tenth step if there are several."""
        if self.processes == 1:
            return stop.signal is not None or time.monotonic() > deadline
        if self.step % 10:
            return False
        asked = torch.tensor(
            [float(stop.signal or 0), float(self.main and time.monotonic() > deadline)], device=self.device
        )
        torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
        signal, late = asked.tolist()
        stop.signal = int(signal) or None
        return bool(signal or late)

    def _stopped(self, stop: Stop) -> Result:
        if stop.signal is not None:
            raise Stopped(stop.signal, self.step)
        self.say(f"time is up at step {self.step} of {self.recipe.steps}; --resume goes on")
        return Result(self.step, False, self.best, self.export())

    # Starting, saving, exporting.

    def _begin(self, resume: bool) -> bool:
        """Loads the newest checkpoint, or makes the folder ready. False if the run has been finished before."""
        folder = self.out / "checkpoints"
        found = checkpoints.newest(folder, self.say) if self.main and resume else None
        self._clash = bool(not resume and self.main and checkpoints.steps(folder))
        found, clash = self._from_main((found, self._clash))
        if clash:
            raise InputError(
                f"{self.out} holds a run already; --resume goes on with it, --out starts another elsewhere"
            )
        if found:
            self.load(found)
            self.say(f"going on from {found.path} at step {self.step} of {self.recipe.steps}")
        elif resume:
            self.say(f"no checkpoint in {folder}; starting from the beginning")
        if self.step >= self.recipe.steps:
            self.say(f"this run is finished at step {self.step}; raise `steps` to train on")
            return False
        return True

    def save(self) -> Path:
        """Writes a checkpoint of this moment and removes those not to be kept. Called by every process."""
        info = {
            "step": self.step,
            "position": self.position,
            "processes": self.processes,
            "best": self.best,
            "ema_updates": self.average.updates if self.average else 0,
            "task": f"{type(self.task).__module__}:{type(self.task).__qualname__}",
            "recipe": self._record(),
            "versions": {"genkit": __version__, "torch": torch.__version__, "python": sys.version.split()[0]},
        }
        folder = self.out / "checkpoints"
        path = checkpoints.write(folder, info, self._fill, main=self.main, barrier=self.state.wait_for_everyone)
        keep = self.recipe.checkpoint
        if self.main:
            best = self.best["step"] if self.best else None
            checkpoints.prune(folder, keep_last=keep.keep_last, keep_every=keep.keep_every, best=best)
        return path

    def _fill(self, folder: Path) -> None:
        """This process's files of a checkpoint."""
        own = {"random": checkpoints.random_state(self.device), "task": self.task.state_dict()}
        checkpoints.write_state(folder / f"process-{self.rank}.pt", own)
        if not self.main:
            return
        for name, module in self.task.modules.items():
            checkpoints.write_tensors(folder / "modules" / f"{name}.safetensors", module.state_dict())
        if self.average:
            checkpoints.write_tensors(folder / "ema.safetensors", self.average.weights)
        checkpoints.write_state(
            folder / "optimizers.pt",
            {
                "optimizers": {name: optimizer.state_dict() for name, optimizer in self.task.optimizers.items()},
                "schedules": {name: schedule.state_dict() for name, schedule in self.task.schedules.items()},
                "scaler": self.scaler.state_dict(),
            },
        )

    def load(self, found: checkpoints.Checkpoint) -> None:
        """Takes everything back from a checkpoint. Raises ModelError if it does not fit this recipe's task."""
        for line in differences(found.info["recipe"], self._record()):
            self.say(f"the recipe has changed: {line}")
        for name, module in self.task.modules.items():
            _load_module(module, found, name)
        if self.average and found.has("ema.safetensors"):
            self.average.load(found.tensors("ema.safetensors"), found.info["ema_updates"])
        state = found.state("optimizers.pt")
        for name, optimizer in self.task.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        for name, schedule in self.task.schedules.items():
            schedule.load_state_dict(state["schedules"][name])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.position, self.best = found.step, found.info["position"], found.info["best"]
        if found.info["processes"] == self.processes:
            own = found.state(f"process-{self.rank}.pt")
            self.task.load_state_dict(own["task"])
            checkpoints.restore_random_state(own["random"], self.device)
        else:
            self.say(
                f"written by {found.info['processes']} process(es), now {self.processes}: random states and the task's own "
                "state (image pools, memories) begin anew, so the numbers will not be the same"
            )

    def export(self) -> Path | None:
        """Writes what the pipeline loads into OUT/export, from the averaged weights if there are any."""
        if not self.main:
            return None
        final, temporary, old = (self.out / name for name in ("export", ".export.tmp", ".export.old"))
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)
        temporary.mkdir(parents=True)
        with self._aside():
            self.task.export(temporary)
        if final.exists():
            final.rename(old)
        temporary.rename(final)
        shutil.rmtree(old, ignore_errors=True)
        return final

    # Small things.

    def _record(self) -> dict[str, Any]:
        """The recipe as JSON values, without what `debug` would lay over it."""
        record = self.recipe.model_dump(mode="json", exclude={"debug", "task"})
        return {**record, "task": self.config.model_dump(mode="json")}

    def _check_recipe(self) -> None:
        if self.recipe.batch_size % self.processes:
            raise InputError(f"batch_size {self.recipe.batch_size} is not divisible by {self.processes} processes")
        if self.recipe.precision == "fp16" and self.device.type == "cpu":
            raise InputError('precision "fp16" needs a GPU; use "bf16" or "no" on a CPU')

    def _averaged(self) -> dict[str, nn.Module]:
        names = self.task.averaged if self.task.averaged is not None else tuple(self.task.modules)
        return {name: self.task.modules[name] for name in names}

    def _place(self) -> None:
        for module in self.task.modules.values():
            module.to(self.device)
        for module in self.task.frozen.values():
            module.to(self.device).eval().requires_grad_(False)

    def _mode(self, training: bool) -> None:
        for module in self.task.modules.values():
            module.train(training)

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """Averaged weights, eval mode, no gradients, and random generators that are put back."""
        state = checkpoints.random_state(self.device)
        modes = {name: module.training for name, module in self.task.modules.items()}
        _seed(self.recipe.seed)
        self._mode(False)
        try:
            with torch.no_grad(), self.average.applied() if self.average else contextlib.nullcontext():
                yield
        finally:
            for name, module in self.task.modules.items():
                module.train(modes[name])
            checkpoints.restore_random_state(state, self.device)

    def _from_main(self, value: Any) -> Any:
        """The main process's value, in every process."""
        return broadcast_object_list([value])[0] if self.processes > 1 else value

    def _share_buffers(self) -> None:
        """Batch statistics are the main process's, in every process, as in DistributedDataParallel."""
        for module in self.task.modules.values():
            for buffer in module.buffers():
                torch.distributed.broadcast(buffer, 0)


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _load_module(module: nn.Module, found: checkpoints.Checkpoint, name: str) -> None:
    from genkit.errors import ModelError

    file = f"modules/{name}.safetensors"
    if not found.has(file):
        raise ModelError(f"{found.path} has no module {name!r}; it belongs to another task ({found.info['task']})")
    try:
        module.load_state_dict(found.tensors(file))
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()[:160] if "\n" in str(error) else str(error)[:160]
        raise ModelError(f"{found.path / file} does not fit the recipe's network: {reason}") from None


def _average_gradients(parameters: list[nn.Parameter], processes: int) -> None:
    """Averages gradients over processes in one message. A parameter that no process has a gradient for keeps none."""
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    used = torch.tensor([float(p.grad is not None) for p in parameters], device=grads[0].device)
    flat = torch.cat([*(grad.flatten().float() for grad in grads), used])
    torch.distributed.all_reduce(flat)
    count = len(parameters)
    used = flat[-count:] > 0
    for p, grad, mean, any_used in zip(
        parameters, grads, flat[:-count].split([grad.numel() for grad in grads]), used.tolist(), strict=True
    ):
        p.grad = (mean / processes).view_as(grad).to(grad.dtype) if any_used else None
