"""The tiny tasks of tests/training/plugin, and a trainer made in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "plugin"))


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., Any]:
    """trainer(kind, out, steps=..., ...) -> Trainer: a recipe of the given values, in a folder under tmp_path."""
    from genkit.training.recipe import TrainRecipe
    from genkit.training.trainer import Trainer

    def make(kind: type, out: str = "run", /, *, progress: Any = None, say: Any = None, **values: Any) -> Trainer:
        defaults = {"train": "test", "name": "test", "steps": 10, "batch_size": 4, "seed": 3, "log_every": 1}
        recipe = TrainRecipe.parse({**defaults, **values})
        more = {"progress": progress} if progress else {}
        return Trainer(kind, recipe, tmp_path / out, device="cpu", say=say or (lambda text: None), **more)

    return make
