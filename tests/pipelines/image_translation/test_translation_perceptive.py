"""Discriminators that see through a frozen network: its maps, their heads, and a training that uses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import learning_kit as kit
import pytest
import torch
from runs_kit import metrics
from torch import Tensor, nn

from genkit import weights
from genkit.errors import ModelError
from genkit.training import checkpoint
from pipelines.image_translation.networks.perceptive import FeatureDiscriminator, Scales

SEEN = 16  # channels of the tiny network's first scale


@pytest.fixture
def pictures() -> Tensor:
    return torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def scales(pictures: Tensor) -> Scales:
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, SEEN, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(SEEN, 8, 3), nn.ReLU()]
    found = Scales(nn.Sequential(*layers), torch.full((1, 3, 1, 1), 0.5), torch.full((1, 3, 1, 1), 0.25))
    found.measure(pictures)
    return found.eval().requires_grad_(False)


def test_maps_are_those_before_each_pooling_and_the_last(scales: Scales, pictures: Tensor) -> None:
    maps = scales(pictures)
    assert [tuple(m.shape) for m in maps] == [(6, SEEN, 30, 30), (6, 8, 13, 13)]
    assert scales.channels == [SEEN, 8]


def test_maps_have_mean_0_and_deviation_1_over_what_was_measured(scales: Scales, pictures: Tensor) -> None:
    for found in scales(pictures):
        std, mean = torch.std_mean(found, (0, 2, 3))
        assert mean.abs().max() < 1e-4
        assert (std < 1.001).all()
        assert std.max() > 0.99


def test_a_picture_gets_a_gradient_and_the_network_none(scales: Scales, pictures: Tensor) -> None:
    picture = pictures[:1].clone().requires_grad_()
    scores = FeatureDiscriminator(scales.channels)(scales(picture))
    assert [tuple(s.shape) for s in scores] == [(1, 1, 30, 30), (1, 1, 13, 13)]
    torch.stack([s.mean() for s in scores]).sum().backward()
    assert picture.grad is not None
    assert picture.grad.abs().max() > 0
    assert all(p.grad is None for p in scales.parameters())


@pytest.fixture
def settings(tmp_path: Path) -> tuple[str, ...]:
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    weights.write(tmp_path / "squeeze.safetensors", models.squeezenet1_1(weights=None).state_dict(), {})
    a, b = kit.blobs(tmp_path / "a", 6), kit.blobs(tmp_path / "b", 6, inverted=True)
    return f"data.a={a}", f"data.b={b}", f"discriminator_features={tmp_path / 'squeeze.safetensors'}"


def test_a_training_with_them_resumes_exactly(settings: tuple[str, ...], tmp_path: Path) -> None:
    whole = kit.trainer("cyclegan", tmp_path / "whole", *settings, "steps=4", "log_every=1")
    whole.train()
    half = kit.trainer("cyclegan", tmp_path / "half", *settings, "steps=2", "log_every=1")
    half.train()
    rest = kit.trainer("cyclegan", tmp_path / "half", *settings, "steps=4", "log_every=1")
    rest.train(resume=True)
    logged = [[{k: v for k, v in line.items() if k.startswith("train/")} for line in metrics(tmp_path / run)]
              for run in ("whole", "half")]  # fmt: skip
    assert len(logged[0]) == 4
    assert {"train/F_A", "train/GF_B"} <= logged[0][0].keys()
    assert logged[0][2:] == logged[1][2:] != []


def test_their_heads_learn_and_the_frozen_network_is_not_saved(settings: tuple[str, ...], tmp_path: Path) -> None:
    run = kit.trainer("cyclegan", tmp_path / "run", *settings, "steps=2")
    before = {k: v.clone() for k, v in run.task.modules["F_A"].state_dict().items()}
    frozen = {k: v.clone() for k, v in run.task.frozen["scales"].state_dict().items()}
    run.train()
    assert any(not torch.equal(v, before[k]) for k, v in run.task.modules["F_A"].state_dict().items())
    assert all(torch.equal(v, frozen[k]) for k, v in run.task.frozen["scales"].state_dict().items())
    saved = checkpoint.steps(tmp_path / "run/checkpoints")[2]
    assert {path.stem for path in saved.glob("modules/*")} == {"G_A", "G_B", "D_A", "D_B", "F_A", "F_B"}


def test_a_file_tells_the_network_and_not_its_place(settings: tuple[str, ...], tmp_path: Path) -> None:
    kit.trainer("cyclegan", tmp_path / "run", *settings, "steps=1").train()
    about = str(weights.metadata(tmp_path / "run/export/a-to-b.safetensors"))
    assert "squeeze" in about
    assert str(tmp_path) not in about


def test_what_is_no_feature_network_is_refused(settings: Any, tmp_path: Path) -> None:
    weights.write(tmp_path / "other.safetensors", {"x": torch.ones(3)}, {})
    with pytest.raises(ModelError, match="no feature network"):
        kit.trainer("cyclegan", tmp_path / "run", *settings[:2], f"discriminator_features={tmp_path}/other.safetensors")
