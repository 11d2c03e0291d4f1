"""What diffusers' own pipelines lose, ignore or do half is refused here, put right, or told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import painting_kit as kit
import pytest

from genkit.errors import Cancelled, InputError
from genkit.runtime import Runtime
from pipelines.stable_diffusion import asking
from pipelines.stable_diffusion.pipeline import Params


@pytest.fixture
def painter(sd: Path) -> Any:
    return kit.loaded(sd)


@pytest.fixture
def few_steps(models: Path) -> Path:
    """Of the kind of LCM and Turbo: distilled to few steps."""
    import diffusion_kit
    from diffusers import LCMScheduler

    folder = models / "few-steps"
    return folder if folder.exists() else diffusion_kit.save_sd(folder, scheduler=LCMScheduler(steps_offset=1))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_inference_step": 2}, "unknown parameter 'num_inference_step': did you mean 'num_inference_steps'?"),
        ({"seeds": 1}, "unknown parameter 'seeds': did you mean 'seed'?"),
        ({"num_inference_steps": 0}, "num_inference_steps 0 is out of range: it must be 1 to 1000 steps"),
        ({"guidance_scale": float("nan")}, "guidance_scale nan is not a finite number"),
        ({"guidance_scale": float("inf")}, "guidance_scale inf is not a finite number"),
        ({"strength": 0.5}, "strength is for changing a picture, and image is missing: give one"),
        ({"mask_image": kit.mask()}, "mask_image is for changing a picture, and image is missing: give one"),
        ({"expand": 8}, "expand is for changing a picture, and image is missing: give one"),
        ({"image": kit.photo(), "expand": [8, 8]}, "expand has 2 margins: give one for all sides, or four"),
        ({"image": kit.photo(), "expand": [0]}, "expand adds nothing: give a margin over 0 px"),
        ({"image": kit.photo(), "expand": 8, "width": 64}, "width and height follow from image and expand"),
        ({"image": kit.photo(), "mask_image": kit.mask(), "upscale": 2}, "upscale would change what a mask keeps"),
        ({"best_of": 2, "num_images_per_prompt": 3}, "best_of 2 is less than num_images_per_prompt 3"),
        ({"scheduler": "eulr"}, "did you mean 'euler'?"),
        ({"prompt": "x" * 1_000_000}, "is too long: 1000000 characters, of 10000 at most"),
    ],
)
def test_it_is_refused_before_a_model_is_read(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        Params.parse({"prompt": "a", **given})
    assert message in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"width": 100}, "width 100 is not a multiple of 8 px, which this model works in: 96 and 104 are"),
        ({"height": 63, "width": 64}, "height 63 is not a multiple of 8 px, which this model works in: 56 and 64 are"),
        ({"image": kit.photo(), "strength": 0}, "strength 0 leaves none of 30 steps to change image in: raise"),
        (
            {"image": kit.photo(), "strength": 0.1, "num_inference_steps": 5},
            "strength 0.1 leaves none of 5 steps to change image in (of 10 it would leave one): raise strength",
        ),
        ({"image": kit.photo(), "strength": 1e-9}, "strength 1e-09 leaves none of 30 steps"),
        (
            {"image": kit.photo(), "mask_image": kit.mask(32, 32, (0, 0, 8, 8))},
            "mask_image has 32x32 px and image 64x64: give a mask of the picture's size",
        ),
        ({"image": kit.photo(), "mask_image": kit.mask(box=(0, 0, 0, 0))}, "mask_image is black everywhere"),
        ({"width": 8192, "height": 8192, "upscale": 4}, "32768 x 32768 px (1074 megapixels) is over the limit"),
        ({"image": kit.photo(8, 4000), "width": 512}, "512 x 256000 px (131 megapixels) is over the limit"),
        ({"image": kit.photo(2000, 2000), "expand": 4096}, "10192 x 10192 px (104 megapixels) is over the limit"),
        ({"best_of": 2}, "best_of needs CLIP to judge by"),
    ],
)
def test_it_is_refused_before_anything_is_made(painter: Any, given: dict[str, Any], message: str) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("the network was asked")

    hook = painter.painter.model.denoiser.register_forward_pre_hook(never)
    try:
        with pytest.raises(InputError) as error:
            painter(prompt="a", seed=1, **given)
    finally:
        hook.remove()
    assert message in str(error.value)


def test_memory_is_asked_for_before_it_is_taken(painter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Runtime, "free_memory", lambda self: 10**6)
    with pytest.raises(InputError, match=r"64 pictures of 64x64 px take 0\.0 GB, and 0\.0 GB are free: make fewer"):
        painter(prompt="a", num_images_per_prompt=64)


def test_a_height_alone_is_honoured(painter: Any) -> None:
    assert painter(prompt="a", height=96, num_inference_steps=1).images[0].size == (64, 96)


@pytest.mark.parametrize("guidance", [0, 1])
def test_a_negative_prompt_without_guidance_is_told(painter: Any, guidance: float) -> None:
    params = {"prompt": "a", "seed": 1, "num_inference_steps": 1, "guidance_scale": guidance}
    output = painter(**params, negative_prompt="snow")
    assert output.notes == ["negative_prompt has no effect: guidance_scale is not over 1"]
    assert np.array_equal(kit.floats(output), kit.floats(painter(**params)))
    assert painter(**params).notes == []


def test_a_model_without_negative_prompts_is_told(flux: Path) -> None:
    output = kit.loaded(flux)(prompt="a", negative_prompt="snow", seed=1, width=64, height=64)
    assert "negative_prompt has no effect: the model knows none" in output.notes
    assert output.found["num_inference_steps"] == 4


def test_a_size_far_from_the_trained_one_is_told(painter: Any) -> None:
    large = painter(prompt="a", width=128, height=128, num_inference_steps=1)
    assert large.notes == [
        "128x128 px is far from the 64x64 that the model was trained on; to make it large, use upscale"
    ]
    assert painter(prompt="a", width=128, height=64, num_inference_steps=1).notes == []


def test_a_cancelled_job_says_cancelled_and_returns_no_half_finished_picture(painter: Any) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise Cancelled("stopped by the test")

    with pytest.raises(Cancelled, match="stopped by the test"):
        painter(prompt="a", progress=stop)


def test_a_model_of_few_steps_goes_by_its_own_and_takes_as_many_as_a_strength_needs(few_steps: Path) -> None:
    painter = kit.loaded(few_steps)
    own = painter.painter.model.defaults
    assert own.num_inference_steps < 10
    output = painter(prompt="a", seed=1)
    assert (output.found["num_inference_steps"], output.found["guidance_scale"]) == (6, own.guidance_scale)
    changed = painter(prompt="a", image=kit.photo(), strength=0.1, seed=1)
    assert changed.notes == ["10 steps instead of the model's 6, of which strength 0.1 keeps one"]
    assert changed.found["num_inference_steps"] == 10


def test_guidance_for_a_model_made_without_it_is_told(flux: Path, few_steps: Path) -> None:
    model = kit.loaded(few_steps).painter.model
    free = asking.ask(Params(prompt="a", guidance_scale=7.5), model)
    assert free.notes == ()  # latent consistency has some guidance of its own: 1.5
    output = kit.loaded(flux)(prompt="a", guidance_scale=7.5, seed=1, width=64, height=64)
    assert "guidance_scale has no effect: the model was made to go without" in output.notes


def test_a_model_for_inpainting_wants_a_mask(inpainting: Path) -> None:
    for given in ({}, {"image": kit.photo()}):
        with pytest.raises(InputError, match="is a model for inpainting: give image with mask_image or expand"):
            kit.loaded(inpainting)(prompt="a", **given)
    assert kit.loaded(inpainting)(prompt="a", image=kit.photo(), expand=8, seed=1, num_inference_steps=1)


def test_strength_just_above_nothing_leaves_a_step() -> None:
    for steps in range(1, 101):
        strength = 1 / steps
        assert asking.kept_steps(asking.enough_steps(1, strength), strength) >= 1


def test_steps_that_a_sampler_cannot_take_are_refused_by_its_name(few_steps: Path) -> None:
    with pytest.raises(InputError, match="num_inference_steps 60 is too many for LCMScheduler"):
        kit.loaded(few_steps)(prompt="a", num_inference_steps=60)
