"""Batches that cannot be lost: killed a hundred times, on full disks and read-only ones, under a clock that jumps.

`torture.py` kills runs in a loop; here it does so on the tests' own small pipelines, a dozen times forked and, in the
slow tests, a hundred times in processes of their own with workers. `make torture` has it kill recipes/torture.yaml.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults import content, leavings
from plugin_kit import packaged

from genkit.batch import plan, recipe, runner
from genkit.batch.journal import read
from genkit.cli import main
from genkit.media.image import Image

SCRIPT = Path(__file__).with_name("torture.py")
EVERY_KIND = """\
stages:
- {name: paint, pipeline: test-noise, params: {width: 64, height: 48}, matrix: {seed: [1, 2, 3, 4, 5, 6]}}
- {name: several, pipeline: test-noise, params: {count: 3}, matrix: {seed: [1, 2]}, output: "several/look {seed}.png"}
- name: blend
  pipeline: test-noise
  files: {content: {stage: paint}}
  matrix: {format: [bmp, jpg]}
  output: "{stem}.{format}"
- {name: tone, pipeline: test-tone, matrix: {pitch: [220, 440], seed: [1]}, output: "{pitch}.flac", render: [png]}
- {name: tune, pipeline: test-tune, matrix: {seed: [1, 2]}, render: [wav, png]}
- {name: mixed, pipeline: test-tone, params: {seed: 1}, files: {source: {stage: tone}}, output: "{stem} mixed.wav"}
"""


def torture(folder: Path, *options: str) -> str:
    (folder / "recipe.yaml").write_text(EVERY_KIND)
    command = [SCRIPT, "--recipe", folder / "recipe.yaml", "--out", folder / "out", *options]
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_dozen_kills(noise_pipeline: str, tmp_path: Path) -> None:
    said = torture(tmp_path, "--forked", "--kills", "12")
    assert "as if nothing had happened" in said
    assert int(said.split()[0]) >= 12


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("options", [("--forked", "--kills", "300"), ("--workers", "2"), ("--workers", "0")])
def test_a_hundred_kills(noise_pipeline: str, tmp_path: Path, options: tuple[str, ...]) -> None:
    assert "as if nothing had happened" in torture(tmp_path, *options)


def test_the_torturer_sees_what_is_wrong(noise_pipeline: str, tmp_path: Path) -> None:
    """A file that is not what it should be is told, and what else there is."""
    sys.path.insert(0, str(SCRIPT.parent))
    from torture import Torture, arguments

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["torture.py", "--out", str(tmp_path / "torture")])
        judge = Torture(arguments())
    (tmp_path / "recipe.yaml").write_text("pipeline: test-noise\nmatrix: {seed: [1, 2]}\noutput: '{seed}.png'")
    assert main(["run", str(tmp_path / "recipe.yaml"), "--out", str(judge.reference), "--quiet"]) == 0
    judge.expected = content(judge.reference)
    judge._check(judge.reference)
    assert judge.tally.wrong == []
    journal = judge.reference / ".genkit/journal.jsonl"
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([*lines, lines[-1], "{half"]))
    (judge.reference / "1.png").write_bytes(b"half")
    (judge.reference / "sub").mkdir()
    (judge.reference / "sub/.2.png.tmp").touch()
    judge._check(judge.reference)
    found = "; ".join(judge.tally.wrong)
    for fault in ("1.png is not what", "sub/.2.png.tmp is left over", "2.png was made 2 times", "is damaged"):
        assert fault in found


# Disks.


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system in memory with options, or anew with others."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> Path:
        again = "remount," if folder.is_mount() else ""
        command = ["mount", "-t", "tmpfs", "-o", again + options, "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("may not mount a tmpfs here")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)


LARGE = """\
name: large
stages:
- {name: paint, pipeline: test-noise, params: {width: 512, height: 512}, matrix: {seed: [1, 2, 3, 4, 5, 6, 7, 8]}}
- name: blend
  pipeline: test-noise
  params: {width: 512, height: 512}
  files: {content: {stage: paint}}
  output: "{stem}.bmp"
- {name: tune, pipeline: test-tune, matrix: {seed: [1, 2]}, render: [wav, png]}
"""


@pytest.mark.parametrize(
    "workers", [pytest.param((), id="alone"), pytest.param(("--workers", "2"), id="workers", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("small", ["size=8m", "size=64m,nr_inodes=24"])
def test_a_disk_that_fills_up_takes_nothing_along(
    noise_pipeline: str,
    mounted: Callable[[str], Path],
    tmp_path: Path,
    small: str,
    workers: tuple[str, ...],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Of space, and of names."""
    file = tmp_path / "recipe.yaml"
    file.write_text(LARGE)
    assert main(["run", str(file), "--out", str(tmp_path / "undisturbed"), "--quiet"]) == 0
    whole = content(tmp_path / "undisturbed")
    out = mounted(small) / "out"
    capfd.readouterr()
    assert main(["run", str(file), "--out", str(out), "--quiet", *workers]) == 4
    (said,) = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("no report:")]
    assert "no space left" in said
    assert "left to do by the same command" in said
    assert ("MB more than is free" in said) == (small == "size=8m")
    there = content(out)
    assert 0 < len(there) < len(whole)
    assert there.items() <= whole.items()
    assert leavings(out) == []
    assert main(["run", str(file), "--out", str(out), "--quiet", *workers]) == 4  # still full; and no worse for it
    assert content(out).items() <= whole.items()
    mounted("size=64m,nr_inodes=0")
    assert main(["run", str(file), "--out", str(out), "--quiet", *workers]) == 0
    assert content(out) == whole
    assert leavings(out) == []
    assert {done.output for done in read(out).done.values()} == {
        job.output for job in plan.make(recipe.load(file)).jobs
    }


@pytest.mark.parametrize("made", ["nothing", "some", "all"])
def test_a_read_only_folder_is_told_in_one_line(
    noise_pipeline: str, mounted: Callable[[str], Path], tmp_path: Path, made: str, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("pipeline: test-noise\nparams: {width: 4, height: 4}\nmatrix: {seed: [1, 2]}\noutput: '{seed}.png'")
    command = ["run", str(file), "--out", str(mounted("size=1m") / "out"), "--quiet"]
    if made != "nothing":
        assert main(command) == 0
    if made == "some":
        (tmp_path / "disk/out/2.png").unlink()
    before = content(tmp_path / "disk")
    mounted("ro")
    capfd.readouterr()
    assert main(command) == 2
    (said,) = capfd.readouterr().err.splitlines()
    assert "Read-only file system" in said
    assert str(tmp_path / "disk/out") in said
    assert content(tmp_path / "disk") == before
    mounted("rw")
    assert main(command) == 0
    assert set(content(tmp_path / "disk/out")) == {"1.png", "2.png"}


# Clocks, and what changes under a run.


@pytest.mark.parametrize("ahead", [10**9, -(10**9)])
def test_a_clock_that_jumps_changes_nothing(
    flaky: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Thirty years to and fro at each look at it, then a run thirty years before or after the last."""
    file = tmp_path / "recipe.yaml"
    file.write_text(
        EVERY_KIND + f"- {{name: flaky, pipeline: {flaky}, params: {{fail: once, tries: {tmp_path / 'log'}}}}}"
    )
    assert main(["run", str(file), "--out", str(tmp_path / "undisturbed"), "--quiet"]) == 0
    (tmp_path / "log").unlink()
    jumps = itertools.cycle([0, 2 * 10**9, ahead, 1.5])
    monkeypatch.setattr("time.time", lambda: 10**9 + next(jumps))
    out = str(tmp_path / "out")
    assert main(["run", str(file), "--out", out, "--quiet"]) == 0
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")
    monkeypatch.setattr("time.time", lambda: 10**9 + ahead)
    before = (tmp_path / "out/.genkit/journal.jsonl").read_bytes()
    assert main(["run", str(file), "--out", out, "--quiet"]) == 0
    assert (tmp_path / "out/.genkit/journal.jsonl").read_bytes() == before
    (tmp_path / "out/paint/1.png").unlink()
    for command in ("status", "verify", "report"):
        assert main([command, out]) == (3 if command == "verify" else 0), capsys.readouterr()
    assert main(["run", str(file), "--out", out, "--quiet"]) == 0
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")


def test_an_input_that_changes_between_two_jobs_of_a_run(noise_pipeline: str, tmp_path: Path) -> None:
    """What was made from it before is kept; what would be made from it now is not, since it is not what was planned."""
    picture = tmp_path / "a.png"
    shutil.copyfile(_noise(tmp_path, 1), picture)
    planned = plan.make(
        recipe.parse(
            "pipeline: test-noise\nparams: {content: a.png}\nmatrix: {seed: [1, 2]}\noutput: '{seed}.png'",
            root=tmp_path,
        )
    )

    class Meddler(runner.Watch):
        def done(self, outcome: object, final: bool) -> None:
            shutil.copyfile(_noise(tmp_path, 2), picture)

    summary = runner.run(planned, tmp_path / "out", watch=Meddler(), batch=1)
    assert (summary.done, [entry.output for entry in summary.failed]) == (1, ["2.png"])
    assert "content changed since the batch was planned" in summary.failed[0].error
    assert set(content(tmp_path / "out")) == {"1.png"}
    shutil.copyfile(_noise(tmp_path, 1), picture)
    again = runner.run(planned, tmp_path / "out", batch=1)
    assert (again.done, again.skipped, again.failed) == (1, 1, [])


def test_a_journal_that_is_cut_anywhere_costs_nothing(noise_pipeline: str, tmp_path: Path) -> None:
    """Nor does one that ends in zeros, as a file system may leave it that lost its power."""
    file = tmp_path / "recipe.yaml"
    file.write_text(EVERY_KIND)
    out = tmp_path / "out"
    command = ["run", str(file), "--out", str(out), "--quiet", "--no-report"]
    assert main(command) == 0
    made, path = content(out), out / ".genkit/journal.jsonl"
    whole = path.read_bytes()
    for cut in range(0, len(whole), len(whole) // 12):
        path.write_bytes(whole[:cut] + b"\0" * (cut % 3 * 1000))
        assert main(command) == 0
        assert content(out) == made
        assert not read(out).damaged


def test_an_output_that_changes_before_the_next_stage_takes_it(noise_pipeline: str, tmp_path: Path) -> None:
    planned = plan.make(
        recipe.parse(
            "stages:\n- {name: a, pipeline: test-noise}\n"
            "- {name: b, pipeline: test-noise, files: {content: {stage: a}}}",
            root=tmp_path,
        )
    )
    runner.run(planned, tmp_path / "undisturbed")
    first = planned.jobs[0].output

    class Meddler(runner.Watch):
        def done(self, outcome: object, final: bool) -> None:
            shutil.copyfile(tmp_path / "undisturbed" / planned.jobs[1].output, tmp_path / "out" / first)

    summary = runner.run(planned, tmp_path / "out", watch=Meddler())
    assert (summary.done, len(summary.failed)) == (1, 1)
    assert f"{first!r} made is not as it was written; `genkit repair`" in summary.failed[0].error
    assert main(["repair", str(tmp_path / "out")]) == 0
    assert runner.run(planned, tmp_path / "out").failed == []
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")


def _noise(folder: Path, seed: int) -> Path:
    import torch

    path = folder / f"noise-{seed}.png"
    if not path.exists():
        pixels = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(seed))
        Image.from_tensor(pixels).save(path)
    return path


# Jobs.

WORST = '''
"""Does to its process what it is told."""
import os, signal, time
from typing import ClassVar
from genkit.errors import InputError
from genkit.pipeline import Output, Params, Pipeline

class WorstParams(Params):
    do: str = ""

class Worst(Pipeline):
    name = "test-worst"
    Params: ClassVar = WorstParams
    def run(self, batch, progress):
        import torch
        from genkit.media.image import Image
        for params in batch:
            if params.do == "exit":
                os._exit(0)
            elif params.do == "abort":
                os.abort()
            elif params.do == "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            elif params.do == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif params.do == "hang":
                time.sleep(3600)
            elif params.do == "refuse":
                raise InputError("the input is wrong")
            elif params.do == "raise":
                raise SystemExit(7)
            elif params.do == "memory" and len(batch) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return [Output(images=[Image.from_tensor(torch.full((3, 4, 4), (p.seed or 0) % 7 / 7))]) for p in batch]
'''


@pytest.fixture
def worst(noise_pipeline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Installs `test-worst`, for child processes too."""
    from genkit import registry

    folder = packaged(tmp_path / "plugin", "worst", "Worst", WORST)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(folder), os.environ["PYTHONPATH"])))
    registry._entries.cache_clear()
    yield "test-worst"
    sys.modules.pop("worst_test_pipeline", None)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_worst_of_jobs_in_one_run(worst: str, tmp_path: Path) -> None:
    """Each is set aside in its own way, and every job beside them is made."""
    bad = ("exit", "abort", "crash", "kill", "hang", "refuse", "raise")
    rows = [{"do": do, "seed": 1} for do in bad] + [
        {"do": do, "seed": seed} for do in ("well", "memory") for seed in (1, 2, 3)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    planned = plan.make(
        recipe.parse(f"pipeline: {worst}\nrows: rows.jsonl\noutput: '{{do}}-{{seed}}.png'", root=tmp_path)
    )
    summary = runner.run(planned, tmp_path / "out", workers=2, job_timeout=5, retries=1)
    assert summary.done == 6
    assert set(content(tmp_path / "out")) == {f"{do}-{seed}.png" for do in ("well", "memory") for seed in (1, 2, 3)}
    failed = {entry.output.removesuffix("-1.png"): entry for entry in summary.failed}
    assert set(failed) == set(bad)
    assert {do for do, entry in failed.items() if entry.quarantined} >= {"exit", "abort", "crash", "kill"}
    assert "SIGABRT" in failed["abort"].error
    assert "SIGSEGV" in failed["crash"].error
    assert "longer than 5 s" in failed["hang"].error
    assert (failed["refuse"].attempt, failed["hang"].attempt) == (1, 2)
    again = runner.run(planned, tmp_path / "out", workers=2, job_timeout=5, retries=0)
    assert (again.done, again.skipped) == (0, 6)
    assert leavings(tmp_path / "out") == []
