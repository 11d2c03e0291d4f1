"""`--render`: any pipeline that makes music gives its sound, its roll and its notation, which can be made again."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest

import genkit
from genkit.cli import main
from genkit.errors import DiskFull, MediaError
from genkit.media import files, provenance
from genkit.media.image import Image
from genkit.media.midi import Midi, soundfont

SUFFIXES = ["wav", "flac", "ogg", "mp3", "png"]
if importlib.util.find_spec("music21") is not None:
    SUFFIXES += ["musicxml", "mxl"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise_pipeline: str) -> Path:
    """A working folder with the test pipelines installed; sounds are made at a rate that costs a tenth."""
    render = Midi.render
    monkeypatch.setattr(Midi, "render", lambda self, font=None: render(self, font, 16000))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_each_suffix_is_written_told_and_made_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"out/a.{suffix}" for suffix in SUFFIXES]
    renders = [word for name in names for word in ("--render", name)]
    assert run("test-tune", "--seed", 3, "-o", "a.mid", *renders) == 0
    assert capsys.readouterr().out.splitlines() == ["a.mid", *names]
    for name in names:
        record = provenance.read(name)
        assert record is not None
        assert record.rendered is not None
        assert (record.pipeline, record.params["seed"]) == ("test-tune", 3)
        assert record.content == provenance.open_media(name).digest()
        assert run("rerun", name, "--check") == 0
        assert run("rerun", name, "--quiet") == 0
        again = Path(name).with_stem("a-rerun")
        assert capsys.readouterr().out == f"identical\n{again}\n"
        assert again.read_bytes() == Path(name).read_bytes()
    assert run("rerun", "a.mid", "--check") == 0


def test_inspect_says_what_a_rendering_is(capsys: pytest.CaptureFixture[str]) -> None:
    run("test-tune", "--seed", 3, "--render", "a.wav", "--render", "a.png", "-q")
    capsys.readouterr()
    assert run("inspect", "a.wav") == 0
    said = capsys.readouterr().out
    assert "the sound of the piece" in said
    assert "soundfont: the default one (still there, unchanged)" in said
    assert run("inspect", "a.png", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["made"]["rendered"]) == ("image", {"kind": "image", "soundfont": None})


def test_a_soundfont_is_an_input_like_any_other(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(soundfont(), "own.sf2")
    assert run("test-tune", "--seed", 3, "-o", "a.mid", "--render", "a.flac", "--soundfont", "own.sf2") == 0
    assert run("rerun", "a.flac", "--check") == 0
    Path("own.sf2").rename("moved.sf2")
    capsys.readouterr()
    assert run("rerun", "a.flac", "--check") == 2
    assert "--input soundfont=PATH" in capsys.readouterr().err
    assert run("rerun", "a.flac", "--check", "--input", "soundfont=moved.sf2") == 0
    Path("own.sf2").write_bytes(Path("moved.sf2").read_bytes() + b"\0\0")
    assert run("rerun", "a.flac") == 2
    assert "not what it was" in capsys.readouterr().err
    assert run("rerun", "a.flac", "--force") == 0
    record = provenance.read("a-rerun.flac")
    assert record is not None
    assert record.rendered is not None
    assert record.rendered.soundfont is not None
    assert record.rendered.soundfont.sha256 == provenance.digest_file("own.sf2"), "what it was played with now"
    assert run("rerun", "a.mid", "--input", "soundfont=own.sf2") == 2, "a piece needs none"


def test_json_lists_every_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("test-tune", "--seed", 3, "--render", "b.png", "--json") == 0
    assert json.loads(capsys.readouterr().out)["files"] == ["test-tune-3.mid", "b.png"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--render", "a.jpg"], "'a.jpg': a piece is not rendered to '.jpg'; use one of .wav"),
        (["--render", "a"], "a suffix is missing"),
        (["--render", "a.wav", "--render", "./a.wav"], "named twice"),
        (["--render", "folder.wav"], "is a folder"),
        (["--render", "a.mid/a.wav"], "is not a folder"),
        (["--render", f"{'a' * 300}.wav"], "over 255 bytes"),
        (["--render", "a.png", "--soundfont", "own.sf2"], "none is rendered"),
        (["--soundfont", "own.sf2"], "none is rendered"),
        (["--render", "a.wav", "--soundfont", "own.sf2"], "does not exist"),
        (["--render", "a.wav", "--soundfont", "a.mid"], "is not a soundfont"),
        (["--render", "a.musicxml"], "pip install genkit-media[notation]"),
    ],
)
def test_a_wrong_call_is_told_before_anything_is_computed(
    here: Path,
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "music21", None)
    (here / "folder.wav").mkdir()
    Path("a.mid").write_bytes(b"somebody's")
    before = sorted(here.rglob("*"))
    assert run("test-tune", *arguments) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "words"),
    [("test-noise", "--render"), ("test-tone", "'a.wav': a sound is not rendered to '.wav'; use one of .png")],
)
def test_only_music_is_played(here: Path, name: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(name, "--render", "a.wav") == 2
    assert words in capsys.readouterr().err
    assert [*here.iterdir()] == []
    run(name, "--help")
    assert "--soundfont" not in capsys.readouterr().out


def test_a_sound_gives_its_spectrogram_under_what_it_was_made_from(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("test-tone", "--seed", 3, "-o", "a.wav", "--render", "a.png") == 0
    assert run("test-tone", "--seed", 3, "--source", "a.wav", "-o", "b.flac", "--render", "b.png") == 0
    assert capsys.readouterr().out.splitlines() == ["a.wav", "a.png", "b.flac", "b.png"]
    assert Image.open("b.png").size[1] > Image.open("a.png").size[1], "two panels"
    for name in ("a.png", "b.png"):
        assert run("rerun", name, "--check") == 0
        assert run("rerun", name, "--quiet") == 0
        assert capsys.readouterr().out.splitlines() == ["identical", name.replace(".", "-rerun.")]
        assert run("inspect", name) == 0
        assert "the spectrogram" in capsys.readouterr().out
    assert run("test-tone", "--seed", 3, "-o", "a.wav", "--render", "s.png", "--show-recipe") == 0
    Path("r.yaml").write_text(capsys.readouterr().out)
    assert run("run", "r.yaml", "--out", "out", "--quiet") == 0
    assert provenance.open_media("out/s.png").digest() == provenance.open_media("a.png").digest()


def test_the_piece_is_kept_and_told_where_its_rendering_fails(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = files.atomic_write

    def full(path, content, **options):
        if Path(path).suffix == ".wav":
            raise DiskFull(f"{str(path)!r}: no space left on its disk; free some, then go on")
        return write(path, content, **options)

    monkeypatch.setattr(files, "atomic_write", full)
    assert run("test-tune", "--seed", 3, "-o", "a.mid", "--render", "a.wav") == 4
    assert capsys.readouterr().out == "a.mid\n"
    assert [path.name for path in here.iterdir()] == ["a.mid"]


def test_the_recipe_shown_renders_the_same(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("test-tune", "--seed", 3, "-o", "a.mid", "--render", "sub/{a}.wav", "--render", "a.png")
    assert run(*arguments, "--show-recipe") == 0
    Path("r.yaml").write_text(capsys.readouterr().out)
    assert run(*arguments) == 0
    assert run("run", "r.yaml", "--out", "out", "--quiet", "--no-report") == 0
    assert {path.name for path in Path("out").glob("*.*")} - {".genkit"} == {"a.mid", "{a}.wav", "a.png"}
    assert provenance.open_media("out/{a}.wav").digest() == provenance.open_media("sub/{a}.wav").digest()


def test_from_python_too(here: Path) -> None:
    output = genkit.load("test-tune")(seed=3)
    assert output.render("a.wav", here / "a.png") == [Path("a.wav"), here / "a.png"]
    assert run("rerun", "a.wav", "--check") == 0
    with pytest.raises(MediaError, match="no piece of music"):
        genkit.load("test-noise")(seed=3).render("a.wav")
