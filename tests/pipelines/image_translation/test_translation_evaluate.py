"""`genkit evaluate translation`, end to end on tiny networks, and the parts that its numbers come from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from learning_kit import blobs
from PIL import Image
from torch import nn
from torchvision import models
from translating_kit import own_file

from genkit import weights
from pipelines.image_translation.measuring.card import Card
from pipelines.image_translation.measuring.judge import Judge
from pipelines.image_translation.measuring.pictures import split
from pipelines.image_translation.train.pictures import held_names

COUNT, HELD = 16, 6


class Files(NamedTuple):
    a: Path
    b: Path
    model: Path
    features: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    home = tmp_path_factory.mktemp("evaluate")
    torch.manual_seed(0)
    weights.write(home / "squeeze.safetensors", models.squeezenet1_0(weights=None).state_dict(), {})
    return Files(
        blobs(home / "a", COUNT),
        blobs(home / "b", COUNT, inverted=True),
        own_file(home / "model.safetensors", "residual"),
        home / "squeeze.safetensors",
    )


def arguments(files: Files, *more: Any, **changed: Any) -> list[Any]:
    given = {"a": files.a, "b": files.b, "model": files.model, "features": files.features, "held-out": HELD}
    given |= {"size": 40} | {name.replace("_", "-"): value for name, value in changed.items()}
    return ["evaluate", "translation", *(part for k, v in given.items() for part in (f"--{k}", v)), *more]


def test_the_card(files: Files, run: Callable[..., Any], tmp_path: Path) -> None:
    grid = tmp_path / "grid.png"
    done = run(*arguments(files, "--json", back=files.model, grid=grid))
    assert done.status == 0, done.err
    found = json.loads(done.out)
    assert found["facts"]["features"] == "squeezenet1_0, 2560"
    assert found["facts"]["pictures translated"] == found["facts"]["of them with a partner"] == HELD
    assert found["facts"]["learned from of B"] == COUNT - HELD
    assert 0 <= found["facts"]["accuracy of the judge"] <= 1
    unchanged, nearest, model, true = found["translated"]
    assert [row["way"] for row in found["translated"]] == [
        "unchanged", "nearest training picture", str(files.model), "the true pictures"
    ]  # fmt: skip
    assert model["cycle L1"] > 0
    assert unchanged["cycle L1"] is nearest["cycle L1"] is true["cycle L1"] is None
    assert nearest["taken for B"] == 1, "they are pictures of B"
    assert true["FID"] < unchanged["FID"]
    assert true["KID"] < unchanged["KID"]
    with Image.open(grid) as picture:
        assert picture.size == (HELD * 40, 4 * 40)

    plain = run(*arguments(files))
    assert plain.status == 0, plain.err
    assert "nearest training picture" in plain.out
    assert "squeezenet1_0, 2560 features" in plain.err
    assert "KID is" in plain.err


def test_without_partners(files: Files, run: Callable[..., Any], tmp_path: Path) -> None:
    """Other names in b: what needs pairs is left out, and said to be."""
    other = blobs(tmp_path / "b", COUNT, inverted=True, first=COUNT)
    done = run(*arguments(files, "--json", b=other, held_out=12))
    assert done.status == 0, done.err
    found = json.loads(done.out)
    assert found["facts"]["of them with a partner"] == 0
    for row in found["translated"]:
        assert set(row) == {"way", "KID", "KID error", "FID", "KID to held-out", "taken for B", "cycle L1"}
    assert any("no picture of A has a partner" in note for note in found["notes"])


def test_some_partners_and_a_limit(files: Files, run: Callable[..., Any], tmp_path: Path) -> None:
    held = sorted(held_names((f"{i:03}" for i in range(COUNT)), HELD))
    fewer = blobs(tmp_path / "b", COUNT, inverted=True)
    (fewer / f"{held[0]}.png").rename(fewer / f"{held[0]}.txt")
    done = run(*arguments(files, "--json", b=fewer, limit=4))
    assert done.status == 0, done.err
    found = json.loads(done.out)
    assert found["facts"]["pictures translated"] == 4
    assert found["facts"]["of them with a partner"] == 3
    assert any("1 of 4 pictures have no partner" in note for note in found["notes"])


def test_the_split_is_that_of_the_trainings(files: Files) -> None:
    found = split(files.a, files.b, HELD, lambda text: None)
    names = held_names((f"{i:03}" for i in range(COUNT)), HELD)
    assert {path.stem for path in found.held_a} == {path.stem for path in found.held_b} == names
    assert not {path.stem for path in found.learned_a} & names


class Pixels(nn.Module):
    """A feature network that says what the middle of a picture is: [B, 3, H, W] -> [B, 48]."""

    name = "pixels"

    def of(self, pictures: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(pictures, 4).flatten(1)


def test_the_rows_are_what_they_say(files: Files) -> None:
    """A translator that does it right has the distances of the truth; the identity has those of the negative."""
    found = split(files.a, files.b, HELD, lambda text: None)
    card = Card.prepare(found, Pixels(), 40, None, lambda *args, **more: None)  # type: ignore[arg-type]
    right = card.row("right", 1 - card.inputs, card.inputs)
    assert right["L1"] < 0.005, "8-bit rounding alone"
    assert right["SSIM"] > 0.99
    assert right["feature distance"] < 0.01
    assert right["cycle L1"] == 0
    assert right["taken for B"] == 1
    wrong = card.row("wrong", card.inputs, card.inputs + 0.25)
    assert wrong["L1"] == pytest.approx(float((card.inputs - card.true).abs().mean()))
    assert wrong["cycle L1"] == pytest.approx(0.25)
    assert wrong["taken for B"] == 0
    assert wrong["KID"] > right["KID"] + 3 * right["KID error"]
    assert wrong["feature distance"] > 100 * right["feature distance"]

    wanted = torch.cdist(Pixels().of(card.inputs), card.learned_b).min(1).values
    reached = (Pixels().of(card.nearest()) - Pixels().of(card.inputs)).norm(dim=1)
    assert torch.allclose(reached, wanted, atol=1e-4)


def test_the_judge_separates_two_looks_and_finds_the_same_answer() -> None:
    torch.manual_seed(0)
    shift = torch.zeros(20)
    shift[:4] = 1.0
    a, b = torch.randn(300, 20), torch.randn(200, 20) + shift
    judge = Judge(a, b)
    assert judge.accuracy(torch.randn(500, 20), torch.randn(500, 20) + shift) > 0.8
    assert torch.equal(judge.weight, Judge(a, b).weight)
    # Balanced: look B, of which there are fewer, is not told less often.
    assert abs(float(judge.is_b(b).double().mean()) - float((~judge.is_b(a)).double().mean())) < 0.08
    # At the minimum the gradient of what is minimised is zero.
    weight = judge.weight.clone().requires_grad_(True)
    z_a, z_b = (((x.double() - judge.mean) / judge.std) @ weight + judge.bias for x in (a, b))
    loss = (nn.functional.softplus(z_a).mean() + nn.functional.softplus(-z_b).mean()) / 2
    (loss + 0.005 * weight.square().sum()).backward()
    assert weight.grad is not None
    assert float(weight.grad.abs().max()) < 1e-4


def test_a_judge_of_one_look_guesses() -> None:
    torch.manual_seed(0)
    a, b, c, d = (torch.randn(400, 5) for _ in range(4))
    assert Judge(a, b).accuracy(c, d) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (lambda files, empty: {"features": files.model}, "no feature network (it looks like a CycleGAN"),
        (lambda files, empty: {"features": empty / "none.pth"}, "does not exist"),
        (lambda files, empty: {"b": empty}, "no files ending in"),
        (lambda files, empty: {"a": files.model}, "is not a folder"),
        (lambda files, empty: {"held-out": COUNT}, "16 of 16 pictures are held out; lower --held-out"),
        (lambda files, empty: {"model": files.features}, "squeeze.safetensors"),
        (lambda files, empty: {"a": empty / "none"}, "does not exist"),
    ],
)
def test_bad_input_is_one_line(files: Files, run: Callable[..., Any], tmp_path: Path, changed, words) -> None:
    (tmp_path / "empty").mkdir()
    done = run(*arguments(files, "--quiet", **changed(files, tmp_path / "empty")))
    assert done.status == 2
    assert done.out == ""
    assert words in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_the_help_says_what_is_measured(run: Callable[..., Any]) -> None:
    done = run("evaluate", "translation", "--help")
    assert done.status == 0
    for word in ("--held-out", "--features", "--grid", "--back", "KID", "SSIM"):
        assert word in done.out
