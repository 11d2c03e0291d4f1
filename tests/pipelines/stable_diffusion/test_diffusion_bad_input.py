"""Bad input on the command line: one clear line on stderr, status 2, nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import painting_kit as kit
import pytest


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    kit.photo().save(folder / "photo.png")
    kit.mask(32, 32, (0, 0, 9, 9)).save(folder / "small-mask.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "words.txt").write_text("no picture")
    return folder


@pytest.fixture
def refuse(sd: Path, run: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The one line that arguments are refused with."""
    monkeypatch.chdir(pictures)
    out = tmp_path / "out"

    def call(*arguments: Any, model: Any = sd, prompt: str = "a red apple") -> str:
        done = run("stable-diffusion", "--model", model, "--prompt", prompt, *arguments, "-o", out / "a.png")
        assert done.status == 2, done
        assert done.out == ""
        assert not out.exists() or not list(out.iterdir())
        assert done.err.startswith("genkit: ")
        assert done.err.count("\n") == 1
        assert len(done.err) < 600
        return done.err

    return call


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--width", 100), "width 100 is not a multiple of 8 px"),
        (("--height", 1), "height '1' is out of range: it must be 8 to 8192 px"),
        (("--width", "1e99"), "width '1e99'"),
        (("--width", "nan"), "width 'nan'"),
        (("--width", 10**30), "width"),
        (("--strength", 0.5), "strength is for changing a picture, and image is missing"),
        (("--strength", 1.5, "-i", "photo.png"), "strength '1.5' is out of range: it must be 0 to 1"),
        (("--strength", 0.01, "-i", "photo.png", "--num-inference-steps", 20), "strength 0.01 leaves none of 20 steps"),
        (("--mask-image", "small-mask.png"), "mask_image is for changing a picture, and image is missing"),
        (("-i", "photo.png", "--mask-image", "small-mask.png"), "mask_image has 32x32 px and image 64x64"),
        (("-i", "nowhere.png"), "image 'nowhere.png' does not exist"),
        (("-i", "words.txt"), "'words.txt' is not a picture that is known"),
        (("-i", "broken.png"), "'broken.png': the PNG picture is damaged"),
        (("-i", "photo.png", "--expand", 4, "--expand", 4), "expand has 2 margins"),
        (("-i", "photo.png", "--expand", -4), "expand[0] '-4' is out of range"),
        (("--guidance-scale", "nan"), "guidance_scale 'nan' is not a finite number"),
        (("--guidance-scale", "1e999"), "guidance_scale '1e999' is not a finite number"),
        (("--num-inference-steps", 0), "num_inference_steps '0' is out of range"),
        (("--num-images-per-prompt", 10**9), "num_images_per_prompt '1000000000' is out of range"),
        (("--scheduler", "eulr"), "did you mean 'euler'?"),
        (("--scheduler", "x" * 100_000), "is too long"),
        (("--seed", -1), "seed '-1' is out of range"),
        (("--clip-skip", 9), "clip_skip 9"),
        (("--best-of", 4), "best_of needs CLIP to judge by"),
        (("--upscale", 4, "--width", 8192, "--height", 8192), "(1074 megapixels) is over the limit of 100"),
        (("--lora", "nowhere.safetensors"), "nowhere.safetensors"),
        (("--image-prompt", "{"), "image_prompt"),
        (("--control", '{"model": "x", "image": "nowhere.png"}'), "control[0]"),
    ],
)
def test_one_line_says_it(refuse: Callable[..., str], arguments: tuple[Any, ...], message: str) -> None:
    assert message in refuse(*arguments)


def test_a_prompt_of_a_megabyte(refuse: Callable[..., str]) -> None:
    assert "is too long: 1000000 characters, of 10000 at most" in refuse(prompt="apple " * 166_666 + "snow")


def test_a_prompt_that_hides_something(refuse: Callable[..., str]) -> None:
    assert "holds the control character U+202E" in refuse(prompt="a red \u202eapple")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nowhere/at/all.safetensors", "does not exist"),
        ("sd-1.55", "did you mean"),
        ("words.txt", "words.txt"),
        ("some-org/some-model", "some-org/some-model"),  # of the hub, and there is no network
    ],
)
def test_a_model_that_is_none(refuse: Callable[..., str], model: str, message: str) -> None:
    assert message in refuse(model=model)


def test_a_mask_for_a_model_that_needs_one(refuse: Callable[..., str], inpainting: Path) -> None:
    assert "is a model for inpainting: give image with mask_image or expand" in refuse(model=inpainting)
