"""Small folders of captioned pictures, and the trainings of a text-to-image model at debug size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import runs_kit
import torch
from PIL import Image
from runs_kit import assert_the_same, everything, metrics

from genkit.training.trainer import Trainer

COLOURS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (40, 60, 200), "yellow": (220, 200, 40)}


def captioned(folder: Path, *, side: int = 32, each: int = 2, shift: int = 0) -> Path:
    """Discs of four colours on white, `each` of a colour, with their metadata.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:side, :side]
    lines = []
    for number, (name, colour) in enumerate(COLOURS.items()):
        for copy in range(each):
            inside = (np.hypot(x - side / 2 - shift, y - side / 2 - copy) < side / 3)[..., None]
            picture = np.where(inside, np.array(colour), 255).astype(np.uint8)
            file = f"{number}{copy}.png"
            Image.fromarray(picture).save(folder / file)
            lines.append(json.dumps({"file_name": file, "text": f"{name} disc"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def trainer(recipe: str, out: Path, *settings: str, **more: Any) -> Trainer:
    """A trainer of a recipe of this pipeline; see `runs_kit.trainer`."""
    return runs_kit.trainer(f"stable_diffusion/{recipe}", out, *settings, **more)


def interrupted_equals_whole(recipe: str, home: Path, *settings: str, steps: int = 8) -> tuple[Trainer, Trainer]:
    """Runs a training in one go, and again killed later than its last checkpoint and gone on with; asserts that both
    come to the same in everything. Returns both."""
    settings = (*settings, f"steps={steps}", "log_every=1", f"checkpoint.every={steps // 2}")

    def stop(step: int, total: int, **_: Any) -> None:
        if step == steps // 2 + 1:
            raise KeyboardInterrupt

    whole = trainer(recipe, home / "whole", *settings)
    assert whole.train().finished
    at_the_end = everything(whole)
    try:
        trainer(recipe, home / "parts", *settings, progress=stop).train()
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError("the run was not interrupted")
    resumed = trainer(recipe, home / "parts", *settings)
    torch.rand(3)  # what happened in this process before must not matter
    assert resumed.train(resume=True).finished
    assert_the_same(at_the_end, everything(resumed))
    assert metrics(home / "whole") == metrics(home / "parts")
    return whole, resumed
