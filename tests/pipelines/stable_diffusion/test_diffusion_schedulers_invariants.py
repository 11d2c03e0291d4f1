"""For every scheduler: a picture does not depend on its batch, comes out again the same, and is diffusers' own."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import painting_kit as kit
import pytest

from pipelines.stable_diffusion import schedulers

CLOSE = 1e-5
ALONE = 1.6e-5
STEPS = 4
SPACED = ("dpm++ 2m karras", "euler exponential", "unipc beta", "euler a sgm uniform")


def _skip_what_is_not_there(name: str) -> None:
    if name.startswith("dpm++ sde") and importlib.util.find_spec("torchsde") is None:
        pytest.skip("needs torchsde")


@pytest.mark.parametrize("name", [*schedulers.SCHEDULERS, *SPACED])
def test_a_picture_is_its_single_run_and_that_of_diffusers(name: str, sd: Path) -> None:
    _skip_what_is_not_there(name)
    painter = kit.loaded(sd)
    params: dict[str, Any] = {"prompt": kit.PROMPT, "num_inference_steps": STEPS, "scheduler": name}
    told: list[int] = []
    batch = painter(**params, seed=5, num_images_per_prompt=3, progress=lambda step, total, **_: told.append(step))
    assert sorted(set(told)) == list(range(told[0], STEPS + 1))
    for i in range(3):
        assert kit.apart(kit.floats(batch)[i : i + 1], kit.floats(painter(**params, seed=5 + i))) <= ALONE
    assert np.array_equal(kit.floats(batch), kit.floats(painter(**params, seed=5, num_images_per_prompt=3)))

    pipe = kit.plain(sd, "StableDiffusionPipeline")
    before = pipe.scheduler
    pipe.scheduler = schedulers.make(name, before.config, seeds=[5, 6, 7])
    try:
        theirs = pipe([kit.PROMPT] * 3, num_inference_steps=STEPS, generator=kit.generators(5, 6, 7), output_type="np")
    finally:
        pipe.scheduler = before
    assert kit.apart(kit.floats(batch), theirs.images) <= CLOSE


@pytest.mark.parametrize("name", ["euler", "heun", "lcm"])
def test_so_it_is_for_flow_matching(name: str, sd3: Path) -> None:
    painter = kit.loaded(sd3)
    params: dict[str, Any] = {"prompt": kit.PROMPT, "num_inference_steps": STEPS, "scheduler": name}
    batch = painter(**params, seed=5, num_images_per_prompt=2)
    for i in range(2):
        assert kit.apart(kit.floats(batch)[i : i + 1], kit.floats(painter(**params, seed=5 + i))) <= ALONE


@pytest.mark.parametrize("name", ["euler a", "dpm++ 2m sde", "ddpm", "lcm", "heun"])
def test_so_it_is_where_a_picture_is_changed(name: str, sd: Path) -> None:
    painter = kit.loaded(sd)
    params: dict[str, Any] = {"prompt": kit.PROMPT, "image": kit.photo(), "strength": 0.6, "num_inference_steps": 5}
    batch = painter(**params, scheduler=name, seed=5, num_images_per_prompt=2)
    for i in range(2):
        alone = painter(**params, scheduler=name, seed=5 + i)
        assert kit.apart(kit.floats(batch)[i : i + 1], kit.floats(alone)) <= ALONE
