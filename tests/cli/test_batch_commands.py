"""genkit status, retry, verify, repair and report, as a person types them."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genkit.batch import plan
from genkit.batch.journal import Done, Failed, Journal, Made, read
from genkit.cli import commands, main

COMMANDS = ("status", "retry", "verify", "repair", "report")
CHAIN = """\
stages:
- {name: paint, pipeline: test-noise, params: {width: 4, height: 4}, matrix: {content: [good.png, bad.png]}}
- {name: blend, pipeline: test-noise, params: {width: 4, height: 4}, files: {content: {stage: paint}}}
- {name: last, pipeline: test-noise, params: {width: 4, height: 4}, files: {content: {stage: blend}}}
"""
Said = Callable[..., tuple[int, str, str]]
OUT = "outputs/foxes"


@pytest.fixture
def folder(noise_pipeline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the tests work, with the recipe foxes.yaml: three pictures."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "foxes.yaml").write_text(
        "pipeline: test-noise\nparams: {width: 4, height: 4}\nmatrix: {seed: [1, 2, 3]}\n"
    )
    return tmp_path


@pytest.fixture
def say(folder: Path, capsys: pytest.CaptureFixture[str]) -> Said:
    """Runs a command: its exit status, what it printed, what it said."""

    def say(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(list(arguments))
        return status, *capsys.readouterr()

    return say


@pytest.fixture
def facts(say: Said) -> Callable[..., dict[str, Any]]:
    """Runs a command with --json."""

    def facts(*arguments: str, status: int = 0) -> dict[str, Any]:
        found, out, _ = say(*arguments, "--json")
        assert found == status
        value = json.loads(out)
        assert isinstance(value, dict)
        return value

    return facts


@pytest.fixture
def foxes(say: Said) -> Path:
    """A batch that is done."""
    assert say("run", "foxes.yaml", "--quiet")[0] == 0
    return Path(OUT)


@pytest.fixture
def chain(say: Said, foxes: Path) -> Path:
    """A batch of which one job failed, and two are blocked by it."""
    Path("good.png").write_bytes((foxes / "1.png").read_bytes())
    Path("bad.png").write_text("no picture")
    Path("chain.yaml").write_text(CHAIN)
    assert say("run", "chain.yaml", "--quiet", "--no-report")[0] == 3
    return Path("outputs/chain")


# -------------------------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_it_is_for_and_what_its_exit_means(say: Said, command: str) -> None:
    assert command in commands()
    status, out, err = say(command, "--help")
    assert (status, err) == (0, "")
    for words in ("genkit run", "DIR", "Exit status: 0", "--json", " 2 "):
        assert words in " ".join(out.split())


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("nowhere", "not there"),
        ("foxes.yaml", "no folder"),
        (".", "holds no batch"),
        ("s3x://somewhere", "s3x"),
        ("na\nme", "not there"),
    ],
)
def test_what_is_no_batch_is_said_in_one_line(say: Said, command: str, place: str, words: str) -> None:
    status, out, err = say(command, place)
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert words in err
    assert not Path(".genkit").exists()


@pytest.mark.parametrize("command", ["status", "retry", "report"])
def test_a_lost_plan_is_told_with_its_remedy(say: Said, foxes: Path, command: str) -> None:
    (foxes / plan.PATH).unlink()
    status, out, err = say(command, OUT)
    assert (status, out) == (2, "")
    assert "run the recipe again" in err
    (foxes / plan.PATH).write_text("{")
    status, out, err = say(command, OUT)
    assert status != 0
    assert "is damaged" in err


def test_a_folder_that_cannot_be_written_is_looked_at_and_left(say: Said, foxes: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (*foxes.rglob("*"), foxes)}
    for path in before:
        path.chmod(stat.S_IRUSR | (stat.S_IXUSR if path.is_dir() else 0))
    try:
        assert [say(command, OUT)[0] for command in ("status", "verify")] == [0, 0]
        if os.geteuid():  # nothing is forbidden to root
            for command in ("repair", "report", "retry"):
                status, _, err = say(command, OUT)
                assert status
                assert "choose another" in err
        assert {path: path.stat().st_mtime_ns for path in before} == before or not os.geteuid()
    finally:
        for path in before:
            path.chmod(stat.S_IRWXU)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_empty_journal_is_a_batch_of_which_nothing_is_done(say: Said, foxes: Path, command: str) -> None:
    (foxes / ".genkit/journal.jsonl").write_bytes(b"")
    assert say(command, OUT)[0] == 0


# ------------------------------------------------------------------------------------------------------------ status


def test_status_of_a_batch_that_is_done(say: Said, facts, foxes: Path) -> None:
    status, out, err = say("status", OUT)
    assert (status, err) == (0, "")
    assert "done:   3 of 3" in out
    assert "runner: none\n" in out
    found = facts("status", OUT)
    assert (found["recipe"], found["runner"], found["jobs"], found["done"]) == ("foxes", None, 3, 3)
    assert found["bytes"] == sum(path.stat().st_size for path in foxes.glob("*.png"))
    assert found["seconds"] > 0
    assert (found["now"], found["failures"], found["seconds_left"]) == ([], [], None)
    assert found["stages"]["stage1"]["done"] == 3


def test_status_tells_failed_from_blocked_and_by_stage(say: Said, facts, chain: Path) -> None:
    found = facts("status", str(chain))
    assert [found[name] for name in ("jobs", "done", "failed", "blocked", "to_do")] == [6, 3, 1, 2, 0]
    assert [one["output"] for one in found["failures"]] == ["paint/bad.png"]
    assert "trace" not in found["failures"][0]
    assert {name: stage["blocked"] for name, stage in found["stages"].items()} == {"paint": 0, "blend": 1, "last": 1}
    _, out, err = say("status", str(chain))
    assert "  blend: 1 of 2, 1 blocked" in out
    assert "  paint/bad.png: " in out
    assert "genkit retry" in err


def test_status_tells_quarantine_and_what_was_made_with_less(facts, foxes: Path) -> None:
    with Journal(foxes) as journal:
        done = journal.state.done["1.png"]
        journal.enter(Failed(journal.state.done["2.png"].job, "2.png", "it kills", 3, quarantined=True))
        journal.enter(Done(**{**vars(done), "degraded": "decoded in tiles"}))
    (foxes / "2.png").unlink()
    (foxes / "3.png").unlink()
    found = facts("status", OUT)
    assert [found[name] for name in ("done", "degraded", "quarantined", "to_do")] == [1, 1, 1, 1]
    assert found["failures"][0]["quarantined"] is True


def test_status_of_a_batch_that_runs(facts, say: Said, foxes: Path) -> None:
    ids = {output: done.job for output, done in read(foxes).done.items()}
    with Journal(foxes) as journal:
        journal.plan(recipe="foxes", jobs=3)
        journal.start(["1.png", "2.png"])
        for name in ("1.png", "2.png", "3.png"):
            (foxes / name).unlink()
        found = facts("status", OUT)
        assert found["runner"].startswith(f"process {os.getpid()} on ")
        assert [found[name] for name in ("done", "running", "to_do")] == [0, 2, 1]
        assert [one["output"] for one in found["now"]] == ["1.png", "2.png"]
        assert abs(found["now"][0]["since"] - time.time()) < 30
        assert found["seconds_left"] is None
        (foxes / "1.png").write_bytes(b"four")
        journal.enter(Done(ids["1.png"], "1.png", (Made("1.png", "0" * 64, 4),)))
        found = facts("status", OUT)
        assert [found[name] for name in ("done", "running", "to_do", "made")] == [1, 1, 1, 1]
        assert found["seconds_left"] >= 0
        assert "  2.png, for " in say("status", OUT)[1]
    found = facts("status", OUT)  # the runner is gone: what it had begun is to be done
    assert [found[name] for name in ("done", "running", "to_do")] == [1, 0, 2]


def test_status_watches_until_nobody_works(foxes: Path, monkeypatch: pytest.MonkeyPatch, say: Said) -> None:
    from genkit.cli import status

    journal = Journal(foxes)
    monkeypatch.setattr(status, "PAUSE", 0.01)
    looks = []

    def stop(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            journal.__exit__()

    monkeypatch.setattr(time, "sleep", stop)
    assert say("status", OUT, "--watch", "--json")[0] == 0
    assert len(looks) == 2


# ------------------------------------------------------------------------------------------------------------- retry


def test_retry_tries_what_failed_and_its_followers_again(facts, say: Said, chain: Path) -> None:
    """What failed for want of a file is made when the file is there."""
    kept = read(chain).done
    found = facts("retry", str(chain), "--retries", "0", status=3)
    assert [one["output"] for one in found["failed"]] == ["paint/bad.png", "blend/bad.png", "last/bad.png"]
    assert (found["skipped"], found["done"]) == (3, 0)
    job = next(job for job in plan.read(chain).jobs if job.output == "paint/bad.png")  # type: ignore[union-attr]
    Path("bad.png").write_bytes(Path("good.png").read_bytes())
    status, _, err = say("retry", str(chain))  # another picture than the one that was planned
    assert status == 3
    assert job.output in err
    assert read(chain).done == kept


def test_retry_makes_what_failed_when_it_can_be_made(facts, say: Said, chain: Path) -> None:
    with Journal(chain) as journal:  # as if it had been a passing fault
        good = [journal.state.done[f"{stage}/good.png"] for stage in ("paint", "blend", "last")]
        journal.enter(Failed(good[0].job, good[0].output, "it kills", 3, quarantined=True))
        for done in good[1:]:
            journal.enter(Failed(done.job, done.output, "that job failed"))
    before = {done.output: (chain / done.output).read_bytes() for done in good}
    for name in before:
        (chain / name).unlink()
    assert facts("status", str(chain))["quarantined"] == 1
    found = facts("retry", str(chain), "--job", good[0].job[:10])
    assert (found["done"], found["failed"], found["left"]) == (3, [], 3)  # what was blocked came along
    assert {name: (chain / name).read_bytes() for name in before} == before
    assert found["report"] == str((chain / "report.html").absolute())


@pytest.mark.parametrize("name", ["last/good.png", "outputs/chain/last/good.png"])
def test_a_job_is_named_by_its_file_and_what_it_takes_is_made_first(facts, chain: Path, name: str) -> None:
    for stage in ("paint", "blend", "last"):
        (chain / stage / "good.png").unlink()
    found = facts("retry", str(chain), "--job", name)
    assert (found["done"], found["failed"], found["left"]) == (3, [], 3)


def test_a_job_that_is_done_is_left_as_it_is(say: Said, foxes: Path) -> None:
    before = (foxes / "1.png").stat().st_mtime_ns
    status, _, err = say("retry", OUT, "--job", "1.png")
    assert status == 0
    assert "'1.png' is done" in err
    assert (foxes / "1.png").stat().st_mtime_ns == before
    status, _, err = say("retry", OUT)
    assert status == 0
    assert "nothing has failed" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--job", "nope"], "no job of"),
        (["--job", ""], "no job of"),
        (["--job", "../../foxes.yaml"], "no job of"),
        (["--dtype", "float32"], "planned without a --dtype"),
        (["--workers", "x"], "--workers"),
        (["--address", "auto"], "--engine ray"),
    ],
)
def test_a_wrong_retry_is_one_line(say: Said, foxes: Path, arguments: list[str], words: str) -> None:
    status, out, err = say("retry", OUT, *arguments)
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert words in err


def test_the_beginning_of_several_ids_is_no_name(foxes: Path) -> None:
    from genkit.batch.selection import Selection
    from genkit.batch.store import Folder
    from genkit.errors import InputError

    jobs = Selection(plan.read(foxes), Folder(foxes.absolute()), read(foxes))  # type: ignore[arg-type]
    jobs.ids = {"1.png": "abcd1", "2.png": "abcd2", "3.png": "efgh"}
    assert jobs.named(["efgh", "abcd1"]) == {"1.png", "3.png"}
    with pytest.raises(InputError, match="begins 2 jobs' ids"):
        jobs.named(["abcd"])
    with pytest.raises(InputError, match="no job of"):
        jobs.named(["ab"])


def test_retry_goes_by_the_dtype_of_the_plan(say: Said, folder: Path, facts) -> None:
    assert say("run", "foxes.yaml", "--dtype", "float32", "--quiet")[0] == 0
    Path(OUT, "2.png").unlink()
    assert facts("retry", OUT, "--job", "2.png")["done"] == 1
    assert facts("retry", OUT, "--job", "2.png", "--dtype", "float32")["skipped"] == 3
    assert "planned for --dtype float32" in say("retry", OUT, "--dtype", "float16")[2]


@pytest.mark.parametrize("command", ["retry", "repair"])
def test_a_folder_at_work_is_left_alone(say: Said, foxes: Path, command: str) -> None:
    with Journal(foxes):
        status, out, err = say(command, OUT)
    assert (status, out) == (75, "")
    assert err.splitlines()[-1].startswith("genkit: another run")


# --------------------------------------------------------------------------------------------------- verify and repair


def test_verify_and_repair_and_run_end_where_it_began(say: Said, facts, foxes: Path) -> None:
    assert say("verify", OUT)[0] == 0
    before = {path.name: path.read_bytes() for path in foxes.glob("*.png")}
    (foxes / "1.png").write_bytes(b"spoilt")
    (foxes / "2.png").unlink()
    content = bytearray(before["3.png"])
    content[-20] ^= 1
    (foxes / "3.png").write_bytes(content)
    (foxes / "mine.txt").write_text("mine")
    status, out, err = say("verify", OUT)
    assert status == 3
    assert [line.split(": ")[0] for line in out.splitlines()] == ["1.png", "2.png", "3.png"]
    assert all("genkit run" in line for line in out.splitlines())
    assert "mine.txt" in err
    assert err.splitlines()[-1].startswith("genkit: 3 faults in")
    found = facts("verify", OUT, status=3)
    assert [fault["kind"] for fault in found["faults"]] == ["size", "missing", "content"]
    assert found["unknown"] == ["mine.txt"]
    assert [fault["kind"] for fault in facts("verify", OUT, "--quick", status=3)["faults"]] == ["size", "missing"]
    result = facts("repair", OUT)
    assert sorted(result["again"]) == ["1.png", "2.png", "3.png"]
    assert facts("verify", OUT)["doubtful"] == ["1.png", "2.png", "3.png"]
    assert facts("status", OUT)["to_do"] == 3
    assert facts("run", "foxes.yaml")["done"] == 3
    assert {path.name: path.read_bytes() for path in foxes.glob("*.png")} == before
    assert say("verify", OUT, "--quiet") == (0, "", "")


def test_names_that_nobody_should_give_are_told_in_one_line(say: Said, facts, foxes: Path) -> None:
    names = ["a\nb.png", "\x1b[31mred", os.fsdecode(b"\xff.png"), "ä" * 60]
    for name in names:
        (foxes / name).write_text("x")
    (foxes / "dangling").symlink_to("nowhere")
    os.mkfifo(foxes / "fifo.png")
    status, out, err = say("verify", OUT)
    assert (status, out) == (0, "")
    assert len(err.splitlines()) == 2
    assert "\x1b" not in err
    assert len(facts("verify", OUT)["unknown"]) == 6
    (foxes / ".genkit/journal.jsonl").unlink()
    (foxes / plan.PATH).unlink()
    Path(foxes, ".genkit/lock").unlink()
    (foxes / ".genkit").rmdir()
    assert facts("repair", OUT)["entered"] == ["1.png", "2.png", "3.png"]  # it waits for no pipe


def test_a_lost_journal_is_rebuilt_in_words(say: Said, facts, foxes: Path) -> None:
    (foxes / ".genkit/journal.jsonl").write_bytes(b"garbage\n")
    status, out, err = say("repair", OUT)
    assert (status, out) == (0, "")
    assert "1 line of the journal" in err
    assert "3 entered" in err
    assert "journal.jsonl.old" in err
    assert facts("run", "foxes.yaml")["skipped"] == 3
    (foxes / plan.PATH).unlink()
    assert "the plan is lost" in say("repair", OUT)[2]
    status, _, err = say("verify", OUT)
    assert status == 0
    assert "lost its plan" in err


def test_repair_tells_what_it_left_and_what_it_moved(say: Said, foxes: Path) -> None:
    (foxes / ".genkit/journal.jsonl").unlink()
    (foxes / "1.png").write_bytes(b"nothing")
    from PIL import Image

    Image.new("RGB", (2, 2)).save(foxes / "2.png")
    status, out, err = say("repair", OUT)
    assert status == 0
    assert "moved aside: 1.png: " in out
    assert "left alone: 2.png: " in out
    assert "1 entered, 1 moved aside" in err


def test_repair_of_a_url_says_why_it_is_not_needed(say: Said) -> None:
    status, _, err = say("repair", "memory://somewhere")
    assert status == 2
    assert "only a folder is repaired" in err


@pytest.mark.parametrize("command", ["verify", "repair"])
def test_ctrl_c_leaves_everything_as_it_was(
    say: Said, foxes: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genkit.batch import verify

    before = (foxes / ".genkit/journal.jsonl").read_bytes()

    def interrupted(path: Path) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(verify, "_content", interrupted)
    status, out, err = say(command, OUT)
    assert (status, out, err.strip()) == (130, "", "genkit: stopped")
    assert (foxes / ".genkit/journal.jsonl").read_bytes() == before
    with Journal(foxes):  # and the lock was given back
        pass


# ------------------------------------------------------------------------------------------------------------ report


def test_report_is_written_again(say: Said, facts, foxes: Path) -> None:
    page = foxes / "report.html"
    page.unlink()
    assert say("report", OUT) == (0, f"{page.absolute()}\n", "")
    assert "3.png" in page.read_text()
    page.unlink()
    assert facts("report", OUT) == {"out": str(foxes.absolute()), "report": str(page.absolute())}
    assert page.exists()


# ------------------------------------------------------------------------------------------------------------- a URL


def test_a_batch_behind_a_url_is_told_and_verified(facts, say: Said, folder: Path, monkeypatch) -> None:
    pytest.importorskip("fsspec")
    monkeypatch.setenv("GENKIT_HOME", str(folder / "home"))
    url = f"local://{folder}/there"
    assert say("run", "foxes.yaml", "--out", url, "--quiet")[0] == 0
    assert facts("status", url)["done"] == 3
    assert facts("verify", url)["files"] == 3
    (folder / "there/2.png").write_bytes(b"spoilt")
    assert [fault["file"] for fault in facts("verify", url, status=3)["faults"]] == ["2.png"]
    assert facts("retry", url, "--job", "2.png")["done"] == 1
    assert facts("verify", url)["faults"] == []


def test_the_commands_start_without_what_is_heavy() -> None:
    code = f"""
import sys
from genkit.cli import main
for command in {COMMANDS!r}:
    main([command, "--help"])
heavy = {{"torch", "numpy", "PIL", "pydantic", "fsspec", "ray"}}
print(*sorted({{name.split('.')[0] for name in sys.modules}} & heavy))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""
