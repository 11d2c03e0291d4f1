"""Running: only what is missing or changed is made, and whatever goes wrong with one job stays with it."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from genkit import registry
from genkit.batch import plan, recipe, runner
from genkit.batch.journal import Journal, read
from genkit.batch.runner import Summary
from genkit.errors import Cancelled, DiskFull, InputError
from genkit.media import provenance
from genkit.media.image import Image

GENKIT = [sys.executable, "-c", "import sys; from genkit.cli import main; sys.exit(main())"]
FOXES = "name: foxes\npipeline: test-noise\nparams: {width: 4, height: 4}\nmatrix: {seed: [1, 2, 3]}\n"
CHAIN = """\
stages:
- {name: paint, pipeline: test-noise, params: {width: 6, height: 6}, matrix: {seed: [1, 2]}}
- name: blend
  pipeline: test-noise
  files: {content: {stage: paint}}
- {name: tone, pipeline: test-tone}
- {name: tune, pipeline: test-tune}
"""


@pytest.fixture
def run(noise_pipeline: str, tmp_path: Path) -> Callable[..., Summary]:
    def run(text: str, out: str = "out", **options: object) -> Summary:
        return runner.run(plan.make(recipe.parse(text, root=tmp_path)), tmp_path / out, **options)  # type: ignore[arg-type]

    return run


def content(folder: Path) -> dict[str, str]:
    """Every file but the journal, by digest."""
    files = (path for path in folder.rglob("*") if path.is_file() and ".genkit" not in path.parts)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_second_run_does_nothing_and_touches_nothing(run, tmp_path: Path) -> None:
    first = run(CHAIN)
    assert (first.done, first.skipped, first.failed) == (6, 0, [])
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.name != "lock"}
    second = run(CHAIN)
    assert (second.done, second.skipped) == (0, 6)
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.name != "lock"}
    assert after == before


def test_the_same_recipe_elsewhere_makes_the_same_bytes(run, tmp_path: Path) -> None:
    run(CHAIN, "one")
    run(CHAIN, "two", batch=3)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_a_file_says_which_job_made_it(run, tmp_path: Path) -> None:
    run(CHAIN)
    done = read(tmp_path / "out").done
    for entry in done.values():
        for made in entry.files:
            record = provenance.read(tmp_path / "out" / made.path)
            assert record is not None
            assert record.job == entry.job
            assert provenance.digest_file(tmp_path / "out" / made.path) == made.sha256
    record = provenance.read(tmp_path / "out/blend/1.png")
    assert record is not None
    assert record.inputs["content"].path == record.params["content"] == "../paint/1.png"


def test_a_change_remakes_only_its_jobs(run, tmp_path: Path) -> None:
    run(FOXES)
    before = content(tmp_path / "out")
    changed = run(FOXES.replace("[1, 2, 3]", "[1, 2, 3, 4]"), replace=True)
    assert (changed.done, changed.skipped) == (1, 3)
    wider = run(FOXES + "include: [{seed: 2, strength: 0.9}]\noutput: '{seed}.png'\n", replace=True)
    assert (wider.done, wider.skipped) == (1, 2)
    after = content(tmp_path / "out")
    assert {name for name in before if after[name] != before[name]} == {"2.png"}


@pytest.mark.parametrize("damage", ["delete", "cut", "journal", "folder of the journal", "last line"])
def test_what_was_lost_is_made_again_the_same(run, tmp_path: Path, damage: str) -> None:
    run(CHAIN)
    out = tmp_path / "out"
    before = content(out)
    journal = out / ".genkit/journal.jsonl"
    if damage == "delete":
        (out / "paint/1.png").unlink()
    elif damage == "cut":
        (out / "paint/1.png").write_bytes((out / "paint/1.png").read_bytes()[:-5])
    elif damage == "journal":
        journal.unlink()
    elif damage == "folder of the journal":
        shutil.rmtree(out / ".genkit")
    else:
        journal.write_bytes(journal.read_bytes()[:-7])
    again = run(CHAIN)
    assert again.failed == []
    assert again.done + again.skipped == 6
    assert content(out) == before
    if damage in ("delete", "cut"):
        # What was made from the lost file need not be made again: it came out the same.
        assert (again.done, again.skipped) == (1, 5)
    assert run(CHAIN).skipped == 6


def test_a_file_whose_line_was_lost_is_not_made_again(run, tmp_path: Path) -> None:
    run(FOXES)
    shutil.rmtree(tmp_path / "out/.genkit")
    before = {path: path.stat().st_ino for path in (tmp_path / "out").glob("*.png")}
    assert run(FOXES).skipped == 3
    assert {path: path.stat().st_ino for path in (tmp_path / "out").glob("*.png")} == before


def test_somebody_elses_file_is_not_overwritten(run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    Image.open(_picture()).save(out / "2.png")
    before = content(out)
    with pytest.raises(InputError, match=r"2\.png.*no batch made it"):
        run(FOXES)
    assert content(out) == before


def _picture() -> object:
    from PIL import Image as PILImage

    return PILImage.new("RGB", (3, 3), "red")


def test_a_link_out_of_the_folder_is_not_followed(run, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/sub").symlink_to(tmp_path / "elsewhere")
    summary = run(FOXES + "output: 'sub/{seed}.png'\n")
    assert len(summary.failed) == 3
    assert "leads out" in summary.failed[0].error
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_several_pictures_of_a_job_do_not_write_over_another_job(run, tmp_path: Path) -> None:
    text = "pipeline: test-noise\nrows: [{count: 2, look: x}, {count: 1, look: x-2}]\noutput: '{look}.png'"
    summary = run(text)
    assert [failed.output for failed in summary.failed] == ["x.png"]
    assert "'x-2.png'" in summary.failed[0].error
    assert summary.done == 1


def test_a_later_stage_takes_the_file_it_asks_for(run, tmp_path: Path) -> None:
    text = """\
stages:
- {name: a, pipeline: test-noise, params: {count: 2, seed: 1, width: 4, height: 4}, output: a.png}
- name: b
  pipeline: test-noise
  params: {strength: 0, width: 4, height: 4}
  files: {content: {stage: a, take: TAKE}}
  output: b.png
"""
    assert run(text.replace("TAKE", "2")).failed == []
    first, second, made = (Image.open(tmp_path / "out" / name).digest() for name in ("a-1.png", "a-2.png", "b.png"))
    assert made == second != first
    summary = run(text.replace("TAKE", "3"), replace=True)
    assert (summary.blocked, len(summary.failed)) == (1, 1)
    assert "made fewer" in summary.failed[0].error


# Failures.


def second_fails(how: str, log: Path) -> str:
    return f"""\
pipeline: test-flaky
matrix: {{seed: [1, 2, 3]}}
params: {{tries: {log}}}
include: [{{seed: 2, fail: {how}}}]
output: "{{seed}}.png"
"""


@pytest.mark.parametrize(("fail", "tries"), [("input", 1), ("crash", 3)])
def test_a_failure_is_retried_by_its_kind_and_the_run_goes_on(
    run, flaky, tmp_path: Path, fail: str, tries: int
) -> None:
    log = tmp_path / "log"
    summary = run(second_fails(fail, log))
    assert summary.done == 2
    (failed,) = summary.failed
    assert failed.output == "2.png"
    assert log.read_text().splitlines().count("2 1") == tries == failed.attempt
    assert set(content(tmp_path / "out")) == {"1.png", "3.png"}
    assert read(tmp_path / "out").failed["2.png"] == failed
    assert ("RuntimeError" in failed.trace) == (fail == "crash")


def test_a_job_that_works_at_the_second_try_is_done(run, flaky, tmp_path: Path) -> None:
    summary = run(f"pipeline: test-flaky\nparams: {{fail: once, tries: {tmp_path / 'log'}}}")
    assert (summary.done, summary.failed) == (1, [])
    assert next(iter(read(tmp_path / "out").done.values())).attempt == 2


def test_jobs_of_one_key_share_a_pass_and_a_bad_one_does_not_take_the_others_along(run, flaky, tmp_path: Path) -> None:
    log = tmp_path / "log"
    text = f"pipeline: test-flaky\nmatrix: {{seed: [1, 2, 3, 4]}}\nparams: {{tries: {log}}}\noutput: '{{seed}}.png'\n"
    run(text, batch=3)
    assert log.read_text().splitlines() == ["1 3", "2 3", "3 3", "4 1"]
    summary = run(text + "include: [{seed: 2, fail: input}]", "other", batch=4)
    assert (summary.done, len(summary.failed)) == (3, 1)
    assert content(tmp_path / "other").items() <= content(tmp_path / "out").items()


@pytest.fixture
def in_twos(flaky, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flaky's jobs are handed over by three, and best made by two."""
    kind = registry.get(flaky)
    monkeypatch.setattr(kind, "together", 3)
    monkeypatch.setattr(kind, "at_once", lambda self, params: 2)


SIX = "pipeline: test-flaky\nmatrix: {seed: [1, 2, 3, 4, 5, 6]}\nparams: {tries: LOG}\noutput: '{seed}.png'\n"


def test_a_pipeline_says_how_many_jobs_share_a_pass_unless_the_run_does(run, in_twos, tmp_path: Path) -> None:
    for batch, sizes in ((0, "221221"), (1, "111111"), (4, "444422")):
        log = tmp_path / f"log{batch}"
        assert run(SIX.replace("LOG", str(log)), f"out{batch}", batch=batch).done == 6
        assert [line.split()[1] for line in log.read_text().splitlines()] == list(sizes)


def test_a_stop_is_heeded_between_the_passes_of_a_batch(run, in_twos, tmp_path: Path) -> None:
    stop = threading.Event()

    class Once(runner.Watch):
        def done(self, outcome, final) -> None:
            stop.set()

    with pytest.raises(Cancelled, match="2 made, 4 left"):
        run(SIX.replace("LOG", str(tmp_path / "log")), watch=Once(), stop=stop)
    assert set(content(tmp_path / "out")) == {"1.png", "2.png"}
    assert run(SIX.replace("LOG", str(tmp_path / "log"))).skipped == 2


def test_what_needs_a_failed_job_is_not_tried(run, flaky, tmp_path: Path) -> None:
    summary = run(
        "stages:\n- {name: a, pipeline: test-flaky, params: {fail: input}}\n"
        "- {name: b, pipeline: test-noise, files: {content: {stage: a}}}\n- {name: c, pipeline: test-noise}"
    )
    assert (summary.done, summary.blocked, len(summary.failed)) == (1, 1, 2)


def test_a_full_disk_stops_the_run(run, flaky, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(DiskFull, match="1 made, 2 left"):
        run(second_fails("full", log))
    assert log.read_text().splitlines() == ["1 1", "2 1"]
    assert set(content(tmp_path / "out")) == {"1.png"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("may not mount a tmpfs here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_leaves_whole_files_and_the_run_goes_on_when_there_is_room(
    noise_pipeline: str, small_disk: Path, tmp_path: Path
) -> None:
    text = "pipeline: test-noise\nparams: {width: 128, height: 128}\nmatrix: {seed: [1, 2, 3, 4, 5, 6, 7, 8]}"
    planned = plan.make(recipe.parse(text))
    with pytest.raises(DiskFull, match="left to do"):
        runner.run(planned, small_disk / "out")
    made = content(small_disk / "out")
    assert 0 < len(made) < 8
    assert list((small_disk / "out").glob(".*.tmp")) == []
    shutil.copytree(small_disk / "out", tmp_path / "larger")
    summary = runner.run(planned, tmp_path / "larger")
    assert (summary.skipped, summary.done) == (len(made), 8 - len(made))
    runner.run(planned, tmp_path / "fresh")
    assert content(tmp_path / "larger") == content(tmp_path / "fresh")


def test_an_input_that_changes_in_mid_run_fails_its_job(noise_pipeline: str, tmp_path: Path) -> None:
    Image.open(_picture()).save(tmp_path / "a.png")
    planned = plan.make(recipe.parse("pipeline: test-noise\nparams: {content: a.png}", root=tmp_path))
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes() + b"\0")
    summary = runner.run(planned, tmp_path / "out")
    assert "changed since the batch was planned" in summary.failed[0].error
    assert content(tmp_path / "out") == {}


def test_leavings_of_a_killed_run_are_swept_up(run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.1.png.genkit-0badcafe.tmp").write_bytes(b"half")
    run(FOXES)
    assert list((tmp_path / "out").glob(".*.tmp")) == []


def test_a_stop_from_another_thread_keeps_what_is_done(run, tmp_path: Path) -> None:
    stop = threading.Event()

    class Once(runner.Watch):
        def done(self, outcome, final) -> None:
            stop.set()

    with pytest.raises(Cancelled, match="1 made, 2 left"):
        run(FOXES, watch=Once(), stop=stop)
    assert run(FOXES).skipped == 1


# Processes.


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*GENKIT, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )


def wait_for(path: Path, lines: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() or len(path.read_text().splitlines()) < lines:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("number", "times", "status"),
    [
        (signal.SIGINT, 1, 130),
        (signal.SIGTERM, 1, 143),
        (signal.SIGINT, 2, 130),
        (signal.SIGTERM, 2, 143),
        (signal.SIGKILL, 1, -9),
    ],
)
def test_an_interrupted_run_goes_on_where_it_was(
    flaky: str, tmp_path: Path, number: int, times: int, status: int
) -> None:
    log = tmp_path / "log"
    file = tmp_path / "r.yaml"
    file.write_text(f"pipeline: test-flaky\nparams: {{sleep: 0.3, tries: {log}}}\nmatrix: {{seed: [1, 2, 3, 4]}}")
    process = start("run", file, "--out", tmp_path / "out")
    wait_for(log, 2, process)
    for _ in range(times):
        process.send_signal(number)
        time.sleep(0.05)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert "Traceback" not in errors
    finished = 2 if times == 1 and number != signal.SIGKILL else 1
    assert len(read(tmp_path / "out").done) == finished
    again = runner.run(plan.make(recipe.load(file)), tmp_path / "out")
    assert (again.skipped, again.done) == (finished, 4 - finished)
    assert len(log.read_text().splitlines()) == (4 if finished == 2 else 5)


def test_a_second_runner_is_turned_away(run, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(FOXES)
    with Journal(tmp_path / "out"):
        process = start("run", file, "--out", tmp_path / "out")
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    assert f"process {os.getpid()}" in errors
    assert content(tmp_path / "out") == {}
