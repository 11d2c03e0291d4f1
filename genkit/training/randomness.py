"""The global random generators: seeded, saved, restored, and set aside."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

__all__ = ["aside", "restore", "seed", "state"]


def seed(number: int) -> None:
    """Seeds Python's, NumPy's and torch's generators, on every device."""
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)


def state(device: torch.device) -> dict[str, Any]:
    """The state of every generator as plain values and tensors, which load without running code."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "device": torch.get_device_module(device).get_rng_state(device) if device.type != "cpu" else None,
    }


def restore(state: Mapping[str, Any], device: torch.device) -> None:
    """Puts back what `state` gave. A state saved on a CPU leaves a GPU's generator as it is."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["device"] is not None and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state["device"], device)


@contextlib.contextmanager
def aside(number: int, device: torch.device) -> Iterator[None]:
    """Inside, generators seeded with `number`; after, as if nothing had been drawn."""
    before = state(device)
    seed(number)
    try:
        yield
    finally:
        restore(before, device)
