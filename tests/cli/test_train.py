"""`genkit train` as a person meets it: a process, its two streams, its exit status and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

PLUGIN = Path(__file__).parent.parent / "training/plugin"
RECIPE = """\
train: test-{kind}
name: tiny
seed: 1
steps: {steps}
batch_size: 4
ema: 0.9
log_every: 1
checkpoint: {{every: 1000}}
debug:
  steps: 2
  batch_size: 2
"""


@pytest.fixture
def genkit(tmp_path: Path) -> Any:
    """genkit("train", ...) -> the finished process; with wait=False the running one."""
    inherited = os.environ.get("PYTHONPATH")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(PLUGIN), inherited))),
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }

    def run(*arguments: object, wait: bool = True, launcher: tuple[str, ...] = ()) -> Any:
        command = [*(launcher or (sys.executable, "-m")), "genkit", *map(str, arguments)]
        options: dict[str, Any] = {"cwd": tmp_path, "env": environment, "text": True}
        if wait:
            return subprocess.run(command, capture_output=True, timeout=200, **options)
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)

    return run


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    def write(kind: str = "gan", steps: int = 6) -> Path:
        (tmp_path / f"{kind}.yaml").write_text(RECIPE.format(kind=kind, steps=steps))
        return Path(f"{kind}.yaml")

    return write


def losses(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k == "step" or k.startswith("train/")} for line in lines]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Any:
    """here("train", ...) -> exit status, stdout, stderr: in this process, in tmp_path."""
    from genkit import registry
    from genkit.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(PLUGIN))
    registry._entries.cache_clear()
    yield run
    registry._entries.cache_clear()


def test_debug_leaves_a_small_run_and_can_be_repeated(here: Any, recipe: Any, tmp_path: Path) -> None:
    for _ in range(2):
        status, out, err = here("train", recipe(), "--debug", "--json")
        assert status == 0, err
        result = json.loads(out)
        assert (result["step"], result["finished"]) == (2, True)
        assert result["exported"] == "runs/tiny-debug/export"
    folder = tmp_path / "runs/tiny-debug"
    assert {path.name for path in folder.iterdir()} >= {"checkpoints", "export", "metrics.jsonl", "tensorboard"}
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000002"]


def test_export_alone(here: Any, recipe: Any, tmp_path: Path) -> None:
    assert here("train", recipe(), "--out", "run", "--max-minutes", "0")[0] == 0
    before = (tmp_path / "run/export/g.safetensors").read_bytes()
    (tmp_path / "run/export/g.safetensors").unlink()
    status, out, _ = here("train", recipe(), "--out", "run", "--export")
    assert (status, out) == (0, "run/export\n")
    assert (tmp_path / "run/export/g.safetensors").read_bytes() == before


def test_a_terminated_run_goes_on_as_if_nothing_had_happened(
    genkit: Any, here: Any, recipe: Any, tmp_path: Path
) -> None:
    steps = 400
    running = genkit("train", recipe(steps=steps), "--out", "parts", wait=False)
    log = tmp_path / "parts/metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text().count("\n") > 5):
        assert running.poll() is None, running.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    running.send_signal(signal.SIGTERM)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 143, err
    assert "stopped by SIGTERM after step" in err
    assert "Traceback" not in err
    assert out == ""
    assert len(losses(tmp_path / "parts")) < steps

    resumed = genkit("train", recipe(steps=steps), "--out", "parts", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "going on from parts/checkpoints/step-" in resumed.stderr
    assert resumed.stdout == "parts/export\n"
    whole = genkit("train", recipe(steps=steps), "--out", "whole", "--quiet")
    assert (whole.returncode, whole.stderr) == (0, "")
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    name = f"checkpoints/step-{steps:08d}"
    for file in ("modules/g.safetensors", "modules/d.safetensors", "ema.safetensors"):
        assert (tmp_path / "whole" / name / file).read_bytes() == (tmp_path / "parts" / name / file).read_bytes()

    status, _, err = here("train", recipe(steps=steps), "--out", "parts", "--resume")
    assert status == 0
    assert "this run is finished, at step 400" in err


@pytest.mark.slow
def test_two_processes_make_the_steps_of_one(genkit: Any, recipe: Any, tmp_path: Path) -> None:
    # `--cpu --num_processes 2` starts one process where there is no MPI; `--multi_gpu` starts two, and GENKIT_DEVICE,
    # set for every test, has them work on the CPU.
    launcher = (sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "-m")
    path = recipe("regress", 12)
    one = genkit("train", path, "--out", "one")
    assert one.returncode == 0, one.stderr
    first = genkit("train", path, "--out", "two", "--max-minutes", "0", launcher=launcher)
    assert first.returncode == 0, first.stderr
    assert "time is up at step 1 of 12" in first.stderr
    rest = genkit("train", path, "--out", "two", "--resume", launcher=launcher)
    assert rest.returncode == 0, rest.stderr
    for a, b in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    assert len(list((tmp_path / "two/checkpoints/step-00000012").glob("process-*.pt"))) == 2
    fewer = genkit("train", path, "--out", "two", "--resume", "--set", "steps=13")
    assert fewer.returncode == 0
    assert "written by 2 process(es), now 1" in fewer.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nonsense",), "no training recipe is called 'nonsense'"),
        (("gan.yaml", "--set", "steps=0"), "--set steps=0: steps 0 is out of range"),
        (("gan.yaml", "--resume", "--restart"), "give one of them"),
        (("gan.yaml", "--set", "precision=fp16"), "fp16 needs a GPU"),
        (("gan.yaml", "--set", "task.pol=3"), "did you mean 'pool'?"),
        (("gan.yaml", "--export"), "holds no complete checkpoint"),
        (("regress.yaml", "--set", "task.data=empty"), "empty: no files ending in"),
        ((), "Missing argument 'RECIPE'"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    here: Any, recipe: Any, tmp_path: Path, arguments: Any, message: str
) -> None:
    recipe("gan"), recipe("regress"), (tmp_path / "empty").mkdir()
    status, out, err = here("train", *arguments)
    assert message in err
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert not (tmp_path / "runs").exists()


def test_list(here: Any) -> None:
    status, out, _ = here("train", "--list")
    assert status == 0
    assert "  test-gan\n" in out
    assert "  style_transfer/features\n" in out
