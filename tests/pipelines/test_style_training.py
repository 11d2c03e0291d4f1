"""The three trainings, by their shipped recipes at debug size: they learn, resume exactly, and the pipeline loads what
they export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import style_kit
import torch

import genkit
from genkit.training import loading
from genkit.training.data import Draw
from genkit.training.task import Setup
from genkit.training.trainer import Trainer
from pipelines.style_transfer.loading import feature_network, style_model
from pipelines.style_transfer.models import MODELS
from pipelines.style_transfer.networks.features import Small, SqueezeNet
from pipelines.style_transfer.networks.transformer import TransformerNet
from pipelines.style_transfer.train import augment
from pipelines.style_transfer.train.features import TAPS, agreement, feature_error
from pipelines.style_transfer.train.pictures import Crops, Variety, whole_pictures

EXPORTS = {"features": "small.safetensors", "fast": "fast.safetensors", "adain": "adain.safetensors"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of pictures to learn from and to look at, and a teacher."""
    home = tmp_path_factory.mktemp("data")
    for folder, count in {"photos": 3, "paintings": 2, "held-out": 2}.items():
        (home / folder).mkdir()
        for i in range(count):
            style_kit.save(home / folder / f"{i}.png", 70 + i, 90 - i, seed=hash_of(folder) + i)
    torch.save(style_kit.he(SqueezeNet()).state_dict(), home / "teacher.pth")
    return home


def hash_of(word: str) -> int:
    return sum(map(ord, word))


def settings(kind: str, data: Path, files: Any) -> list[str]:
    paths = {
        "features": {"data": data / "photos", "valid": data / "held-out", "teacher": data / "teacher.pth"},
        "fast": {
            "data": data / "photos",
            "valid": data / "held-out",
            "style": files.style,
            "features_weights": files.small,
        },
        "adain": {
            "content": data / "photos",
            "style": data / "paintings",
            "valid": data / "held-out",
            "encoder": files.adain / "vgg_normalised.pth",
        },
    }[kind]
    return [f"task.{key}={path}" for key, path in paths.items()] + ["log_every=1"]


def trainer(
    kind: str, data: Path, files: Any, out: Path, *, more: tuple[str, ...] = (), progress: Any = None
) -> Trainer:
    loaded = loading.load(f"style_transfer/{kind}", overrides=[*settings(kind, data, files), *more], debug=True)
    options = {"progress": progress} if progress else {}
    return Trainer(
        loaded.task, loaded.recipe, out, config=loaded.config, device="cpu", say=lambda text: None, **options
    )


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", EXPORTS)
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(kind, data, files, tmp_path):
    def stop(step: int, total: int, **_: Any) -> None:
        if step == 3:
            raise KeyboardInterrupt

    assert trainer(kind, data, files, tmp_path / "whole").train().finished
    with pytest.raises(KeyboardInterrupt):
        trainer(kind, data, files, tmp_path / "parts", progress=stop).train()
    assert trainer(kind, data, files, tmp_path / "parts").train(resume=True).finished
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")
    exports = [(tmp_path / out / "export" / EXPORTS[kind]).read_bytes() for out in ("whole", "parts")]
    assert exports[0] == exports[1]


@pytest.mark.parametrize("kind", EXPORTS)
def test_the_export_is_loaded_by_the_pipeline(kind, data, files, tmp_path):
    result = trainer(kind, data, files, tmp_path / "run", more=("steps=1", "checkpoint.every=1")).train()
    assert result.exported is not None
    model = result.exported / EXPORTS[kind] if result.exported.is_dir() else result.exported
    if kind == "features":
        painter = genkit.load("style-transfer", device="cpu")
        more: dict[str, Any] = {"features_weights": model, "size": 32, "num_inference_steps": 1}
    else:
        painter, more = genkit.load("style-transfer", model=model, device="cpu"), {}
    if kind != "fast":
        more["style"] = files.style
    assert painter(content=files.content, **more).images[0].size[0] in (32, 52)


def test_a_student_comes_to_see_what_its_teacher_sees(data, files, tmp_path):
    more = ("steps=40", "task.drawn=0", "task.rate=0.01")
    trainer("features", data, files, tmp_path / "run", more=more).train()
    errors = [line["train/feature_error"] for line in lines(tmp_path / "run") if "train/feature_error" in line]
    assert sum(errors[-5:]) < 0.7 * sum(errors[:5])


def test_a_fast_network_learns_its_style(data, files, tmp_path):
    more = ("steps=12", "task.drawn=0", "task.rate=0.01", "task.content_weight=0.01")
    trainer("fast", data, files, tmp_path / "run", more=more).train()
    styles = [line["train/style"] for line in lines(tmp_path / "run") if "train/style" in line]
    assert styles[-1] < 0.8 * styles[0]
    assert isinstance(style_model(tmp_path / "run/export/fast.safetensors"), TransformerNet)


def test_a_decoder_learns_to_decode(data, files, tmp_path):
    more = ("steps=16", "task.rate=0.01")
    trainer("adain", data, files, tmp_path / "run", more=more).train()
    losses = [line["train/loss"] for line in lines(tmp_path / "run") if "train/loss" in line]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


# -------------------------------------------------------------------------------------------------------- agreement


def test_a_copy_agrees_wholly_and_a_mean_explains_nothing():
    x = torch.randn(2, 5, 6, 7)
    assert feature_error(x, x) == 0
    mean = x.mean((0, 2, 3), keepdim=True).expand_as(x)
    assert float(feature_error(mean, x)) == pytest.approx(1, rel=1e-5)


def test_agreement_of_a_network_with_itself(files):
    eyes = feature_network("small", MODELS, path=files.small)
    found = agreement(eyes, eyes, [style_kit.picture(50, 61), style_kit.picture(40, 40)], torch.device("cpu"))
    assert list(found) == TAPS == list(Small.HEADS)
    for errors in found.values():
        assert errors == {"feature_error": 0, "gram_error": 0}


# --------------------------------------------------------------------------------------------------------- pictures


def setup() -> Setup:
    return Setup(torch.device("cpu"))


@pytest.mark.parametrize("variety", [Variety(), Variety((0.3, 1.0), colour=0.6, mixed=0.5, drawn=0.4)])
def test_a_crop_is_a_pure_function_of_its_draw(data, variety):
    one, two = (Crops([data / "photos", data / "paintings"], 48, variety, setup()) for _ in range(2))
    assert len(one) == 5
    draws = [Draw(i, epoch, seed) for i in range(3) for epoch in (0, 1) for seed in (0, 1)]
    crops = [one[draw] for draw in draws]
    for draw, crop in zip(reversed(draws), reversed(crops), strict=True):
        assert crop.shape == (3, 48, 48)
        assert 0 <= crop.min() <= crop.max() <= 1 + 1e-6
        assert torch.equal(two[draw], crop)
    assert len({crop.numpy().tobytes() for crop in crops}) == len(crops)


def test_folders_take_equal_turns(data, monkeypatch):
    crops = Crops([data / "photos", data / "paintings"], 32, Variety(), setup())
    seen: list[str] = []
    read = crops._read
    monkeypatch.setattr(crops, "_read", lambda path: seen.append(path.parent.name) or read(path))
    for i in range(200):
        crops[Draw(i)]
    assert 70 < seen.count("paintings") < 130


def test_validation_looks_at_whole_pictures(data):
    pictures = whole_pictures(data / "held-out", setup(), side=64)
    assert [min(picture.shape[2:]) for picture in pictures] == [64, 64]
    assert all(picture.shape[:2] == (1, 3) for picture in pictures)


def test_recolouring_by_nothing_changes_nothing_and_greys_stay_grey():
    picture, generator = style_kit.picture(20, 20)[0], torch.Generator().manual_seed(0)
    torch.testing.assert_close(augment.recolour(picture, generator, 0.0), picture)
    grey = torch.full((3, 4, 4), 0.4)
    made = augment.recolour(grey, generator, 1.0)
    torch.testing.assert_close(made[0], made[1])
    torch.testing.assert_close(made[1], made[2])


def test_dead_leaves_are_pictures_of_their_own():
    made = [augment.dead_leaves(40, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    assert made[0].shape == (3, 40, 40)
    assert 0 <= made[0].min() <= made[0].max() <= 1
    assert made[0].std() > 0.05
