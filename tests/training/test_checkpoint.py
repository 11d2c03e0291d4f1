"""A checkpoint is whole or it is none; the right ones are kept; no file in one holds code."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from genkit_test_tasks import Gan, Regress
from safetensors.torch import load_file

from genkit.errors import DiskFull, InputError
from genkit.training import checkpoint


@pytest.fixture
def run(trainer: Any, tmp_path: Path) -> Path:
    """A GAN's run of ten steps with checkpoints at 4, 8 and 10."""
    trainer(Gan, ema=0.9, checkpoint={"every": 4}).train()
    return tmp_path / "run"


def test_every_file_opens_without_running_code(run: Path) -> None:
    folder = checkpoint.steps(run / "checkpoints")[10]
    assert set(load_file(folder / "modules/g.safetensors")) >= {"0.weight", "1.running_mean"}
    assert all(key.startswith("g.") for key in load_file(folder / "ema.safetensors"))
    assert set(torch.load(folder / "optimizers.pt", weights_only=True)) == {"optimizers", "schedules", "scaler"}
    assert len(torch.load(folder / "process-0.pt", weights_only=True)["task"]["pool"]) == 3
    info = json.loads((folder / "checkpoint.json").read_text())
    assert (info["step"], info["position"], info["recipe"]["batch_size"]) == (10, 10, 4)
    assert set(info["versions"]) == {"genkit", "torch", "python"}
    assert not (folder / "modules/eye.safetensors").exists()  # frozen


def flip(folder: Path) -> None:
    data = bytearray((folder / "optimizers.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "optimizers.pt").write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda folder: (folder / "checkpoint.json").unlink(), "checkpoint.json is missing"),
    "half a manifest": (lambda folder: (folder / "checkpoint.json").write_text('{"step": 10'), "unreadable"),
    "an empty folder": (lambda folder: (shutil.rmtree(folder), folder.mkdir()), "checkpoint.json is missing"),
    "a missing file": (lambda folder: (folder / "modules/d.safetensors").unlink(), "d.safetensors is missing or cut"),
    "a short file": (
        lambda folder: (folder / "ema.safetensors").write_bytes(b"x"),
        "ema.safetensors is missing or cut",
    ),
    "a flipped bit": (flip, "optimizers.pt has been damaged"),
    "another format": (
        lambda folder: (folder / "checkpoint.json").write_text('{"schema": 99, "files": {}}'),
        "its format is 99",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_torn_checkpoint_is_left_aside_with_a_note(run: Path, trainer: Any, kind: str) -> None:
    harm, reason = DAMAGE[kind]
    harm(checkpoint.steps(run / "checkpoints")[10])
    said: list[str] = []
    resumed = trainer(Gan, ema=0.9, checkpoint={"every": 4}, say=said.append)
    resumed.train(resume=True)
    assert reason in said[0]
    assert "step-00000008 at step 8 of 10" in said[1]
    assert resumed.step == 10
    assert checkpoint.examine(checkpoint.steps(run / "checkpoints")[10])[0]


def test_what_a_kill_left_behind_is_not_seen(run: Path, trainer: Any) -> None:
    shutil.copytree(run / "checkpoints/step-00000008", run / "checkpoints/.step-00000012.tmp")
    (run / "checkpoints/step-notes.txt").touch()
    assert list(checkpoint.steps(run / "checkpoints")) == [4, 8, 10]
    assert trainer(Gan, ema=0.9, steps=12).train(resume=True).step == 12
    assert not list((run / "checkpoints").glob(".*"))


def test_the_last_every_nth_and_the_best_are_kept(tmp_path: Path) -> None:
    def folders(*steps: int) -> Path:
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        for step in steps:
            (tmp_path / f"c/step-{step:08d}").mkdir(parents=True)
        return tmp_path / "c"

    def kept(**policy: Any) -> list[int]:
        checkpoint.prune(tmp_path / "c", **{"keep_last": 2, "keep_every": None, "best": None, **policy})
        return list(checkpoint.steps(tmp_path / "c"))

    folders(*range(100, 1100, 100))
    assert kept(keep_every=400, best=300) == [300, 400, 800, 900, 1000]
    folders(1, 2, 3)
    assert kept(keep_last=1) == [3]
    folders(5)
    assert kept(keep_last=3) == [5]
    folders(99_999_998, 100_000_000)  # the names' digits run over
    assert kept(keep_last=1) == [100_000_000]


def test_no_space_leaves_the_old_checkpoints_and_nothing_else(
    run: Path, trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_seal", full)
    with pytest.raises(DiskFull, match="free some and go on with --resume"):
        trainer(Gan, ema=0.9, steps=12).train(resume=True)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "step-00000004",
        "step-00000008",
        "step-00000010",
    ]


def test_a_resume_with_averages_that_were_not_saved_begins_them(trainer: Any) -> None:
    trainer(Regress).train()
    said: list[str] = []
    resumed = trainer(Regress, steps=11, ema=0.5, say=said.append)
    resumed.train(resume=True)
    assert any("holds no averaged weights" in line for line in said)
    assert resumed.average.updates == 1


def test_export_from_a_checkpoint(run: Path, trainer: Any) -> None:
    shutil.rmtree(run / "export")
    again = trainer(Gan, ema=0.9)
    assert again.export() == run / "export"
    averaged = load_file(run / "checkpoints/step-00000010/ema.safetensors")
    exported = load_file(run / "export/g.safetensors")
    assert torch.equal(exported["0.weight"], averaged["g.0.weight"])
    assert again.export(step=4)
    assert not torch.equal(load_file(run / "export/g.safetensors")["0.weight"], averaged["g.0.weight"])
    with pytest.raises(InputError, match="no complete checkpoint of step 5"):
        again.export(step=5)
