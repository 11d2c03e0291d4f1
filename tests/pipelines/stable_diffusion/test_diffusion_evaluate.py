"""`genkit evaluate text-to-image`, end to end on tiny networks, and the arithmetic of finding a picture again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusion_training_kit as kit
import pytest
import torch
from PIL import Image
from torchvision import models as networks

from genkit import weights
from genkit.errors import InputError
from genkit.training.task import Setup
from pipelines.stable_diffusion import evaluate
from pipelines.stable_diffusion.measuring.retrieval import likeness, nearer, opened, ranks, shares
from pipelines.stable_diffusion.train.captioned import Captioned, CaptionedConfig

HELD = 3


@pytest.fixture(scope="module")
def hands(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same 8 names by two hands, which are named as `emoji`'s are."""
    home = tmp_path_factory.mktemp("hands")
    return kit.captioned(home / "noto"), kit.captioned(home / "blob", shift=3)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("features") / "squeeze.safetensors"
    weights.write(file, networks.squeezenet1_0(weights=None).state_dict(), {})
    return file


@pytest.fixture
def measure(hands: tuple[Path, Path], features: Path, run: Callable[..., Any]) -> Callable[..., Any]:
    """measure(model, ...) -> what the command line came to."""

    def call(model: Path, *more: Any) -> Any:
        data = [part for folder in hands for part in ("--data", folder)]
        size = ("--size", 64, "--held-out", HELD, "--num-inference-steps", 1)
        named = ("--caption", "{text}, {folder} style", "--features", features, "--device", "cpu")
        return run("evaluate", "text-to-image", *data, "--model", model, *size, *named, *more)

    return call


def test_the_card(measure: Callable[..., Any], seeing: Path, tmp_path: Path) -> None:
    grid = tmp_path / "grid.png"
    done = measure(seeing, "--json", "--grid", grid)
    assert done.status == 0, done.err
    found = json.loads(done.out)
    assert found["facts"]["pairs held out"] == found["facts"]["pairs seen"] == HELD
    assert found["facts"]["by chance top-1"] == pytest.approx(1 / HELD)
    ways = ["made", "made from another caption", "true, through the VAE", "true", "true, by another hand"]
    assert [(row["pairs"], row["pictures"]) for row in found["found again"]] == [
        (name, way) for name in ("held out", "seen") for way in ways
    ]
    for row in found["found again"]:
        assert row["count"] == HELD
        for key in ("top-1", "top-5", "caption top-1", "caption top-5"):
            assert 0 <= row[key] <= 1
        assert row["top-5"] == row["caption top-5"] == 1, "there are but three"
        if row["pictures"] == "true":
            assert row["top-1"] == 1
            assert row["top-1 error"] == 0
            assert row["right hand"] == 1
        if row["pictures"] == "true, by another hand":
            assert row["right hand"] == 0
    for path in (grid, tmp_path / "grid-seen.png"):
        with Image.open(path) as picture:
            assert picture.size == (HELD * 64, 2 * 64)
    assert measure(seeing, "--json").out == done.out, "the same seed, the same numbers"


def test_in_words_and_without_an_image_encoder(measure: Callable[..., Any], sd: Path) -> None:
    done = measure(sd, "--limit", 2)
    assert done.status == 0, done.err
    assert "made from another caption" in done.out
    assert "caption top-1" not in done.out
    assert "no image encoder of its own" in done.err
    assert "3 pairs held out" in done.err


def test_one_folder_has_no_other_hand(
    hands: tuple[Path, Path], features: Path, sd: Path, run: Callable[..., Any]
) -> None:
    given = ("--data", hands[0], "--held-out", 4, "--limit", 2, "--size", 32, "--num-inference-steps", 1)
    done = run("evaluate", "text-to-image", *given, "--model", sd, "--features", features, "--json")
    assert done.status == 0, done.err
    rows = json.loads(done.out)["found again"]
    assert {row["pictures"] for row in rows} == {
        "made", "made from another caption", "true, through the VAE", "true"
    }  # fmt: skip
    assert {row["count"] for row in rows} == {2}
    assert {row["right hand"] for row in rows} == {None}


def test_held_out_is_what_a_training_held_out(hands: tuple[Path, Path]) -> None:
    caption = "{text}, {folder} style"
    params = evaluate.Params.parse({"data": list(map(str, hands)), "caption": caption, "held_out": HELD})
    held, seen, partners = evaluate._pairs(params, lambda text: None)
    config = CaptionedConfig.parse({"data": list(map(str, hands)), "caption": caption, "held_out": HELD, "size": 32})
    data = Captioned(config, Setup(torch.device("cpu")))
    assert held == data.held
    assert len(seen) == HELD
    assert all(pair in data.pairs for pair in seen)
    for pair in [*held, *seen]:
        other = partners[pair.path]
        assert other.name == pair.path.name
        assert other.parent != pair.path.parent


@pytest.mark.parametrize("held", [7, 8, 500])
def test_too_many_held_out_are_refused(held: int, hands: tuple[Path, Path]) -> None:
    params = evaluate.Params.parse({"data": list(map(str, hands)), "held_out": held})
    with pytest.raises(InputError, match="lower --held-out"):
        evaluate._pairs(params, lambda text: None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("--held-out", 1), "held_out"),
        (("--limit", 1), "limit"),
        (("--size", 100), "size"),
        (("--data", "nowhere"), "does not exist"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(
    changes: tuple[Any, ...], words: str, measure: Callable[..., Any], sd: Path
) -> None:
    done = measure(sd, *changes)
    assert done.status == 2
    assert words in done.err
    assert "Traceback" not in done.err


# --------------------------------------------------------------------------------------------------------- arithmetic


def test_ranks_are_those_of_a_loop() -> None:
    torch.manual_seed(0)
    table, right = torch.randn(6, 9), torch.tensor([0, 8, 3, 3, 1, 5])
    wanted = [sum(float(table[i, j]) > float(table[i, r]) for j in range(9)) for i, r in enumerate(right.tolist())]
    assert ranks(table, right).tolist() == wanted
    square = table[:, :6]
    assert ranks(square).tolist() == ranks(square, torch.arange(6)).tolist()
    assert ranks(torch.zeros(2, 5)).tolist() == [0, 0], "what is as like is not before it"


def test_shares_and_their_errors() -> None:
    found = shares(torch.tensor([0, 0, 3, 4, 5, 9, 9, 0]), "caption ")
    assert found == {
        "caption top-1": 3 / 8,
        "caption top-1 error": math.sqrt(3 / 8 * 5 / 8 / 8),
        "caption top-5": 5 / 8,
        "caption top-5 error": math.sqrt(5 / 8 * 3 / 8 / 8),
    }


def test_what_all_queries_share_is_left_out() -> None:
    torch.manual_seed(0)
    gallery, shared = torch.randn(20, 50), 7 * torch.randn(50)
    torch.testing.assert_close(likeness(gallery + shared, gallery), likeness(gallery, gallery), atol=1e-5, rtol=0)
    torch.testing.assert_close(likeness(3 * gallery, gallery).diagonal(), torch.ones(20))
    assert ranks(likeness(gallery + shared + 0.3 * torch.randn(20, 50), gallery)).tolist() == [0] * 20


def test_the_nearer_of_two_hands() -> None:
    torch.manual_seed(0)
    one, two = torch.randn(8, 40), torch.randn(8, 40)
    right = torch.tensor([5, 1, 1, 7])
    queries = torch.cat([one[right[:3]], two[right[3:]]]) + 0.1 * torch.randn(4, 40)
    assert nearer(queries, one, two, right) == 3 / 4
    two[1] = one[1]  # there is but one hand
    assert nearer(queries, one, two, right) == 1 / 2
    assert nearer(queries, one, one, right) is None


def test_pictures_are_opened_whole(tmp_path: Path) -> None:
    Image.new("RGB", (80, 40), (255, 0, 51)).save(tmp_path / "a.png")
    found = opened([tmp_path / "a.png"] * 2, 32)
    assert found.shape == (2, 3, 32, 32)
    torch.testing.assert_close(found[0, :, 5, 5], torch.tensor([1.0, 0.0, 0.2]))
