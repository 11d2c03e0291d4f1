"""Rendered pieces: a job's .mid and what it sounds and looks like are planned, made, kept and lost together."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from genkit.batch import plan, recipe, report, runner
from genkit.batch.journal import read
from genkit.batch.runner import Summary
from genkit.batch.sizes import Sizes
from genkit.errors import DiskFull, InputError, RecipeError
from genkit.media import files, provenance
from genkit.media.audio import Audio
from genkit.media.image import Image
from genkit.media.midi import soundfont

TUNES = "name: tunes\npipeline: test-tune\nmatrix: {seed: [1, 2]}\nrender: [png, wav]\n"
ALL = {f"{seed}.{suffix}" for seed in (1, 2) for suffix in ("mid", "png", "wav")}


@pytest.fixture(autouse=True)
def short_sounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The synthesiser's output is the same, at a rate that costs a tenth."""
    from genkit.media.midi import Midi

    render = Midi.render
    monkeypatch.setattr(Midi, "render", lambda self, font=None: render(self, font, 8000))


@pytest.fixture
def run(noise_pipeline: str, tmp_path: Path) -> Callable[..., Summary]:
    def run(text: str, out: str = "out", **options: object) -> Summary:
        return runner.run(plan.make(recipe.parse(text, root=tmp_path)), tmp_path / out, **options)  # type: ignore[arg-type]

    return run


def content(folder: Path) -> dict[str, str]:
    """Every file but the journal, by digest."""
    found = (path for path in folder.rglob("*") if path.is_file() and ".genkit" not in path.parts)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def test_a_job_is_its_piece_and_its_renderings(run, tmp_path: Path) -> None:
    summary = run(TUNES)
    assert (summary.done, summary.failed) == (2, [])
    assert set(content(tmp_path / "out")) == ALL
    for done in read(tmp_path / "out").done.values():
        assert [made.path[1:] for made in done.files] == [".mid", ".png", ".wav"], "the piece first"
        for made in done.files:
            path = tmp_path / "out" / made.path
            record = provenance.read(path)
            assert record is not None
            assert (record.job, record.content) == (done.job, provenance.open_media(path).digest())
            assert (record.rendered is None) == (path.suffix == ".mid")
            assert (made.sha256, made.bytes) == (provenance.digest_file(path), path.stat().st_size)
    assert run(TUNES).skipped == 2
    run(TUNES, "elsewhere", batch=2)
    assert content(tmp_path / "elsewhere") == content(tmp_path / "out"), "the same bytes anywhere"


@pytest.mark.parametrize("name", ["1.mid", "1.png", "1.wav"])
@pytest.mark.parametrize("damage", ["delete", "cut", "and the journal"])
def test_what_is_missing_or_changed_is_made_again_the_same(run, tmp_path: Path, name: str, damage: str) -> None:
    run(TUNES)
    out = tmp_path / "out"
    before = content(out)
    if damage == "cut":
        (out / name).write_bytes((out / name).read_bytes()[:-5])
    else:
        (out / name).unlink()
    if damage == "and the journal":
        shutil.rmtree(out / ".genkit")
    again = run(TUNES)
    assert (again.done, again.skipped, again.failed) == (1, 1, [])
    assert content(out) == before


def test_a_lost_journal_is_rebuilt_from_files_that_are_all_there(run, tmp_path: Path) -> None:
    run(TUNES)
    out = tmp_path / "out"
    shutil.rmtree(out / ".genkit")
    before = {path: path.stat().st_ino for path in out.glob("[12].*")}
    assert run(TUNES).skipped == 2
    assert {path: path.stat().st_ino for path in out.glob("[12].*")} == before
    assert all(len(done.files) == 3 for done in read(out).done.values())


def test_files_of_two_versions_of_a_job_are_not_taken_for_one(run, tmp_path: Path) -> None:
    """Killed between the placing of the new roll and that of the new sound, and the journal lost."""
    run(TUNES)
    out = tmp_path / "out"
    before = content(out)
    record = provenance.read(out / "1.wav")
    assert record is not None
    Audio.open(out / "1.wav").save(out / "1.wav", provenance=dataclasses.replace(record, job="0" * 64))
    shutil.rmtree(out / ".genkit")
    with pytest.raises(InputError, match=r"1\.wav.*made by another batch"):
        run(TUNES)
    again = run(TUNES, replace=True)
    assert (again.done, again.skipped) == (1, 1)
    assert content(out) == before


@pytest.mark.parametrize("name", ["2.mid", "2.png", "2.wav"])
@pytest.mark.parametrize("before", ["", TUNES.replace("render: [png, wav]\n", "output: '{seed}b.mid'")])
def test_somebody_elses_file_is_not_overwritten(run, tmp_path: Path, name: str, before: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    if before:
        run(before)
    (out / name).write_bytes(_foreign(name, tmp_path))
    found = content(out)
    with pytest.raises(InputError, match=rf"{name[0]}\{name[1:]}.*no batch made it"):
        run(TUNES, replace=True)
    assert content(out) == found


def _foreign(name: str, tmp_path: Path) -> bytes:
    import torch

    if name.endswith("mid"):
        import symusic

        score = symusic.Score(480)
        return bytes(score.dumps_midi())
    value = Audio(torch.zeros(1, 100), 8000) if name.endswith("wav") else Image.open(_red())
    return value.save(tmp_path / f"foreign{name[-4:]}").read_bytes()


def _red() -> object:
    from PIL import Image as PILImage

    return PILImage.new("RGB", (3, 3), "red")


def test_a_foreign_file_in_the_way_of_a_rendering_added_later_is_kept(run, tmp_path: Path) -> None:
    run(TUNES.replace("render: [png, wav]\n", ""))
    (tmp_path / "out/2.wav").write_bytes(_foreign("2.wav", tmp_path))
    with pytest.raises(InputError, match=r"2\.wav.*no batch made it"):
        run(TUNES, replace=True)


# What a job is.


def ids(jobs, text: str) -> list[str]:
    return [job.id for job in jobs(text)]


def test_what_is_rendered_is_part_of_what_a_job_is(jobs, tmp_path: Path) -> None:
    plain = "pipeline: test-tune\nmatrix: {seed: [1, 2]}\n"
    (tmp_path / "own.sf2").write_bytes(soundfont().read_bytes() + b"\0\0")
    texts = ["", "render: [png]", "render: [wav]", "render: [png, wav]", "render: [wav]\nsoundfont: own.sf2"]
    assert len({job for text in texts for job in ids(jobs, plain + text)}) == 2 * len(texts)
    assert ids(jobs, plain + "render: [png, wav]") == ids(jobs, plain + "render: [wav, png]")
    shutil.copy(soundfont(), tmp_path / "copy.sf2")
    assert ids(jobs, plain + "render: [wav]") == ids(jobs, plain + "render: [wav]\nsoundfont: copy.sf2"), "by content"
    assert ids(jobs, plain + "render: [wav]") == ids(jobs, plain + "render: ['s/{stem}.wav']"), "names do not enter"
    unseeded = "pipeline: test-tune\n"
    seeds = [jobs(unseeded + text)[0].params["seed"] for text in ("", "render: [wav]")]
    assert seeds[0] == seeds[1], "asking for the sound does not change the tune"


def test_renderings_stand_beside_the_piece_or_where_a_template_says(run, tmp_path: Path) -> None:
    text = TUNES.replace("[png, wav]", "['rolls/{stem}-{seed}.png', wav]") + "output: 'midi/tune-{seed}.mid'\n"
    run(text)
    expected = {f"{name.format(i)}" for i in (1, 2) for name in ("midi/tune-{}.mid", "midi/tune-{}.wav")}
    assert set(content(tmp_path / "out")) == expected | {"rolls/tune-1-1.png", "rolls/tune-2-2.png"}
    renamed = run(text.replace("rolls/{stem}-{seed}", "rolls/{name}"), replace=True)
    assert (renamed.done, renamed.skipped) == (2, 0), "under another name it is not there"
    assert (tmp_path / "out/rolls/tune-1.mid.png").is_file()


def test_a_later_stage_takes_the_sound_of_an_earlier_one(run, tmp_path: Path) -> None:
    text = """\
stages:
- {name: tune, pipeline: test-tune, matrix: {seed: [1, 2]}, render: [png, wav]}
- {name: mix, pipeline: test-tone, files: {source: {stage: tune, take: wav}}}
- {name: blend, pipeline: test-noise, files: {content: {stage: tune, take: 2}}}
"""
    summary = run(text)
    assert (summary.done, summary.failed) == (6, [])
    out = tmp_path / "out"
    taken = {name: provenance.read(out / name) for name in ("mix/1.wav", "blend/1.png")}
    assert [record and next(iter(record.inputs.values())).path for record in taken.values()] == [
        "../tune/1.wav",
        "../tune/1.png",
    ]
    (out / "tune/2.wav").unlink()
    again = run(text)
    assert (again.done, again.skipped, again.failed) == (1, 5, []), "it comes out the same, and what took it stands"


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("pipeline: test-noise\nrender: [png]", "render", "test-noise makes no music"),
        ("pipeline: test-tone\nrender: [wav]", "render", "a sound is not rendered to 'wav'; use one of png"),
        ("pipeline: test-tone\nrender: [png]\nsoundfont: a.sf2", "soundfont", "none is rendered"),
        ("pipeline: test-tune\nrender: [jpg]", "render", "'jpg'; use one of wav"),
        ("pipeline: test-tune\nrender: ['{stem}']", "render", "use one of"),
        ("pipeline: test-tune\nrender: []", "render", "list of formats"),
        ("pipeline: test-tune\nrender: [wav, wav]", "render", "named twice"),
        ("pipeline: test-tune\nrender: [wav, WAV]", "render", "would write two files at"),
        ("pipeline: test-tune\nrender: ['../{stem}.wav']", "render", "climbs out"),
        ("pipeline: test-tune\nrender: ['{nothing}.wav']", "render", "no variable is called 'nothing'"),
        ("pipeline: test-tune\nmatrix: {seed: [1, 2]}\nrender: [a.wav]", "render", "tell them apart in render"),
        ("pipeline: test-tune\nrender: [png]\nsoundfont: a.sf2", "soundfont", "none is rendered"),
        ("pipeline: test-tune\nrender: [wav]\nsoundfont: a.sf2", "soundfont", "does not exist"),
        ("pipeline: test-tune\nrender: [wav]\nsoundfont: r.yaml", "soundfont", "not a soundfont"),
        (
            "stages: [{name: a, pipeline: test-tune}, "
            "{name: b, pipeline: test-tone, files: {source: {stage: a, take: wav}}}]",
            "take",
            "renders nothing, and no 'wav'",
        ),
        (
            "stages: [{pipeline: test-tune, output: a.mid, render: [wav]}, {pipeline: test-tone, output: A.wav}]",
            "output",
            "write over each other at 'A.wav'",
        ),
    ],
)
def test_a_wrong_recipe_is_one_line_at_its_place(jobs, tmp_path: Path, text: str, place: str, words: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RecipeError) as error:
        plan.make(recipe.load(tmp_path / "r.yaml"))
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    line, column = map(int, str(error.value).split(":")[1:3])
    assert place in text.splitlines()[line - 1][max(0, column - 60) : column + 60]


# Failures.


def test_nothing_is_computed_where_a_rendering_cannot_be_written(run, tmp_path: Path) -> None:
    (tmp_path / "out/2.wav").mkdir(parents=True)
    (tmp_path / "out/2.wav/keep").touch()
    with pytest.raises(InputError, match=r"2\.wav"):
        run(TUNES)


def test_without_music21_the_job_says_so_before_the_work(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "music21", None)
    summary = run(TUNES.replace("[png, wav]", "[musicxml]"))
    assert [failed.attempt for failed in summary.failed] == [1, 1]
    assert "pip install genkit-media[notation]" in summary.failed[0].error
    assert content(tmp_path / "out") == {}


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_disk_that_fills_up_between_the_files_loses_nothing(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """The n-th file of the second job finds no room when it is put in its place."""
    commit, count = files.commit, 0

    def full(draft, target, **options):
        nonlocal count
        count += ".genkit" not in target.parts  # not the plan
        if count == 3 + failing:
            raise files._failed(target, OSError(errno.ENOSPC, "No space left on device"))
        commit(draft, target, **options)

    with monkeypatch.context() as patch:
        patch.setattr(files, "commit", full)
        with pytest.raises(DiskFull, match="1 made, 1 left to do"):
            run(TUNES)
    out = tmp_path / "out"
    assert len(content(out)) == 3 + failing - 1
    assert (out / "2.mid").exists() is False, "the piece is written last: where it is, all is"
    assert [*out.rglob("*.tmp")] == []
    again = run(TUNES)
    assert (again.done, again.skipped) == (1, 1)
    run(TUNES, "fresh")
    assert content(out) == content(tmp_path / "fresh")


KILLED = """\
import os, signal, sys
from genkit.batch import plan, recipe, runner
from genkit.media import files
commit, count = files.commit, 0
def killed(draft, target, **options):
    global count
    count += ".genkit" not in target.parts
    if count == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    commit(draft, target, **options)
files.commit = killed
runner.run(plan.make(recipe.load(sys.argv[1])), sys.argv[2])
"""


def test_killed_between_the_files_it_goes_on(noise_pipeline: str, tmp_path: Path) -> None:
    file, out = tmp_path / "r.yaml", tmp_path / "out"
    file.write_text("pipeline: test-tune\nparams: {seed: 1}\nrender: [png]\noutput: tune.mid\n")
    process = subprocess.run([sys.executable, "-c", KILLED, str(file), str(out)], capture_output=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert set(content(out)) == {"tune.png"}
    assert read(out).done == {}
    planned = plan.make(recipe.load(file))
    assert runner.run(planned, out).done == 1
    assert set(content(out)) == {"tune.mid", "tune.png"}
    assert runner.run(planned, out).skipped == 1


def test_a_soundfont_that_changes_in_mid_run_fails_its_job(noise_pipeline: str, tmp_path: Path) -> None:
    shutil.copy(soundfont(), tmp_path / "own.sf2")
    planned = plan.make(recipe.parse(TUNES + "soundfont: own.sf2", root=tmp_path))
    (tmp_path / "own.sf2").write_bytes((tmp_path / "own.sf2").read_bytes() + b"\0\0")
    summary = runner.run(planned, tmp_path / "out")
    assert ["soundfont changed" in failed.error for failed in summary.failed] == [True, True]
    assert content(tmp_path / "out") == {}


def test_leavings_of_a_killed_run_are_swept_up(run, tmp_path: Path) -> None:
    (tmp_path / "out/.genkit/staging/killed/sound").mkdir(parents=True)
    (tmp_path / "out/.genkit/staging/killed/sound/1.wav").write_bytes(b"half")
    (tmp_path / "out/.report.html.genkit-0badcafe.tmp").write_bytes(b"half")
    run(TUNES.replace("[png, wav]", "['sound/{stem}.wav']"))
    assert [path.name for path in (tmp_path / "out/.genkit").iterdir() if path.is_dir()] == []
    assert [*(tmp_path / "out").rglob("*.tmp")] == []


def test_the_report_shows_the_roll_and_plays_the_sound(run, tmp_path: Path) -> None:
    run(TUNES)
    page = report.render(plan.make(recipe.parse(TUNES, root=tmp_path)), tmp_path / "out")
    assert page.count("data:image/png;base64") == 2, "a roll for each piece, not one for its picture too"
    for seed in (1, 2):
        assert f'<audio controls preload="none" src="./{seed}.wav" aria-label="{seed}.wav"></audio>' in page
        assert f'<a class="rendering" href="./{seed}.png">{seed}.png</a>' in page
        assert f'href="./{seed}.mid"' in page


def test_a_sound_and_its_spectrogram_are_one_job(run, tmp_path: Path) -> None:
    text = """\
stages:
- {name: tune, pipeline: test-tune, params: {seed: 1}, render: [wav]}
- {name: tone, pipeline: test-tone, params: {seed: 2}, files: {source: {stage: tune, take: wav}}, render: [png]}
- {name: blend, pipeline: test-noise, params: {seed: 3}, files: {content: {stage: tone, take: png}}}
- {name: again, pipeline: test-tone, params: {seed: 4}, files: {source: {stage: tone, take: wav}}}
"""
    assert (run(text).done, run(text).skipped) == (4, 4)
    out = tmp_path / "out"
    record = provenance.read(next(out.glob("tone/*.png")))
    assert record is not None
    assert (record.rendered, record.pipeline) == (provenance.Rendered("image"), "test-tone")
    page = report.render(plan.make(recipe.parse(text, root=tmp_path)), out)
    (tune, tone) = (next(out.glob(f"{stage}/*.wav")).relative_to(out).as_posix() for stage in ("tune", "tone"))
    assert f'before<audio controls preload="none" src="./{tune}"' in page
    assert f'after<audio controls preload="none" src="./{tone}"' in page
    assert '<div class="media spectrogram"><a href="./tone/' in page
    before = content(out)
    next(out.glob("tone/*.png")).unlink()
    assert (run(text).done, content(out) == before) == (1, True)


def test_what_renderings_take_is_in_the_estimate(jobs) -> None:
    plain, sizes = "pipeline: test-tune\n", Sizes()
    assert sizes.of(jobs(plain)) < sizes.of(jobs(plain + "render: [png]"))
    assert sizes.of(jobs(plain + "render: [png]")) < sizes.of(jobs(plain + "render: [wav]"))
