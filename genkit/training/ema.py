"""A moving average of weights, with a warm-up so that the first random weights are soon forgotten."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["Average"]


class Average:
    """Averages the parameters of modules: at update t (from 1), a <- d a + (1 - d) w, d = min(decay, (1+t) / (10+t)).

    The ramp is TensorFlow's `ExponentialMovingAverage(num_updates=t)`. The average begins at the weights rather than at
    zero, so there is no bias to correct, and the ramp soon forgets them. Averages are float32 whatever the weights are.
    Buffers (batch statistics) are the module's own.
    """

    def __init__(self, modules: Mapping[str, nn.Module], decay: float) -> None:
        self.modules, self.decay, self.updates = dict(modules), decay, 0
        self.weights = {
            f"{name}.{key}": parameter.detach().clone().float() for name, key, parameter in self._parameters()
        }

    def _parameters(self) -> Iterator[tuple[str, str, nn.Parameter]]:
        for name, module in self.modules.items():
            for key, parameter in module.named_parameters():
                yield name, key, parameter

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages = list(self.weights.values())
        weights = [parameter.detach().float() for _, _, parameter in self._parameters()]
        torch._foreach_lerp_(averages, weights, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The modules hold the averages inside, and exactly their own weights again after."""
        kept = []
        for name, key, parameter in self._parameters():
            kept.append((parameter, parameter.data))
            parameter.data = self.weights[f"{name}.{key}"].to(parameter.dtype)
        try:
            yield
        finally:
            for parameter, data in kept:
                parameter.data = data

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor], updates: int) -> None:
        self.updates = updates
        for name, average in self.weights.items():
            average.copy_(weights[name])

    def restart(self) -> None:
        """Begins anew from the modules' present weights."""
        self.load({f"{name}.{key}": parameter.detach() for name, key, parameter in self._parameters()}, 0)
