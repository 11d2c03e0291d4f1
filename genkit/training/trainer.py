"""The trainer: a loop around a task's step that can be stopped anywhere and goes on as if it had not been.

Choices made here:
- Accelerate finds the device and joins the processes (`accelerate launch --multi_gpu -m genkit train RECIPE`).
  Modules are not wrapped in DistributedDataParallel: gradients are averaged when an optimiser is updated, in one
  message. So a task may call its modules as often, in whatever order and by whatever method it likes (GANs, memories,
  several losses), and a step is the same sum on any number of processes.
- What is logged is the loss of that very step, averaged over its batches and processes, so that two runs compare
  exactly.
- Everything random in validation, samples and export happens aside: training sees the same numbers with or without.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, send_to_device
from torch import Tensor

from genkit.errors import GenkitError, InputError
from genkit.pipeline import Progress, silent
from genkit.runtime import Runtime
from genkit.training import checkpoint, randomness, snapshot
from genkit.training.data import batches
from genkit.training.ema import Average
from genkit.training.gradients import Gradients
from genkit.training.log import Log, Ticker
from genkit.training.recipe import TrainRecipe
from genkit.training.stopping import Stop, Stopped, locked
from genkit.training.task import Setup, Task

__all__ = ["Result", "Trainer"]

DTYPES = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
LEFTOVERS = ("checkpoints", "export", "metrics.jsonl", "samples", "tensorboard")


def _to_stderr(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


@dataclass(frozen=True)
class Result:
    """How a run ended: steps done, whether they were all, the best validation {"step", "name", "value"}, the export."""

    step: int
    finished: bool
    best: dict[str, Any] | None = None
    exported: Path | None = None


class Trainer:
    """Trains one task by one recipe in one folder.

    task: the class; config: its validated Config (default: from `recipe.task`); out: the run's folder; progress: called
    after each step; say: prints notes. Reads the data's names and builds the networks, and so raises InputError,
    MediaError, ModelError or DeviceError before anything is trained or written.
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
        say: Callable[[str], None] = _to_stderr,
    ) -> None:
        self.recipe, self.out = recipe, Path(out)
        self._join(Runtime.pick(device=device, deterministic=recipe.deterministic))
        self.say = say if self.main else lambda text: None
        self.progress = progress if self.main else silent
        self.config = config if config is not None else task.Config.parse(recipe.task)
        self._build(task)
        self.step = 0
        """Optimiser steps done; inside `Task.step`, the number of the step being done, from 0."""
        self.position = 0
        """Batches drawn."""
        self.best: dict[str, Any] | None = None
        self._note = ""

    def _join(self, runtime: Runtime) -> None:
        """This process's device and place among the others."""
        self.runtime = runtime
        self.state = PartialState(cpu=runtime.device.type == "cpu")
        self.processes, self.rank = self.state.num_processes, self.state.process_index
        self.main = self.rank == 0
        self.device = runtime.device if self.processes == 1 else self.state.device
        # Talks between the CPUs, so that asking each other whether to stop does not wait for the GPUs.
        self._aside_group: Any = torch.distributed.new_group(backend="gloo") if self.processes > 1 else None
        if self.recipe.batch_size % self.processes:
            raise InputError(f"batch_size {self.recipe.batch_size} is not divisible by {self.processes} processes")
        if self.recipe.precision == "fp16" and self.device.type == "cpu":
            raise InputError("precision fp16 needs a GPU; use bf16 or no on a CPU")

    def _build(self, task: type[Task]) -> None:
        """The task on its device, its data, and what works on its weights."""
        recipe = self.recipe
        randomness.seed(recipe.seed)
        self.task = task(
            self.config,
            Setup(
                self.device,
                recipe.seed,
                recipe.steps,
                recipe.batch_size,
                self.rank,
                self.processes,
                recipe.strict,
                self.say,
            ),
        )
        self.dataset = self.task.dataset()
        self.sampler = self.task.sampler(self.dataset)
        for module in self.task.modules.values():
            module.to(self.device)
        for module in self.task.frozen.values():
            module.to(self.device).eval().requires_grad_(False)
        averaged = self.task.averaged if self.task.averaged is not None else tuple(self.task.modules)
        modules = {name: self.task.modules[name] for name in averaged}
        self.average = Average(modules, recipe.ema) if recipe.ema is not None else None
        self.gradients = Gradients(
            self.task.optimizers,
            self.task.schedules,
            device=self.device,
            fp16=recipe.precision == "fp16",
            accumulate=recipe.accumulate,
            clip=recipe.clip,
            processes=self.processes,
        )

    # What a task's step calls.

    def backward(self, loss: Tensor, *names: str, retain_graph: bool = False) -> None:
        """Adds the gradients of `loss`, a mean over the batch, to the parameters of the named optimisers, or of all."""
        self.gradients.backward(loss, names, retain_graph=retain_graph)

    def update(self, *names: str) -> None:
        """Steps the named optimisers, or all, on what `backward` gathered; in an accumulation, at its last batch."""
        self.gradients.update(names)

    # The run.

    def train(self, *, resume: bool = False, restart: bool = False, max_minutes: float | None = None) -> Result:
        """Trains to the recipe's last step, or until `max_minutes` are over, and exports the result.

        resume: goes on from the newest checkpoint, if there is one; restart: throws away an earlier run in the folder.

        Raises Stopped (exit status 130 or 143) at the first step after SIGINT or SIGTERM, once a checkpoint is saved;
        InputError if the folder holds a run and neither is given; GenkitError when a loss is no longer a number.
        """
        deadline = time.monotonic() + 60 * max_minutes if max_minutes is not None else math.inf
        with locked(self.out) if self.main else contextlib.nullcontext(), Stop() as stop, self._switches():
            if not self._begin(resume, restart):
                return Result(self.step, True, self.best, self._exported())
            log = Log(self.out, step=self.step, say=self.say) if self.main else None
            try:
                return self._loop(log, stop, deadline)
            finally:
                if log:
                    log.close()

    def _loop(self, log: Log | None, stop: Stop, deadline: float) -> Result:
        recipe, ticker = self.recipe, Ticker(self.step)
        stream = self._batches()
        for module in self.task.modules.values():
            module.train()
        while self.step < recipe.steps:
            numbers = self._advance(stream)
            last = self.step == recipe.steps
            logged = last or self.step == 1 or self.step % recipe.log_every == 0
            saved = last or self.step % recipe.checkpoint.every == 0
            if logged or saved:  # looking at a number waits for the GPU
                values = self._checked(numbers)
            if logged:
                self._report(values, ticker, log)
            self.progress(self.step, recipe.steps, note=self._note)
            improved = self._due(recipe.validate_every, last) and self._validate(log)
            if log and self._due(recipe.sample_every, last):
                with self._aside():
                    log.samples(self.step, self.task.sample())
            ended = self._ended(stop, deadline)
            if saved or improved or ended:
                self.save()
            if ended and not last:
                return self._stopped(stop)
        return Result(self.step, True, self.best, self._exported())

    def _batches(self) -> Iterator[Any]:
        return batches(
            self.dataset,
            self.sampler,
            start=self.position,
            rank=self.rank,
            processes=self.processes,
            workers=self.recipe.workers,
            pinned=self.device.type == "cuda",
            collate=self.task.collate,
        )

    def _advance(self, stream: Iterator[Any]) -> dict[str, Tensor]:
        """One optimiser step. Returns its numbers, averaged over its batches, still on the device."""
        sums: dict[str, Tensor] = {}
        dtype = DTYPES[self.recipe.precision]
        for micro in range(self.recipe.accumulate):
            self.gradients.begin(micro)
            batch = send_to_device(next(stream), self.device, non_blocking=True)
            with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
                numbers = self.task.step(batch, self)
            for name, value in numbers.items():
                value = torch.as_tensor(value, device=self.device).detach().float()
                sums[name] = sums[name] + value if name in sums else value
            self.position += 1
        updated = self.gradients.finish()
        if self.processes > 1:
            self._share_buffers()
        if self.average and updated:
            self.average.update()
        self.step += 1
        return {name: value / self.recipe.accumulate for name, value in sums.items()}

    def _share_buffers(self) -> None:
        """Batch statistics are the main process's in every process, as in DistributedDataParallel."""
        for module in self.task.modules.values():
            for buffer in module.buffers():
                torch.distributed.broadcast(buffer, 0)

    def _due(self, every: int | None, last: bool) -> bool:
        return every is not None and (last or self.step % every == 0)

    def _checked(self, numbers: dict[str, Tensor]) -> dict[str, float]:
        """A step's numbers over all processes; raises GenkitError if one is not finite."""
        values = self._over_processes(numbers)
        bad = next((name for name, value in values.items() if not math.isfinite(value)), None)
        if bad:
            raise GenkitError(
                f"{bad} is {values[bad]} at step {self.step}; set `clip` or a lower learning rate, and go on from the "
                "last checkpoint with --resume"
            )
        return values

    def _report(self, values: Mapping[str, float], ticker: Ticker, log: Log | None) -> None:
        """Logs a step's numbers."""
        words = ", ".join(f"{name} {value:.4g}" for name, value in list(values.items())[:4])
        self._note = f"{words}, {ticker.words(self.step, self.recipe.steps)}"
        if log:
            rates = {name: float(optimizer.param_groups[0]["lr"]) for name, optimizer in self.task.optimizers.items()}
            norms = {name: norm for name, norm in self.gradients.norms.items() if norm.isfinite()}
            log.scalars(
                self.step,
                {f"train/{name}": value for name, value in values.items()}
                | {f"lr/{name}": rate for name, rate in rates.items()}
                | {f"norm/{name}": float(norm) for name, norm in norms.items()},
            )

    def _over_processes(self, numbers: dict[str, Tensor]) -> dict[str, float]:
        if not numbers:
            return {}
        together = torch.stack(list(numbers.values()))
        if self.processes > 1:
            torch.distributed.all_reduce(together)
            together = together / self.processes
        return dict(zip(numbers, together.tolist(), strict=True))

    def _validate(self, log: Log | None) -> bool:
        """Validates in the main process. True, in every process, if this is the best so far."""
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
        """Whether to stop after this step; all processes agree on it."""
        asked = torch.tensor([stop.signal or 0, self.main and time.monotonic() > deadline])
        if self.processes > 1:
            torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX, group=self._aside_group)
        stop.signal = int(asked[0]) or None
        return bool(asked.any())

    def _stopped(self, stop: Stop) -> Result:
        if stop.signal is not None:
            raise Stopped(stop.signal, self.step)
        self.say(f"time is up at step {self.step} of {self.recipe.steps}; --resume goes on")
        return Result(self.step, False, self.best, self._exported())

    # Starting, saving, exporting.

    def _begin(self, resume: bool, restart: bool) -> bool:
        """Loads the newest checkpoint, or makes the folder ready. False if the run was finished before."""
        folder = self.out / "checkpoints"
        if self.main and restart:
            for name in LEFTOVERS:
                path = self.out / name
                path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)
        found = checkpoint.newest(folder, self.say) if self.main and resume else None
        clash = self.main and not resume and bool(checkpoint.steps(folder))
        found, clash = self._from_main((found, clash))
        if clash:
            raise InputError(f"{self.out} holds a run already; go on with it by --resume, or choose another by --out")
        # Generators of each process's own from here on: the same weights to begin with, but noise that differs.
        randomness.seed(self.recipe.seed + 1 + self.rank)
        if found:
            snapshot.restore(self, found)
            self.say(f"going on from {found.path} at step {self.step} of {self.recipe.steps}")
        elif resume:
            self.say(f"no checkpoint in {folder}; starting from the beginning")
        if self.step >= self.recipe.steps:
            self.say(f"this run is finished, at step {self.step}; raise `steps` to train on")
            return False
        return True

    def save(self) -> Path:
        """Writes a checkpoint of this moment and removes those that are not to be kept. Every process calls it."""
        folder, keep = self.out / "checkpoints", self.recipe.checkpoint
        path = checkpoint.write(
            folder,
            snapshot.info(self),
            lambda part: snapshot.fill(self, part),
            main=self.main,
            barrier=self.state.wait_for_everyone,
        )
        if self.main:
            best = self.best["step"] if self.best else None
            checkpoint.prune(folder, keep_last=keep.keep_last, keep_every=keep.keep_every, best=best)
        return path

    def _exported(self) -> Path | None:
        """At the end of a run, in the main process: the export of the last weights, or of the best."""
        best = self.best["step"] if self.best and self.recipe.export == "best" else None
        if best not in (None, self.step):
            return self.export(step=best)
        return self._write_export() if self.main else None

    def export(self, *, step: int | None = None) -> Path:
        """Writes OUT/export from a checkpoint: the newest complete one, or that of a step.

        The trainer holds that checkpoint's weights afterwards. Raises ModelError if there is none.
        """
        folder = self.out / "checkpoints"
        if step is None:
            found = checkpoint.newest(folder, self.say)
        else:
            found = checkpoint.examine(checkpoint.steps(folder).get(step, folder))[0]
        if found is None:
            raise InputError(f"{folder} holds no complete checkpoint{'' if step is None else f' of step {step}'}")
        snapshot.restore_weights(self, found)
        self.step = found.step
        return self._write_export()

    def _write_export(self) -> Path:
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

    def close(self) -> None:
        """Leaves the other processes. After it nothing else is trained in this process."""
        self.state.destroy_process_group()

    # Small things.

    def record(self) -> dict[str, Any]:
        """The recipe and the task's config as JSON values: what checkpoints hold."""
        record = self.recipe.model_dump(mode="json", exclude={"debug", "task"})
        return {**record, "task": self.config.model_dump(mode="json")}

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """Averaged weights, eval mode, no gradients, and random generators that are put back."""
        modes = {name: module.training for name, module in self.task.modules.items()}
        average = self.average.applied() if self.average else contextlib.nullcontext()
        with randomness.aside(self.recipe.seed, self.device), torch.no_grad(), average:
            for module in self.task.modules.values():
                module.eval()
            try:
                yield
            finally:
                for name, module in self.task.modules.items():
                    module.train(modes[name])

    @contextlib.contextmanager
    def _switches(self) -> Iterator[None]:
        """torch's global switch for deterministic operations, put back after."""
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(before or self.recipe.deterministic)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)

    def _from_main(self, value: Any) -> Any:
        """The main process's value, in every process."""
        return broadcast_object_list([value])[0] if self.processes > 1 else value
