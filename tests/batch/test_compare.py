"""Another plan for a folder: refused in words, or added, or put in the old one's place, as asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from genkit.batch import plan, recipe, runner
from genkit.batch.plan import Plan
from genkit.batch.planning.compare import compare, extended
from genkit.batch.planning.spool import Jobs
from genkit.errors import GenkitError, InputError, PlanChanged
from genkit.media.image import Image

FOXES = "name: foxes\npipeline: test-noise\nparams: {width: 4, height: 4}\nmatrix: {seed: [1, 2, 3]}\n"


@pytest.fixture
def planned(noise_pipeline: str, tmp_path: Path) -> Callable[[str], Plan]:
    return lambda text: plan.make(recipe.parse(text, root=tmp_path))


def test_a_plan_survives_the_disk(planned, tmp_path: Path) -> None:
    chain = """\
stages:
- {name: paint, pipeline: test-noise, matrix: {seed: [1, 2], strength: [0.5, 1]}, grid: {x: seed}}
- {name: blend, pipeline: test-noise, files: {content: {stage: paint}}}
- {name: tune, pipeline: test-tune, render: [wav, "{stem}-roll.png"]}
"""
    made = planned(chain)
    plan.write(made, tmp_path)
    again = plan.read(tmp_path)
    assert again is not None
    assert (again.digest, again.outline) == (made.digest, made.outline)
    assert list(again.jobs) == list(made.jobs)
    assert again.jobs[-1] == made.jobs[len(made.jobs) - 1]
    assert again.jobs[1:3] == made.jobs[1:3]
    assert not str(compare(made, again))


@pytest.mark.parametrize("damage", [b"", b"{}", b"no json\n", b'{"plan": 1, "stages": [3]}\n', b"[" * 10_000])
def test_a_damaged_plan_is_one_line(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / ".genkit").mkdir()
    (tmp_path / plan.PATH).write_bytes(damage)
    with pytest.raises(GenkitError, match="damaged"):
        plan.read(tmp_path)


def test_a_damaged_job_is_one_line(planned, tmp_path: Path) -> None:
    plan.write(planned(FOXES), tmp_path)
    path = tmp_path / plan.PATH
    path.write_bytes(path.read_bytes()[:-30] + b"\n")
    made = plan.read(tmp_path)
    assert made is not None
    with pytest.raises(GenkitError, match="damaged"):
        list(made.jobs)


def test_many_jobs_lie_on_the_disk_and_not_in_memory(planned) -> None:
    job = planned(FOXES).jobs[0]
    jobs = Jobs.of(job for _ in range(30_000))
    assert len(jobs) == 30_000
    assert jobs[29_999] == job
    assert jobs._file.fileno() > 0  # a real file by now


def test_what_differs_is_said_by_name(planned) -> None:
    old = planned(FOXES + "output: '{seed}.png'")
    new = planned(FOXES.replace("[1, 2, 3]", "[2, 3, 4]").replace("height: 4", "height: 5") + "output: '{seed}.png'")
    found = compare(old, new)
    assert (found.added, found.removed, found.changed) == (1, 1, 2)
    assert found.lines == ["~ 2.png: height 4 -> 5", "~ 3.png: height 4 -> 5", "+ 4.png", "- 1.png"]
    assert str(found) == "2 changed, 1 new, 1 no longer in it"


def test_an_input_saved_over_is_a_change(planned, tmp_path: Path) -> None:
    text = "pipeline: test-noise\nparams: {content: in.png, seed: 1}\noutput: x.png"
    picture = Image.open(_picture(1))
    picture.save(tmp_path / "in.png")
    old = planned(text)
    Image.open(_picture(2)).save(tmp_path / "in.png")
    assert compare(old, planned(text)).lines == ["~ x.png: content is another file than it was"]


def _picture(level: int) -> object:
    from PIL import Image as PILImage

    return PILImage.new("RGB", (4, 4), (level, level, level))


def test_another_plan_is_refused_and_nothing_is_touched(planned, tmp_path: Path) -> None:
    runner.run(planned(FOXES), tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(PlanChanged, match=r"3 changed.*--replace") as refused:
        runner.run(planned(FOXES.replace("width: 4", "width: 5")), tmp_path / "out")
    assert refused.value.lines[0] == "~ 1.png: width 4 -> 5"
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_extending_adds_and_keeps(planned, tmp_path: Path) -> None:
    out = tmp_path / "out"
    runner.run(planned(FOXES), out)
    more = planned(FOXES.replace("[1, 2, 3]", "[3, 4, 5]"))
    with pytest.raises(PlanChanged, match="--extend adds what is new"):
        runner.run(more, out)
    summary = runner.run(more, out, extend=True)
    assert (summary.total, summary.done, summary.skipped) == (5, 2, 3)
    kept = plan.read(out)
    assert kept is not None
    assert [job.output for job in kept.jobs] == ["1.png", "2.png", "3.png", "4.png", "5.png"]


def test_extending_does_not_change_what_is_there(planned, tmp_path: Path) -> None:
    runner.run(planned(FOXES), tmp_path / "out")
    with pytest.raises(PlanChanged, match="3 changed") as refused:
        runner.run(planned(FOXES.replace("width: 4", "width: 5")), tmp_path / "out", extend=True)
    assert "--extend" not in str(refused.value)


def test_a_plan_that_holds_both_is_in_the_order_of_stages(planned) -> None:
    chain = """\
stages:
- {name: paint, pipeline: test-noise, matrix: {seed: [1, 2]}}
- {name: blend, pipeline: test-noise, files: {content: {stage: paint}}}
"""
    both = extended(planned(chain), planned(chain.replace("[1, 2]", "[2, 3]")))
    assert [job.output for job in both.jobs] == [
        f"{stage}/{seed}.png" for stage in ("paint", "blend") for seed in (1, 2, 3)
    ]


def test_files_of_another_batch_are_left_alone_without_its_journal(planned, tmp_path: Path) -> None:
    import shutil

    out = tmp_path / "out"
    runner.run(planned(FOXES), out)
    shutil.rmtree(out / ".genkit")
    other = planned(FOXES.replace("width: 4", "width: 5"))
    with pytest.raises(InputError, match="made by another batch"):
        runner.run(other, out)
    assert runner.run(other, out, replace=True).done == 3
