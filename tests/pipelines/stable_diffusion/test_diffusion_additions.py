"""Everything beside a model at once, through the command line, and back to the bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import additions_kit as kit
import numpy as np
import pytest
import torch

from genkit.media.image import Image
from pipelines.stable_diffusion.additions.applying import Additions


class Files:
    """An addition of each kind for one model, and a picture for those that take one."""

    def __init__(self, home: Path, additions: Additions) -> None:
        model = additions.model
        self.lora = kit.kohya_file(home / "lora.safetensors", kit.pairs(model, "sd"), 2.0)
        self.embedding = kit.saved(home / "wonder.safetensors", {"emb_params": torch.randn(2, 32)})
        kit.controlnet(model).save_pretrained(home / "control")
        self.adapter = kit.ip_adapter(home / "adapter.safetensors", model)
        self.picture = home / "picture.png"
        Image.from_tensor(torch.rand(3, 64, 64)).save(self.picture)
        self.control = {"model": str(home / "control"), "image": str(self.picture), "weight": 0.5}
        self.image_prompt = {"model": str(self.adapter), "image": str(self.picture)}


@pytest.fixture(scope="module")
def additions(seeing: Path) -> Additions:
    return Additions(kit.load(seeing))


@pytest.fixture(scope="module")
def files(additions: Additions, tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("all"), additions)


def test_all_of_them_together_leave_nothing(additions: Additions, seeing: Path, files: Files) -> None:
    plain = kit.made(Additions(kit.load(seeing)))
    request = {
        "lora": f"{files.lora}:0.5",
        "embedding": str(files.embedding),
        "control": files.control,
        "image_prompt": files.image_prompt,
        "seamless": "both",
    }
    together = kit.made(additions, "a red wonder", **request)
    for missing in request:
        others = {name: value for name, value in request.items() if name != missing}
        assert not torch.allclose(kit.made(additions, "a red wonder", **others), together, atol=0.01), missing
    assert torch.equal(kit.made(additions), plain)
    assert torch.equal(kit.made(additions, "a red wonder", **request), together)


@pytest.fixture
def command(run: Callable[..., Any], seeing: Path, tmp_path: Path) -> Callable[..., Any]:
    """command("--lora", ...) -> the finished command, its picture at `tmp_path / "out.png"`."""

    def call(*more: Any) -> Any:
        words = ("--prompt", "a red wonder", "--model", seeing, "--num-inference-steps", 2, "--seed", 3)
        return run("stable-diffusion", *words, "--dtype", "float32", "-o", tmp_path / "out.png", *more)

    return call


def test_on_the_command_line(command: Callable[..., Any], files: Files, tmp_path: Path) -> None:
    def shown(*more: Any) -> np.ndarray:
        (tmp_path / "out.png").unlink(missing_ok=True)
        done = command(*more)
        assert done.status == 0, done.err
        return np.asarray(Image.open(tmp_path / "out.png").pil)

    plain = shown()
    ways = {
        "lora": f"{files.lora}:0.5",
        "embedding": files.embedding,
        "control": json.dumps(files.control),
        "image-prompt": json.dumps(files.image_prompt),
        "seamless": "x",
    }
    for name, value in ways.items():
        assert not np.array_equal(shown(f"--{name}", value), plain), name


def test_it_is_remembered_and_made_again(
    command: Callable[..., Any], run: Callable[..., Any], files: Files, tmp_path: Path
) -> None:
    assert command("--lora", f"{files.lora}:0.5", "--control", json.dumps(files.control)).status == 0
    done = run("rerun", tmp_path / "out.png", "-o", tmp_path / "again.png")
    assert done.status == 0, done.err
    first, second = (Image.open(tmp_path / name) for name in ("out.png", "again.png"))
    assert first.digest() == second.digest()


def test_what_cannot_be_is_one_line(command: Callable[..., Any], files: Files, tmp_path: Path) -> None:
    refused = {
        ("--lora", tmp_path / "none.safetensors"): "does not exist",
        ("--lora", files.embedding): "is no LoRA",
        ("--lora", f"{files.lora}:nan"): "lora",
        ("--embedding", files.lora): "is no textual inversion",
        ("--control", json.dumps({**files.control, "model": str(files.lora)})): "is no ControlNet",
        ("--control", json.dumps({**files.control, "wieght": 1})): "'wieght': did you mean 'weight'?",
        (
            "--control",
            json.dumps({**files.control, "weight": 99}),
        ): "control[0].weight 99 is out of range: it must be 0",
        ("--control", json.dumps({**files.control, "image": "none.png"})): "control[0].image 'none.png' does not exist",
        ("--image-prompt", json.dumps({"model": "x"})): "image_prompt.image is missing",
        ("--image-prompt", json.dumps({**files.image_prompt, "model": str(files.lora)})): "is no IP-Adapter",
        ("--best-of", "2", "--clip", files.lora.parent): "is no CLIP model",
    }
    for words, reason in refused.items():
        done = command(*words)
        lines = [line for line in done.err.splitlines() if line.strip()]
        assert done.status == 2, done.err
        assert reason in lines[-1]
        assert "Traceback" not in done.err
        assert not (tmp_path / "out.png").exists()
