"""From losses to weights: whose gradients a loss makes, and when an optimiser steps on them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from genkit.errors import InputError

__all__ = ["Gradients"]


class Gradients:
    """Accumulation, gradient scaling (fp16), averaging over processes, clipping, schedules, for several optimisers.

    One scaler serves all optimisers and moves once a step, so every loss of a step is scaled alike.
    """

    def __init__(
        self,
        optimizers: dict[str, Optimizer],
        schedules: dict[str, LRScheduler],
        *,
        device: torch.device,
        fp16: bool = False,
        accumulate: int = 1,
        clip: float | None = None,
        processes: int = 1,
    ) -> None:
        self.optimizers, self.schedules = optimizers, schedules
        self.device, self.accumulate, self.clip, self.processes = device, accumulate, clip, processes
        self.scaler = torch.amp.GradScaler(device.type, enabled=fp16)
        self.parameters = {
            name: [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
            for name, optimizer in optimizers.items()
        }
        self.norms: dict[str, Tensor] = {}
        """Norm of each optimiser's gradient before clipping, if there is clipping."""
        self._micro = 0
        self._updated: set[str] = set()
        self._stepped = False  # the optimiser being stepped did step
        self._dirty = False  # some optimiser was updated since the scale last moved
        for optimizer in optimizers.values():
            # GradScaler.step leaves the step out when a gradient has overflowed, and does not say so.
            optimizer.register_step_post_hook(self._note_step)

    def begin(self, micro: int) -> None:
        """A step's batch number `micro`, from 0."""
        self._micro, self._updated = micro, set()

    def backward(self, loss: Tensor, names: tuple[str, ...], *, retain_graph: bool) -> None:
        inputs = [p for name in names or self.optimizers for p in self.parameters[name]]
        with torch.autocast(self.device.type, enabled=False):
            scaled = self.scaler.scale(loss / self.accumulate)
            # With `inputs`, autograd neither computes nor stores gradients of anything else.
            scaled.backward(inputs=inputs, retain_graph=retain_graph)

    def update(self, names: tuple[str, ...]) -> None:
        for name in names or self.optimizers:
            if name in self._updated:
                if self.accumulate > 1:
                    raise InputError(f"this task updates {name!r} several times a step, which needs `accumulate: 1`")
                self.scaler.update()  # it allows an optimiser one step between two of its own
            self._updated.add(name)
            if self._micro == self.accumulate - 1:
                self._update(name)

    def finish(self) -> bool:
        """After a step's last batch: moves the scale. True if anything was updated."""
        dirty, self._dirty = self._dirty, False
        if dirty:
            self.scaler.update()
        return dirty

    def _update(self, name: str) -> None:
        optimizer, parameters = self.optimizers[name], self.parameters[name]
        if self.processes > 1:
            average(parameters, self.processes)
        if all(p.grad is None for p in parameters):
            return
        if self.clip is not None:
            self.scaler.unscale_(optimizer)
            self.norms[name] = nn.utils.clip_grad_norm_(parameters, self.clip)
        self._stepped = False
        self.scaler.step(optimizer)
        self._dirty = True
        torch.clear_autocast_cache()  # it holds the old weights in 16 bits, for the rest of the step
        optimizer.zero_grad(set_to_none=True)
        if self._stepped and name in self.schedules:
            self.schedules[name].step()

    def _note_step(self, *_: object) -> None:
        self._stepped = True


def average(parameters: list[nn.Parameter], processes: int) -> None:
    """Averages gradients over processes, in one message. A parameter that has none in any process keeps none."""
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    used = torch.tensor([float(p.grad is not None) for p in parameters], device=grads[0].device)
    flat = torch.cat([*(grad.flatten().float() for grad in grads), used])
    torch.distributed.all_reduce(flat)
    means = flat[: -len(used)].split([grad.numel() for grad in grads])
    for p, grad, mean, count in zip(parameters, grads, means, flat[-len(used) :].tolist(), strict=True):
        p.grad = (mean / processes).view_as(grad).to(grad.dtype) if count else None
