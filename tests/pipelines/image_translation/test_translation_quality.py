"""KID and FID while training: what `Quality` measures, and what it needs a task for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from learning_kit import blobs
from torchvision import models

from genkit import weights
from genkit.errors import ModelError
from genkit.metrics.features import LAST, Features
from genkit.metrics.image import fid, kid
from genkit.training.data import ImageFolder
from pipelines.image_translation.train.pictures import whole
from pipelines.image_translation.train.quality import Quality

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("features") / "squeeze.safetensors"
    weights.write(path, models.squeezenet1_0(weights=None).state_dict(), {})
    return path


@pytest.fixture(scope="module")
def looks(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """What a task holds: pictures, their negatives, and a few of each held out."""
    home = tmp_path_factory.mktemp("looks")
    a, b = (
        ImageFolder(blobs(home / name, 14, inverted=inverted), size=32, load_size=40, value_range=(-1, 1))
        for name, inverted in (("a", False), ("b", True))
    )
    held = []
    for pictures in (a, b):
        held.append(pictures.paths[:6])
        pictures.paths = pictures.paths[6:]
    return SimpleNamespace(a=a, b=b, held_a=held[0], held_b=held[1])


def test_a_generator_that_inverts_is_better_than_one_that_does_nothing(network, looks) -> None:
    quality = Quality.of(str(network), CPU)
    assert quality is not None
    right = quality.measure(looks, {"b": torch.neg, "a": torch.neg})
    wrong = quality.measure(looks, {"b": lambda x: x, "a": lambda x: x})
    assert set(right) == {"kid", "fid", "kid_a", "kid_b", "fid_a", "fid_b"}
    for name, value in right.items():
        assert value < wrong[name], name
    assert right["kid"] == pytest.approx((right["kid_a"] + right["kid_b"]) / 2)


def test_the_numbers_are_those_of_the_metrics(network, looks) -> None:
    features = Features.load(network)
    real = features.of((whole(looks.b, looks.b.paths) + 1) / 2)
    made = features.of((whole(looks.a, looks.held_a) * 0.5 + 1) / 2)
    found = Quality(features, CPU).measure(looks, {"b": lambda x: x * 0.5})
    assert found["kid"] == found["kid_b"] == pytest.approx(kid(real, made).value, rel=1e-4)
    assert found["fid_b"] == pytest.approx(fid(real[:, -LAST:], made[:, -LAST:]), rel=1e-3)


def test_real_pictures_are_looked_at_once(network, looks) -> None:
    quality = Quality(Features.load(network), CPU)
    first = quality.measure(looks, {"b": torch.neg})
    kept = quality.real["b"]
    missing = SimpleNamespace(**{**vars(looks), "b": SimpleNamespace(paths=[])})
    assert quality.measure(missing, {"b": torch.neg}) == first
    assert quality.real["b"] is kept


def test_without_held_out_pictures_those_trained_on_are_translated(network, looks) -> None:
    seen = []

    def generator(pictures: torch.Tensor) -> torch.Tensor:
        seen.append(len(pictures))
        assert pictures.min() >= -1
        assert not torch.is_grad_enabled()
        return pictures

    bare = SimpleNamespace(**{**vars(looks), "held_a": []})
    Quality(Features.load(network), CPU).measure(bare, {"b": generator})
    assert sum(seen) == len(looks.a.paths)


def test_no_reference_is_no_measuring_and_a_wrong_one_is_said_at_once(tmp_path: Path) -> None:
    assert Quality.of(None, CPU) is None
    with pytest.raises(ModelError, match="does not exist"):
        Quality.of(str(tmp_path / "none.safetensors"), CPU)
