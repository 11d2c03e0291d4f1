"""The trainings of image translation by their shipped recipes: published by default, resumed exactly, the same sums
however they are shared out, and a file at the end that says itself what it is."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import learning_kit as kit
import pytest
import torch
from runs_kit import assert_the_same, everything, metrics

from genkit import weights
from genkit.errors import InputError
from genkit.training import loading
from genkit.training.recipe import Folder, Folders, TaskConfig, path_fields
from pipelines.image_translation.recognise import recognise

EXPORTS = {
    "cyclegan": ("a-to-b", "b-to-a"),
    "pix2pix": ("a-to-b",),
    "cut": ("a-to-b",),
    "fastcut": ("a-to-b",),
    "noto_blob": ("a-to-b", "b-to-a"),
    "noto_blob_pix2pix": ("a-to-b",),
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "all": {
        "size": 256, "load_size": 286, "resize": "square", "flip": True, "width": 64, "blocks": 9, "halvings": 2,
        "residual": False, "discriminator_width": 64, "discriminator_layers": 3, "rate": 2e-4, "held_out": 0,
    },
    "cyclegan": {
        "norm": "instance", "dropout": False, "gan": "lsgan", "cycle": 10, "identity": 0.5, "pool": 50, "constant": 0.5,
    },
    "pix2pix": {
        "norm": "batch", "dropout": True, "gan": "vanilla", "distance": 100, "generator": "unet", "downs": 8,
        "constant": 0.5, "direction": "a-to-b",
    },
    "cut": {
        "norm": "instance", "dropout": False, "gan": "lsgan", "contrast": 1, "identity": True, "equivariance": False,
        "places": [0, 4, 8, 12, 16], "patches": 256, "head_width": 256, "temperature": 0.07, "antialias": True,
        "constant": 0.5,
    },
    "fastcut": {
        "norm": "instance", "dropout": False, "gan": "lsgan", "contrast": 10, "identity": False, "equivariance": True,
        "places": [0, 4, 8, 12, 16], "patches": 256, "head_width": 256, "temperature": 0.07, "antialias": True,
        "constant": 0.75,
    },
}  # fmt: skip
EPOCHS = {"cyclegan": (200, 1334), "pix2pix": (200, 400), "cut": (400, 1334), "fastcut": (200, 1334)}


@pytest.fixture
def data(tmp_path: Path) -> tuple[str, str]:
    a, b = kit.blobs(tmp_path / "a", 6), kit.blobs(tmp_path / "b", 6, inverted=True)
    return f"data.a={a}", f"data.b={b}"


# --------------------------------------------------------------------------------------------------- as published


@pytest.mark.parametrize("recipe", EPOCHS)
def test_recipes_state_what_is_published(recipe: str, data: Any) -> None:
    found = loading.load(f"image_translation/{recipe}", overrides=data)
    config = found.config.model_dump(exclude={"data", "float32"})
    assert {name: config.get(name) for name in PUBLISHED["all"]} == PUBLISHED["all"]
    rest = {name: value for name, value in config.items() if name not in PUBLISHED["all"]}
    assert {name: rest.get(name) for name in PUBLISHED[recipe]} == PUBLISHED[recipe]
    epochs, pictures = EPOCHS[recipe]
    assert found.recipe.steps == epochs * pictures
    assert (found.recipe.batch_size, found.recipe.accumulate, found.recipe.precision) == (1, 1, "no")
    assert (found.recipe.ema, found.recipe.clip) == (None, None)


@pytest.mark.parametrize("recipe", ["cyclegan", "pix2pix", "cut"])
def test_what_a_recipe_leaves_out_is_published_too(recipe: str, data: Any) -> None:
    found = loading.load(f"image_translation/{recipe}", overrides=data)
    bare = found.task.Config.model_validate({"data": found.config.data})  # type: ignore[attr-defined]
    assert bare == found.config


def test_the_run_says_how_many_epochs_it_is(data: Any, tmp_path: Path) -> None:
    said: list[str] = []
    kit.trainer("cyclegan", tmp_path / "run", *data, "held_out=1", "steps=10", "batch_size=2", say=said.append)
    assert said == ["5 and 5 pictures to learn from, 1 and 1 held out; 10 steps are 3.33 epochs"]


# ----------------------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize(
    ("recipe", "steps", "settings"),
    [
        ("cyclegan", 100, ("dropout=true", "width=4", "discriminator_layers=2", "pool=7")),
        ("pix2pix", 12, ()),
        ("cut", 12, ()),
        ("fastcut", 12, ()),
    ],
)
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    recipe: str, steps: int, settings: Any, data: Any, tmp_path: Path
) -> None:
    settings = (*data, f"steps={steps}", "ema=0.9", "log_every=1", "sample_every=null", *settings)
    settings = (*settings, f"checkpoint.every={steps // 2}")

    def stop(step: int, total: int, **_: Any) -> None:
        if step == steps // 2 + 3:  # killed later than its last checkpoint
            raise KeyboardInterrupt

    whole = kit.trainer(recipe, tmp_path / "whole", *settings)
    assert whole.train().finished
    at_the_end = everything(whole)
    with pytest.raises(KeyboardInterrupt):
        kit.trainer(recipe, tmp_path / "parts", *settings, progress=stop).train()
    resumed = kit.trainer(recipe, tmp_path / "parts", *settings)
    torch.rand(3)  # what happened in this process before must not matter
    assert resumed.train(resume=True).finished
    assert_the_same(at_the_end, everything(resumed))
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    for name in EXPORTS[recipe]:
        files = [tmp_path / out / f"export/{name}.safetensors" for out in ("whole", "parts")]
        assert files[0].read_bytes() == files[1].read_bytes()
    if recipe == "cyclegan":
        assert all(len(pool.pictures) == 7 for pool in resumed.task.pools.values())  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------- the same sums, shared out


def test_two_batches_of_one_make_the_step_of_a_batch_of_two(data: Any, tmp_path: Path) -> None:
    """Where no picture depends on its batch: instance norm, no pool."""
    settings = (*data, "pool=0", "steps=1", "sample_every=null", "ema=null")
    joined = kit.trainer("cyclegan", tmp_path / "joined", *settings, "batch_size=2")
    halves = kit.trainer("cyclegan", tmp_path / "halves", *settings, "batch_size=1", "accumulate=2")
    joined.train(), halves.train()
    one, two = (metrics(tmp_path / name)[0] for name in ("joined", "halves"))
    for name in (name for name in one if name.startswith("train/")):
        assert two[name] == pytest.approx(one[name], rel=1e-4), name
    for name, optimizer in joined.task.optimizers.items():
        other = halves.task.optimizers[name]
        wanted, found = ([o.state[p]["exp_avg"] for p in o.param_groups[0]["params"]] for o in (optimizer, other))
        largest = max(float(gradient.abs().max()) for gradient in wanted)
        for x, y in zip(wanted, found, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-5 * largest)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["cyclegan", "cut"])
def test_two_processes_make_the_steps_of_one(recipe: str, data: Any, tmp_path: Path, genkit: Any) -> None:
    settings = {"cyclegan": ("pool=0",), "cut": ("patches=4096", "precision=no")}[recipe]
    settings = (*data, *settings, "steps=6", "batch_size=2", "log_every=1", "rate=0.00001")
    kit.trainer(recipe, tmp_path / "one", *settings).train()
    launcher = (sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "-m")
    sets = [part for setting in settings for part in ("--set", setting)]
    done = genkit(launcher, "train", f"image_translation/{recipe}", "--debug", "--out", tmp_path / "two", *sets)
    assert done.returncode == 0, done.stderr
    for one, two in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        for name in (name for name in one if name.startswith("train/")):
            assert two[name] == pytest.approx(one[name], rel=1e-4), name
    assert len(list((tmp_path / "two/checkpoints/step-00000006").glob("process-*.pt"))) == 2


@pytest.fixture
def genkit() -> Any:
    import subprocess

    def call(launcher: tuple[str, ...], *arguments: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*launcher, "genkit", *map(str, arguments)], capture_output=True, text=True, timeout=280)

    return call


@pytest.mark.parametrize("recipe", ["cyclegan", "pix2pix", "cut"])
def test_mixed_precision_trains(recipe: str, data: Any, tmp_path: Path) -> None:
    settings = (*data, "log_every=1", "sample_every=null", "steps=2")
    kit.trainer(recipe, tmp_path / "whole", *settings, "precision=no").train()
    run = kit.trainer(recipe, tmp_path / "mixed", *settings, "precision=bf16")
    run.train()
    one, two = metrics(tmp_path / "whole")[0], metrics(tmp_path / "mixed")[0]
    for name in (name for name in one if name.startswith("train/")):
        assert two[name] == pytest.approx(one[name], rel=0.1), name
    assert all(p.dtype == torch.float32 for module in run.task.modules.values() for p in module.parameters())


# ------------------------------------------------------------------------------------------ samples and what comes out


@pytest.mark.parametrize("recipe", EXPORTS)
def test_the_file_says_what_it_is(recipe: str, data: Any, tmp_path: Path) -> None:
    run = kit.trainer(recipe, tmp_path / "run", *data, "steps=2", "held_out=1", "sample_every=2", "ema=0.5")
    run.train()
    files = sorted((tmp_path / "run/export").iterdir())
    assert [file.stem for file in files] == list(EXPORTS[recipe])
    for file in files:
        tensors, about = weights.read(file), weights.metadata(file)
        assert about["architecture"] == "genkit.image-translation"
        assert about["direction"] == file.stem
        training = json.loads(about["training"])
        assert (training["task"], training["steps"]) == (run.recipe.train, 2)
        assert training["width"] == 4
        assert str(tmp_path) not in str(about)  # where the pictures lay is nobody's business
        name = {"a-to-b": "G_A", "b-to-a": "G_B"}[file.stem] if "G_A" in run.task.modules else "G"
        network = run.task.modules[name]
        assert {tensors[key].dtype for key, _ in network.named_parameters()} == {torch.float16}
        built = recognise(tensors, about).build()
        assert built.layout == network.layout
        x = torch.rand(2, 3, 32, 32) * 2 - 1
        assert run.average is not None
        with run.average.applied(), torch.no_grad():  # it is the average that goes out
            torch.testing.assert_close(built(x), network.eval()(x), atol=0.01, rtol=0)
        with torch.no_grad():
            assert not torch.equal(built(x), network.eval()(x))


def test_weights_of_32_bits_are_kept_whole(data: Any, tmp_path: Path) -> None:
    run = kit.trainer("cyclegan", tmp_path / "run", *data, "steps=1", "float32=true", "ema=null")
    run.train()
    tensors = weights.read(tmp_path / "run/export/a-to-b.safetensors")
    assert_the_same(dict(run.task.modules["G_A"].state_dict()), dict(tensors))


@pytest.mark.parametrize(
    ("recipe", "names", "rows"),
    [("cyclegan", ("A-B-A", "B-A-B"), 3), ("pix2pix", ("a-to-b",), 3), ("cut", ("A-B",), 2)],
)
def test_samples_are_grids_of_what_is_held_out(recipe: str, names: Any, rows: int, data: Any, tmp_path: Path) -> None:
    run = kit.trainer(recipe, tmp_path / "run", *data, "held_out=2")
    run.train()
    with torch.no_grad():
        found = run.task.sample()
    assert tuple(found) == names
    for name, picture in found.items():
        assert picture.shape == (3, rows * 32, 2 * 32)
        assert 0 <= picture.min() <= picture.max() <= 1
        assert len(list((tmp_path / "run/samples").glob(f"*-{name}.png"))) == 2
    shown = run.task.shown("a")  # type: ignore[attr-defined]
    torch.testing.assert_close(found[names[0]][:, :32], (torch.cat(list(shown), 2) + 1) / 2)
    if recipe == "pix2pix":
        wanted = run.task.shown("b")  # type: ignore[attr-defined]
        torch.testing.assert_close(found[names[0]][:, 64:], (torch.cat(list(wanted), 2) + 1) / 2)


def test_samples_leave_batch_statistics_as_they_are(data: Any, tmp_path: Path) -> None:
    settings = (*data, "log_every=1", "steps=4")
    plain = kit.trainer("pix2pix", tmp_path / "plain", *settings, "sample_every=null")
    watched = kit.trainer("pix2pix", tmp_path / "watched", *settings, "sample_every=1")
    plain.train(), watched.train()
    assert_the_same(everything(plain), everything(watched))


@pytest.mark.parametrize(("recipe", "looks"), [("cyclegan", "ba"), ("pix2pix", "b"), ("cut", "b")])
def test_the_best_checkpoint_is_the_one_of_least_kid(recipe: str, looks: str, data: Any, tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    weights.write(tmp_path / "squeeze.safetensors", models.squeezenet1_0(weights=None).state_dict(), {})
    said: list[str] = []
    settings = (f"features={tmp_path / 'squeeze.safetensors'}", "held_out=2", "validate_every=2", "export=best")
    result = kit.trainer(recipe, tmp_path / "run", *data, *settings, say=said.append).train()
    assert f"KID and FID by the features of {tmp_path / 'squeeze.safetensors'}" in said
    found = {line["step"]: line for line in metrics(tmp_path / "run") if "valid/kid" in line}
    assert set(found) == {2, 4}
    assert {name for name in found[2] if "_" in name and "valid" in name} == {
        f"valid/{measure}_{look}" for measure in ("kid", "fid") for look in looks
    }
    assert str(tmp_path) not in str(weights.metadata(tmp_path / "run/export/a-to-b.safetensors"))
    least = min(found, key=lambda step: found[step]["valid/kid"])
    assert result.best == {"step": least, "name": "kid", "value": found[least]["valid/kid"]}


def test_only_generators_are_averaged(data: Any, tmp_path: Path) -> None:
    for recipe, names in (("cyclegan", {"G_A", "G_B"}), ("pix2pix", {"G"}), ("cut", {"G"})):
        run = kit.trainer(recipe, tmp_path / recipe, *data, "ema=0.9")
        assert run.average is not None
        assert {key.partition(".")[0] for key in run.average.weights} == names


# ------------------------------------------------------------------------------------------------------------ learning


def test_cyclegan_learns_to_invert_colours(tmp_path: Path) -> None:
    untrained, trained, unchanged = kit.distances_to_the_negative(
        "cyclegan", tmp_path, "steps=100", "identity=0", "pool=10"
    )
    assert trained < 0.5 * untrained
    assert trained < 0.4 * unchanged


def test_pix2pix_learns_from_pairs(tmp_path: Path) -> None:
    a, b = kit.blobs(tmp_path / "a", 8), kit.blobs(tmp_path / "b", 8, inverted=True)
    settings = ("steps=60", "rate=0.002", "width=8", "sample_every=null", "log_every=1", "held_out=0")
    kit.trainer("pix2pix", tmp_path / "run", f"data.a={a}", f"data.b={b}", *settings).train()
    distances = [line["train/L1"] for line in metrics(tmp_path / "run")]
    assert sum(distances[-10:]) < 0.5 * sum(distances[:10])
    assert all(map(math.isfinite, distances))


# ---------------------------------------------------------------------------------- folders within a task's settings


def test_folders_of_a_config_within_a_config_are_found() -> None:
    class Inner(TaskConfig):
        here: Folders | None = None
        count: int = 1

    class Outer(TaskConfig):
        data: Inner = Inner()
        valid: Folder | None = None

    assert path_fields(Outer) == {"data.here", "valid"}


def test_a_run_finds_its_two_folders_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.a|a\[0\]"):
        kit.trainer("cyclegan", tmp_path / "run")
