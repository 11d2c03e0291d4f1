"""A disk that fails: at whatever call it does, no file is half there, nothing is lost, and the next run goes on.

`faults.py` forks a run for every call that changes the output folder and spoils it there; what it says of each is
expected to be nothing. `faults.c` is compiled here; where it cannot be, the tests are skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import faults
import pytest

HERE = Path(__file__).parent
ALL = """\
stages:
- name: paint
  pipeline: test-noise
  params: {width: 6, height: 4}
  matrix: {seed: [1, 2]}
- {name: several, pipeline: test-noise, params: {width: 6, height: 4, count: 2, seed: 1}, output: several/look.png}
- name: blend
  pipeline: test-noise
  params: {width: 6, height: 4}
  files: {content: {stage: paint}}
  output: "{stem}.bmp"
- {name: tone, pipeline: test-tone, render: [png]}
- {name: tune, pipeline: test-tune, render: [png]}
"""
SOME = """\
stages:
- {name: paint, pipeline: test-noise, params: {width: 6, height: 4, count: 2}}
- name: blend
  pipeline: test-noise
  params: {width: 6, height: 4}
  files: {content: {stage: paint, take: 2}}
  output: "{stem}.bmp"
- {name: tune, pipeline: test-tune, render: [png]}
"""


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that makes a disk fail."""
    if sys.platform != "linux":
        pytest.skip("the disk that fails is made for Linux")
    if shutil.which("cc") is None:
        pytest.skip("no C compiler (cc) to make the disk that fails")
    try:
        return faults.build(tmp_path_factory.mktemp("faults"))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"the disk that fails does not compile: {error.stderr.decode()[-300:]}")


def sweep(disk: Path, folder: Path, recipe: str, *options: str) -> list[dict[str, Any]]:
    """Every call of a run spoilt once, as `faults.py` tells it."""
    (folder / "recipe.yaml").write_text(recipe)
    command = [HERE / "faults.py", folder / "recipe.yaml", "--scratch", folder / "runs", *options]
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env={**os.environ, "LD_PRELOAD": str(disk), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def broken(cases: list[dict[str, Any]]) -> list[str]:
    return [f"{case['n']}, {case['hit']}: {'; '.join(case['wrong'])}" for case in cases if case["wrong"]]


def hits(cases: list[dict[str, Any]], call: str, place: str) -> list[int]:
    """How the runs ended that were spoilt in a call at a place."""
    return [case["status"] for case in cases if case["hit"].startswith(call) and place in case["hit"]]


@pytest.mark.usefixtures("noise_pipeline")
@pytest.mark.timeout(1800)
class TestEveryCall:
    def test_a_run_that_is_killed_at_any_call(self, disk: Path, tmp_path: Path) -> None:
        cases = sweep(disk, tmp_path, SOME, "--how", "kill")
        assert broken(cases) == []
        assert {case["status"] for case in cases} == {-9}
        # None of the places that matter was passed over.
        for call, place in (
            ("write", "staging/"),
            ("fsync", "staging/"),
            ("link", "paint/recipe-2.png"),
            ("rename", ".bmp.genkit.json"),
            ("link", "tune/recipe.mid"),
            ("fsync", "tune"),
            ("pwrite", "journal.jsonl"),
            ("fsync", "journal.jsonl"),
            ("rename", "plan.jsonl"),
            ("rename", "report.html"),
        ):
            assert hits(cases, call, place), (call, place)

    def test_power_that_fails_at_any_call(self, disk: Path, tmp_path: Path) -> None:
        """Names that were not synced are lost, and all that was not of a file's content. What the journal says is done
        is there."""
        assert broken(sweep(disk, tmp_path, SOME, "--how", "kill", "--lose", "names")) == []

    def test_a_disk_that_is_full_from_any_call_on(self, disk: Path, tmp_path: Path) -> None:
        cases = sweep(disk, tmp_path, SOME, "--error", "ENOSPC", "--how", "half")
        assert broken(cases) == []
        for place in ("staging/", "paint", "journal.jsonl"):
            assert set(hits(cases, "", place)) == {4}

    def test_a_call_that_fails_once_is_tried_again(self, disk: Path, tmp_path: Path) -> None:
        cases = sweep(disk, tmp_path, SOME, "--error", "EIO", "--how", "once")
        assert broken(cases) == []
        assert set(hits(cases, "", "staging/")) == {0}  # of an output: made at the second try
        assert set(hits(cases, "", "journal.jsonl")) == {1}  # what is done cannot be entered: the run stops

    @pytest.mark.slow
    @pytest.mark.parametrize("lost", ["", "names", "data"])
    def test_every_kind_of_media_killed_at_any_call(self, disk: Path, tmp_path: Path, lost: str) -> None:
        assert broken(sweep(disk, tmp_path, ALL, "--how", "kill", *(("--lose", lost) if lost else ()))) == []

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("error", "how"),
        [("ENOSPC", "half"), ("ENOSPC", "once"), ("EDQUOT", "on"), ("EIO", "once"), ("EIO", "on"), ("EROFS", "on")],
    )
    def test_any_error_at_any_call(self, disk: Path, tmp_path: Path, error: str, how: str) -> None:
        assert broken(sweep(disk, tmp_path, ALL, "--error", error, "--how", how)) == []

    @pytest.mark.slow
    @pytest.mark.parametrize(("error", "how"), [("EIO", "kill"), ("ENOSPC", "half"), ("EIO", "once")])
    def test_any_call_of_a_worker(self, disk: Path, tmp_path: Path, error: str, how: str) -> None:
        cases = sweep(disk, tmp_path, SOME, "--error", error, "--how", how, "--workers", "2", "--at-once", "2")
        assert broken(cases) == []
        assert hits(cases, "link", "paint/")
