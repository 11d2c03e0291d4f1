"""verify finds every kind of damage, and repair rebuilds a journal from the files, whatever became of it."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from genkit.batch import journal, plan, recipe, runner
from genkit.batch import report as reports
from genkit.batch.journal import Done, Failed, Journal, Made, State
from genkit.batch.repair import Repaired, repair
from genkit.batch.runner import Summary
from genkit.batch.store import Folder
from genkit.batch.verify import Findings, verify
from genkit.errors import Locked
from genkit.media.image import Image

CHAIN = """\
stages:
- name: paint
  pipeline: test-noise
  params: {width: 6, height: 6, count: 2}
  matrix: {seed: [1, 5]}
  output: "paint/ä {seed}.png"
- {name: blend, pipeline: test-noise, params: {width: 6, height: 6}, files: {content: {stage: paint, take: 2}}}
- {name: tune, pipeline: test-tune, render: [png], output: tune.mid}
- {name: plain, pipeline: test-noise, params: {width: 6, height: 6, seed: 9}, output: plain.bmp}
"""
BLEND, PAINT = "blend/ä 1.png", "paint/ä 1.png"
Run = Callable[..., Summary]


@pytest.fixture
def run(noise_pipeline: str, tmp_path: Path) -> Run:
    def run(text: str = CHAIN, out: str = "out", **options: object) -> Summary:
        planned = plan.make(recipe.parse(text, root=tmp_path))
        return runner.run(planned, tmp_path / out, **options)  # type: ignore[arg-type]

    return run


@pytest.fixture
def out(run: Run, tmp_path: Path) -> Path:
    assert run().failed == []
    return tmp_path / "out"


def check(out: Path, **options: bool) -> Findings:
    return verify(Folder(out), plan.read(out), **options)


def mend(out: Path) -> Repaired:
    return repair(Folder(out))


def facts(state: State) -> dict[str, tuple[object, ...]]:
    """What a journal says that the files tell too; times and tries are known by it alone."""
    return {output: (done.job, done.files, done.inputs) for output, done in state.done.items()}


def content(out: Path) -> dict[str, bytes]:
    paths = (path for path in out.rglob("*") if path.is_file() and ".genkit" not in path.parts)
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in paths if path.name != reports.NAME}


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)


# ----------------------------------------------------------------------------------------------------------- verify


def test_what_was_made_is_as_it_was_made(out: Path) -> None:
    found = check(out)
    assert (found.files, found.jobs, found.done) == (9, 6, 6)
    assert found.bytes == sum(len(data) for name, data in content(out).items() if not name.endswith(".json"))
    assert (found.faults, found.unknown, found.gone, found.doubtful, found.runner) == ([], [], [], [], "")


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "missing": (BLEND, lambda path: path.unlink()),
    "size": (BLEND, lambda path: path.write_bytes(path.read_bytes()[:-3])),
    "size 0": ("tune.mid", lambda path: path.write_bytes(b"")),
    "content": ("paint/ä 5-2.png", lambda path: flip(path, -20)),
    "content of a rendering": ("tune.png", lambda path: flip(path, 40)),
    "record": ("plain.bmp", lambda path: path.with_name("plain.bmp.genkit.json").unlink()),
    "unreadable": ("plain.bmp", lambda path: path.with_name("plain.bmp.genkit.json").write_text("{")),
    "missing, a folder": (BLEND, lambda path: (path.unlink(), path.mkdir())),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_found_and_repaired_by_the_next_run(run: Run, out: Path, damage: str) -> None:
    before = content(out)
    name, spoil = DAMAGES[damage]
    spoil(out / name)
    faults = check(out).faults
    assert [fault.file for fault in faults] == [name]
    if "folder" in damage:
        assert faults[0].kind in ("size", "unreadable")
        return
    assert faults[0].kind == damage.split()[0]
    quick = [fault.kind for fault in check(out, quick=True).faults]
    assert quick == ([faults[0].kind] if faults[0].kind in ("missing", "size") else [])
    result = mend(out)
    assert len(result.again) == 1
    assert result.sound == 5
    assert check(out).faults == []  # what is to be made again is told otherwise
    assert len(check(out).doubtful) == 1
    again = run()
    assert (again.done, again.skipped, again.failed) == (1, 5, [])
    assert content(out) == before
    assert check(out).faults == []
    assert check(out).doubtful == []


def test_a_file_of_another_job_is_no_file_of_this_one(out: Path) -> None:
    entry = journal.read(out).done[BLEND]
    with Journal(out) as written:
        written.enter(Done("0" * 64, BLEND, entry.files))
    assert [(fault.file, fault.kind) for fault in check(out).faults] == [(BLEND, "record")]


def test_leavings_and_damaged_lines_are_faults_and_strangers_are_not(out: Path) -> None:
    (out / "notes.txt").write_text("mine")
    left = [
        out / ".genkit/staging/x/1.png",
        out / "paint/.ä 1-1.png.genkit-0a1b2c3d.tmp",
        out / ".genkit/.plan.jsonl.genkit-00.tmp",
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    with (out / ".genkit/journal.jsonl").open("ab") as file:
        file.write(b'{"kind": "done"}\n')
    found = check(out)
    assert found.unknown == ["notes.txt"]
    assert sorted(fault.file for fault in found.faults if fault.kind == "leftover") == sorted(
        path.relative_to(out).as_posix() for path in left
    )
    assert [fault.says for fault in found.faults if fault.kind == "journal"] == ["1 line is damaged"]
    with Journal(out):  # a runner that lives has its drafts in its hands
        found = check(out)
        assert "process" in found.runner
        assert {fault.kind for fault in found.faults} == {"journal"}


def test_what_a_runner_makes_again_meanwhile_is_no_fault(out: Path) -> None:
    again, at = out / "tune.mid", out / BLEND
    entry = journal.read(out).done["tune.mid"]
    with Journal(out) as running:

        def made_again(step: int, total: int, **more: object) -> None:
            if step == 1:
                again.write_bytes(again.read_bytes() + b"new")
                at.unlink()
                running.start([BLEND])
                running.enter(Done(entry.job, "tune.mid", (Made("tune.mid", "0" * 64, 9), *entry.files[1:])))
                flip(out / "plain.bmp", -5)

        found = verify(Folder(out), plan.read(out), progress=made_again)
    assert [fault.file for fault in found.faults] == ["plain.bmp"]


def test_what_nobody_made_yet_is_no_fault(run: Run, out: Path) -> None:
    (out / BLEND).unlink()
    run(CHAIN.replace("[1, 5]", "[5, 8]"), replace=True, only=())  # planned, and not made
    found = check(out)
    assert (found.faults, found.gone) == ([], [BLEND])
    assert (found.jobs, found.done) == (6, 4)
    assert verify(Folder(out), None).faults[0].kind == "missing"  # without a plan the journal's word counts


# ----------------------------------------------------------------------------------------------------------- repair


def test_nothing_to_repair_changes_nothing(out: Path) -> None:
    before = (out / ".genkit/journal.jsonl").read_bytes()
    result = mend(out)
    assert (result.sound, result.entered, result.again, result.lines, result.kept) == (6, [], {}, 0, None)
    assert (out / ".genkit/journal.jsonl").read_bytes() == before


def spoil_nothing(lines: list[bytes], chance: random.Random) -> list[bytes]:
    return []


def garble(lines: list[bytes], chance: random.Random) -> list[bytes]:
    """Some lines get other bytes somewhere, line breaks too."""
    spoilt = bytearray(b"".join(lines))
    for _ in range(chance.randrange(1, 12)):
        place = chance.randrange(len(spoilt))
        spoilt[place : place + chance.randrange(4)] = chance.randbytes(chance.randrange(4))
    return [bytes(spoilt)]


def truncate(lines: list[bytes], chance: random.Random) -> list[bytes]:
    whole = b"".join(lines)
    return [whole[: chance.randrange(len(whole))]]


def shuffle(lines: list[bytes], chance: random.Random) -> list[bytes]:
    return chance.sample(lines, chance.randrange(len(lines)))


@pytest.mark.parametrize("damage", [spoil_nothing, garble, truncate, shuffle])
def test_whatever_becomes_of_the_journal_the_files_tell_the_same(run: Run, out: Path, damage) -> None:
    path = out / ".genkit/journal.jsonl"
    before, state, files = path.read_bytes(), journal.read(out), content(out)
    for seed in range(1 if damage is spoil_nothing else 10):
        path.write_bytes(b"".join(damage(before.splitlines(keepends=True), random.Random(seed))))
        spoilt = path.read_bytes()
        result = mend(out)
        assert result.kept is None or result.kept.read_bytes() == spoilt
        assert (result.aside, result.strangers) == ({}, [])
        assert result.again == {} or damage is garble  # a line may be changed and still be one; then it counts
        summary = run()
        assert (summary.done, summary.failed) == (len(result.again), [])
        after = journal.read(out)
        assert after.damaged == 0
        assert {name: one for name, one in facts(after).items() if name in state.done} == facts(state)
        assert content(out) == files
    assert check(out).faults == []


def test_a_changed_file_is_not_taken_for_sound_for_want_of_a_journal(run: Run, out: Path) -> None:
    """A BMP has no checksum of its own: it is the record that knows what was in it."""
    before = content(out)
    (out / ".genkit/journal.jsonl").unlink()
    flip(out / "plain.bmp", -5)
    assert list(mend(out).again) == ["plain.bmp"]
    assert run().done == 1
    assert content(out) == before


def test_without_journal_and_plan_the_records_are_gone_by(run: Run, out: Path) -> None:
    state = journal.read(out)
    before = content(out)
    shutil.rmtree(out / ".genkit")
    result = mend(out)
    assert result.planned is False
    assert facts(journal.read(out)) == facts(state)
    assert run().skipped == 6
    assert content(out) == before


def test_a_damaged_plan_is_moved_out_of_the_way(run: Run, out: Path) -> None:
    path = out / ".genkit/plan.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"params"', b'"parms"', 1)[:-30])
    assert mend(out).planned is False
    assert path.with_name("plan.jsonl.old").exists()
    assert run().skipped == 6


def test_of_several_files_a_part_is_not_all(run: Run, out: Path) -> None:
    (out / ".genkit/journal.jsonl").unlink()
    before = content(out)
    (out / "paint/ä 1-2.png").unlink()
    result = mend(out)
    assert list(result.again) == [PAINT]
    assert sorted(result.entered) == ["blend/ä 1.png", "blend/ä 5.png", "paint/ä 5.png", "plain.bmp", "tune.mid"]
    assert run().done == 1
    assert content(out) == before


def test_a_broken_file_that_nobody_claims_is_moved_aside_and_a_strangers_is_left(run: Run, out: Path) -> None:
    (out / ".genkit/journal.jsonl").unlink()
    (out / BLEND).write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    for name in ("plain.bmp", "plain.bmp.genkit.json"):
        (out / name).unlink()
    Image.open(out / "blend/ä 5.png").save(out / "plain.bmp")
    result = mend(out)
    assert result.aside == {BLEND: "ä 1.png.broken"}
    assert result.strangers == ["plain.bmp"]
    assert (out / "blend/ä 1.png.broken").read_bytes().endswith(b"nothing more")
    (out / "plain.bmp").unlink()
    assert run().done == 2


def test_a_broken_file_that_knows_its_job_is_written_over(run: Run, out: Path) -> None:
    before = content(out)
    (out / ".genkit/journal.jsonl").unlink()
    path = out / "paint/ä 5-2.png"
    path.write_bytes(path.read_bytes()[:-40])  # the record stands before the pixels
    assert list(mend(out).again) == ["paint/ä 5.png"]
    assert run().done == 1
    assert content(out) == before


def test_failures_quarantine_and_deaths_outlast_a_repair(out: Path) -> None:
    with Journal(out) as written:
        written.enter(Failed("a", "a.png", "no", 3), Failed("b", "b.png", "it kills", 3, quarantined=True))
        written.died("c.png", "SIGSEGV")
        written.enter(Done("a", "old.png", (Made("old.png", "0" * 64, 4),)), Failed("c", "old.png", "no"))
    (out / "old.png").write_bytes(b"four")
    with (out / ".genkit/journal.jsonl").open("ab") as file:
        file.write(b"\x00garbage\n")
    before = journal.read(out)
    result = mend(out)
    after = journal.read(out)
    assert (after.failed, after.deaths, after.began) == (before.failed, before.deaths, before.began)
    assert result.former == ["old.png"]
    assert after.done["old.png"].job == ""
    assert result.lines == 1


def test_old_journals_are_numbered_and_never_lost(out: Path) -> None:
    path = out / ".genkit/journal.jsonl"
    for _ in range(2):
        path.write_bytes(path.read_bytes() + b"garbage\n")
        kept = mend(out).kept
        assert kept is not None
        assert kept.read_bytes().endswith(b"garbage\n")
    assert sorted(one.name for one in path.parent.glob("*.old*")) == ["journal.jsonl.old", "journal.jsonl.old1"]


def test_a_repair_waits_for_no_run_and_disturbs_none(out: Path) -> None:
    with Journal(out), pytest.raises(Locked):
        mend(out)


def test_a_repaired_journal_is_what_a_line_a_job_says(out: Path) -> None:
    """Readers that know only the kinds of before read it too."""
    path = out / ".genkit/journal.jsonl"
    path.unlink()
    mend(out)
    kinds = [json.loads(line)["kind"] for line in path.read_text().splitlines()]
    assert kinds == ["plan", *["done"] * 6]
