"""`genkit inspect` says how a file was made; `genkit rerun` makes it again, and --check holds in every format."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import genkit
from genkit.cli import main
from genkit.media import provenance
from genkit.media.image import Image

FILES = [
    *(("test-noise", suffix) for suffix in (".png", ".jpg", ".webp", ".tiff", ".bmp")),
    *(("test-tone", suffix) for suffix in (".wav", ".flac", ".ogg", ".mp3")),
    ("test-tune", ".mid"),
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise_pipeline: str) -> Path:
    """A working folder with the test pipelines installed."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def blend(here: Path) -> Path:
    """A picture made from another: out.jpg from photo.png."""
    Image.open(np.random.default_rng(0).random((12, 16, 3))).save(here / "photo.png")
    return genkit.load("test-noise")(content="photo.png", seed=3, count=2).save("out.jpg")[1]


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def rewritten(path: Path, **changes: object) -> Path:
    """The file saved anew with another record, as a hand that edits it might leave it."""
    record = provenance.read(path)
    assert record is not None
    return provenance.open_media(path).save(path, provenance=dataclasses.replace(record, **changes))


@pytest.mark.parametrize(("name", "suffix"), FILES)
def test_the_same_comes_out_in_every_format(
    here: Path, name: str, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    genkit.load(name)(seed=5).save(f"a{suffix}")
    before = sorted(here.iterdir())
    assert run("rerun", f"a{suffix}", "--check") == 0
    assert capsys.readouterr().out == "identical\n"
    assert sorted(here.iterdir()) == before, "a check writes nothing"
    assert run("rerun", f"a{suffix}", "--quiet") == 0
    assert capsys.readouterr().out == f"a-rerun{suffix}\n"
    assert (here / f"a-rerun{suffix}").read_bytes() == (here / f"a{suffix}").read_bytes()
    assert run("rerun", f"a{suffix}") == 0
    assert capsys.readouterr().out == f"a-rerun_2{suffix}\n", "a name of our choosing replaces nothing"


def test_one_of_several_and_the_options_it_was_saved_with(
    here: Path, blend: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = genkit.load("test-noise")(seed=5, count=3)
    assert output.provenance is not None
    output.images[2].save("third.jpg", provenance=output.provenance.at(2), quality=40)
    for path in ("third.jpg", blend):
        assert run("rerun", path, "--check") == 0
    assert run("rerun", "third.jpg", "-o", "again.jpg") == 0
    assert (here / "again.jpg").read_bytes() == (here / "third.jpg").read_bytes()
    capsys.readouterr()
    assert run("rerun", "third.jpg", "-o", "again.png") == 0
    assert run("rerun", "again.png", "--check") == 0


def test_a_difference_is_measured_and_explained(here: Path, blend: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = provenance.read(blend)
    assert record is not None
    rewritten(blend, params=record.params | {"seed": 99}, runtime=record.runtime | {"torch": "1.0"})
    assert run("rerun", blend, "--check") == 1
    said = capsys.readouterr().err
    assert "of 255" in said
    assert "was 1.0" in said
    assert said.count("\n") == 1
    for name, suffix, words in (("test-tone", ".flac", "samples by"), ("test-tune", ".mid", "notes")):
        path = genkit.load(name)(seed=5).save(f"b{suffix}")[0]
        rewritten(path, params={"seed": 6})
        assert run("rerun", path, "--check") == 1
        assert words in capsys.readouterr().err


def test_a_file_edited_since_is_told(here: Path, blend: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = genkit.load("test-noise")(seed=5)
    made.save("a.bmp")
    Image.open(np.zeros((24, 32, 3), np.uint8)).save("a.bmp")
    assert run("rerun", "a.bmp", "--check") == 1
    assert "changed since it was made and what was made then comes out" in capsys.readouterr().err
    assert run("inspect", "a.bmp") == 0
    assert "changed since genkit wrote it" in capsys.readouterr().out


def test_an_input_that_moved_is_asked_for(here: Path, blend: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "elsewhere").mkdir()
    moved = (here / "photo.png").rename(here / "elsewhere" / "moved.png")
    assert run("rerun", blend) == 2
    said = capsys.readouterr().err
    for word in ("'content'", "photo.png", provenance.digest_file(moved)[:12], "--input content=PATH"):
        assert word in said
    assert run("rerun", blend, "--check", "--input", f"content={moved}") == 0
    assert run("inspect", blend) == 0
    assert "not there any more" in capsys.readouterr().out


def test_an_input_beside_the_file_is_found(
    here: Path, blend: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("another"))
    assert run("rerun", here / blend, "--check") == 0


def test_an_input_that_changed_is_told(here: Path, blend: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.open(np.zeros((12, 16, 3), np.uint8)).save(here / "photo.png")
    assert run("rerun", blend) == 2
    assert "not what it was" in capsys.readouterr().err
    assert run("inspect", blend) == 0
    assert "changed since" in capsys.readouterr().out
    assert run("rerun", blend, "--check", "--force") == 1
    assert "input 'content' has changed" in capsys.readouterr().err
    assert not list(here.glob("*-rerun*"))


def test_an_input_from_memory_is_asked_for(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = Image.open(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8))
    genkit.load("test-noise")(content=photo, seed=3).save("out.png")
    assert run("rerun", "out.png") == 2
    assert "in memory" in capsys.readouterr().err
    photo.save("photo.webp", lossless=True)
    assert run("rerun", "out.png", "--check", "--input", "content=photo.webp") == 0, "the content is what counts"


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"pipeline": "test-none"}, 2, "no pipeline is called"),
        ({"params": {"seed": 3, "width": 10**9}}, 2, "width"),
        ({"params": {"seed": 3, "shell": "rm -rf ~"}}, 2, "shell"),
        ({"params": {"seed": 3, "content": "/etc/passwd"}}, 2, "passwd"),
        ({"index": 5}, 1, "number 6"),
        ({"runtime": {"dtype": "float99"}}, 2, "float99"),
        ({"inputs": {"contents[9]": provenance.Input("0" * 64)}}, 2, "memory"),
    ],
)
def test_a_record_is_validated_like_any_input(
    here: Path, changes: dict[str, object], status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    genkit.load("test-noise")(seed=3).save("a.png")
    rewritten(here / "a.png", **changes)
    before = sorted(here.iterdir())
    assert run("rerun", "a.png", "-o", "b.png") == status
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert sorted(here.iterdir()) == before
    assert run("inspect", "a.png") == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("missing.png",),
        ("plain.png",),
        ("out-2.jpg", "-o", "b.wav"),
        ("out-2.jpg", "--input", "content"),
        ("out-2.jpg", "--input", "style=photo.png"),
        ("out-2.jpg", "--input", "content=missing.png"),
        ("out-2.jpg", "--device", "abacus"),
    ],
)
def test_a_wrong_call_is_one_line(
    here: Path, blend: Path, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    Image.open(here / "photo.png").save(here / "plain.png")
    assert run("rerun", *arguments) in (1, 2)
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert not captured.out


def test_inspect_as_json(here: Path, blend: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", blend, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["is"] == {"width": 32, "height": 24, "alpha": False}
    assert facts["made"]["params"]["seed"] == 3
    assert facts["made"]["index"] == 1
    assert facts["inputs"] == [{"field": "content", "recorded": "photo.png", "path": "photo.png", "state": "unchanged"}]
    assert facts["as_written"] is True


@pytest.mark.parametrize("suffix", [".png", ".wav", ".mid"])
def test_inspect_takes_files_that_genkit_did_not_make(
    here: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = next(name for name, other in FILES if other == suffix)
    genkit.load(name)(seed=1).media[0].save(f"a{suffix}")
    assert run("inspect", f"a{suffix}") == 0
    assert "no genkit record" in capsys.readouterr().out
    assert run("rerun", f"a{suffix}") == 2


def test_inspect_prints_no_control_signs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    genkit.load("test-noise")(seed=3).save("a.png")
    rewritten(here / "a.png", model="\x1b]0;owned\x07", runtime={"device": "a\nb"})
    assert run("inspect", "a.png") == 0
    assert "\x1b" not in capsys.readouterr().out


def test_inspect_of_no_media_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "a.txt").write_text("hello")
    for path in ("a.txt", "missing", "."):
        assert run("inspect", path) == 2
        assert capsys.readouterr().err.count("\n") == 1
