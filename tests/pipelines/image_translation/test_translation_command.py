"""The command and the recipes: a stranger's checkpoint in one line, and files that can be made again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import tifffile
import translating_kit

from genkit import shipped

RECIPES = [name for name in shipped.recipes() if name.startswith("image_translation/")]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a picture, and models as people have them."""
    monkeypatch.chdir(tmp_path)
    translating_kit.pixels(90, 75).save("horse.png")
    (tmp_path / "horse2zebra").mkdir()
    translating_kit.old_file(tmp_path / "horse2zebra/latest_net_G.pth", "cyclegan")
    translating_kit.old_file(tmp_path / "pix2pix.pth", "unet")
    translating_kit.own_file(tmp_path / "own.safetensors", "residual")
    return tmp_path


def saved(path: str) -> np.ndarray:
    with PIL.Image.open(path) as picture:
        return np.asarray(picture)


def test_a_stranger_gets_their_picture_with_one_command(run: Callable[..., Any], workplace: Path) -> None:
    for model in ("horse2zebra/latest_net_G.pth", "horse2zebra", "own.safetensors"):
        done = run("image-translation", "--image", "horse.png", "--model", model, "-o", "zebra.png", "--seed", 1)
        assert (done.status, done.out) == (0, "zebra.png\n"), done
        assert saved("zebra.png").shape == (90, 75, 3)
        assert saved("zebra.png").std() > 5
    assert sorted(path.name for path in workplace.glob("*.png")) == ["horse.png", "zebra.png"]


@pytest.mark.parametrize(
    "more",
    [
        ["-m", "horse2zebra"],
        ["-m", "pix2pix.pth"],
        ["-m", "pix2pix.pth", "--tile", 64],
        ["-m", "own.safetensors", "--size", 48, "--background", "#336699"],
    ],
    ids=lambda words: " ".join(map(str, words)),
)
def test_it_can_be_made_again(run: Callable[..., Any], workplace: Path, more: list[Any]) -> None:
    with PIL.Image.open("horse.png") as picture:
        picture.putalpha(100)
        picture.save("glass.png")
    for source in ("horse.png", "glass.png"):
        assert run("image-translation", "-i", source, *more, "-o", "made.png").status == 0
        done = run("rerun", "--check", "made.png", "-q")
        assert (done.status, done.out) == (0, "identical\n"), done


def test_sixteen_bits_can_be_made_again(run: Callable[..., Any], workplace: Path) -> None:
    deep = (translating_kit.picture(40, 48).permute(1, 2, 0).numpy() * 65535).astype(np.uint16)
    tifffile.imwrite("deep.tif", deep, photometric="rgb")
    assert run("image-translation", "-i", "deep.tif", "-m", "own.safetensors", "-o", "made.tif").status == 0
    assert tifffile.imread("made.tif").dtype == np.uint16
    done = run("rerun", "--check", "made.tif", "-q")
    assert (done.status, done.out) == (0, "identical\n"), done


def test_tiles_are_told_of(run: Callable[..., Any], workplace: Path) -> None:
    done = run(
        "image-translation", "-i", "horse.png", "-m", "own.safetensors", "--tile", 64, "-o", "made.png", "--json"
    )
    assert done.status == 0
    assert '"tile": 64' in done.out
    assert "CycleGAN" in done.out or "ResNet" in done.out


def test_the_help_teaches(run: Callable[..., Any]) -> None:
    done = run("image-translation", "--help")
    for words in ("--image PICTURE", "--tile N", "--eval-norm", "latest_net_G.pth", "noto-to-blob", "Examples:"):
        assert words in done.out


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_on_a_model_of_ones_own(run: Callable[..., Any], workplace: Path, name: str) -> None:
    stages = name.endswith("there_and_back")
    models = {"stages.0.model": "horse2zebra", "stages.1.model": "own.safetensors"}
    changes = models if stages else {"model": "horse2zebra"}
    words = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    done = run("run", name, *words, "--out", "made", "--no-report", "-q", "--batch", 4)
    assert done.status == 0, done
    files = sorted(path.name for path in (workplace / "made").glob("*.png"))
    expected = {
        "image_translation/folder": ["face-blob.png"],
        "image_translation/there_and_back": ["face-there-and-back.png", "face-there.png"],
        "image_translation/checkpoint": ["apple-eval_norm-false.png", "apple-eval_norm-true.png"],
    }
    assert files == expected[name]


def test_every_recipe_opens_with_the_command_that_runs_it() -> None:
    assert len(RECIPES) == 3
    for name in RECIPES:
        lines = shipped.recipes()[name].read_text().splitlines()
        assert any(line.startswith(f"#   genkit run {name}") for line in lines[:6]), name
