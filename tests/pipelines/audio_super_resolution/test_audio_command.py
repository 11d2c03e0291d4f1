"""From the command line and in recipes: what is written, what it says of itself, and that it is made again the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import restoring_kit as kit

from genkit.media import provenance, recording
from genkit.media.audio import Audio

NAME = "audio-super-resolution"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a tiny model and a dull recording."""
    monkeypatch.chdir(tmp_path)
    kit.model_file(tmp_path / "tiny.safetensors", "spectral")
    kit.dull(2, 1.2).save(tmp_path / "dull.wav")
    return tmp_path


def test_a_dull_recording_is_restored(run: Callable[..., Any], here: Path) -> None:
    done = run(NAME, "--audio", "dull.wav", "--model", "tiny.safetensors", "--sample-rate", 16000, "-o", "bright.wav")
    assert (done.status, done.out) == (0, "bright.wav\n")
    assert "seed" not in done.err
    made = Audio.open("bright.wav")
    assert (made.sample_rate, made.channels, made.frames) == (16000, 2, 19200)
    record = provenance.read("bright.wav")
    assert record is not None
    assert record.found["model"] == "a file of its own: bright, spectral, 16000 Hz"
    assert str(record.found["recording"]).startswith("cut off at 3,")
    shown = run("inspect", "bright.wav").out
    assert "cut off at 3," in shown
    assert "restored: from 3," in " ".join(shown.split())
    assert json.loads(run("inspect", "bright.wav", "--json").out)["made"]["found"] == record.found


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
@pytest.mark.parametrize("small", [1000, recording.SMALL])
def test_it_is_made_again_the_same_in_every_format(
    small: int, suffix: str, run: Callable[..., Any], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "SMALL", small)
    assert run(NAME, "-a", "dull.wav", "-m", "tiny.safetensors", "-o", f"out{suffix}").status == 0
    assert run("rerun", f"out{suffix}", "--check").out == "identical\n"
    assert json.loads(run("inspect", f"out{suffix}", "--json").out)["as_written"] is True
    kit.dull(2, 1.2, seed=9).save(here / "dull.wav")
    changed = run("rerun", f"out{suffix}", "--check", "--force")
    assert changed.status == 1
    assert "samples by at most" in changed.err


def test_what_the_reader_should_know_is_said(run: Callable[..., Any], here: Path) -> None:
    Audio(kit.music(1, 1, 16000), 16000).save(here / "full.wav")
    done = run(NAME, "-a", "full.wav", "-m", "tiny.safetensors", "-o", "same.wav")
    assert "'full.wav' has sound up to 8,000 Hz already" in done.err
    assert len([line for line in done.err.splitlines() if "nothing to restore" in line]) == 1
    quiet = run(NAME, "-a", "full.wav", "-m", "tiny.safetensors", "-o", "same.wav", "--quiet")
    assert quiet.err == ""
    facts = json.loads(run(NAME, "-a", "full.wav", "-m", "tiny.safetensors", "-o", "same.wav", "--json").out)
    assert "nothing to restore" in facts["notes"][0]
    assert facts["found"]["restored"] == "no"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sample-rate", "22050"], "sample"),
        (["--sample-rate", "44100", "-m", "tiny.safetensors"], "makes sounds of 16000 Hz, not of 44100"),
        (["--preset", "faithful", "-m", "tiny.safetensors"], "preset 'faithful' does not fit model"),
        (["--cutoff", "9000", "-m", "tiny.safetensors"], "above half the rate of 'dull.wav' (8000 Hz)"),
        (["--cutoff", "nan", "-m", "tiny.safetensors"], "cutoff"),
        (["-m", "dull.wav"], "dull.wav"),
        (["-m", "speech-16"], "did you mean 'speech-16k'?"),
        (["-o", "out.png"], "suffix"),
    ],
)
def test_what_is_wrong_is_one_line(arguments: list[str], message: str, run: Callable[..., Any], here: Path) -> None:
    before = sorted(path.name for path in here.iterdir())
    done = run(NAME, "-a", "dull.wav", *arguments)
    assert done.status == 2
    assert message in done.err
    assert len(done.err.splitlines()) == 1
    assert sorted(path.name for path in here.iterdir()) == before


def test_help_teaches(run: Callable[..., Any]) -> None:
    text = run(NAME, "--help").out
    for word in ("--sample-rate", "--preset", "--cutoff", "speech-16k", "piano-44k", "Examples", "AP-BWE"):
        assert word in text


def test_a_recipe_restores_a_folder(run: Callable[..., Any], here: Path) -> None:
    for number in range(3):
        kit.dull(1, 0.5, seed=number).save(here / f"clip-{number}.flac")
    Audio(kit.music(1, 0.5, 16000), 16000).save(here / "clip-full.flac")
    (here / "recipe.yaml").write_text(
        f"pipeline: {NAME}\nmodel: tiny.safetensors\nparams: {{sample_rate: 16000}}\n"
        'files: {audio: "clip-*.flac"}\noutput: "{audio}-bright.flac"\n'
    )
    done = run("run", "recipe.yaml", "--out", "out", "--batch", 4)
    assert done.status == 0, done.err
    assert "clip-full-bright.flac: '" in done.err
    assert len(list((here / "out").glob("*-bright.flac"))) == 4
    assert "4 done already" in run("run", "recipe.yaml", "--out", "out").err
    alone = run(NAME, "-a", "clip-1.flac", "-m", "tiny.safetensors", "--sample-rate", 16000, "-o", "alone.flac")
    assert alone.status == 0
    apart = recording.difference(Audio.open("alone.flac"), Audio.open(here / "out" / "clip-1-bright.flac"))
    assert apart[0] < 1e-5
    assert run("rerun", "out/clip-1-bright.flac", "--check").status == 0


def test_a_later_stage_may_restore_what_an_earlier_one_made(run: Callable[..., Any], here: Path) -> None:
    """Its input is not there when the plan is made, so nothing of it may be looked at then."""
    (here / "recipe.yaml").write_text(
        f"stages:\n- name: one\n  pipeline: {NAME}\n  model: tiny.safetensors\n  params: {{audio: dull.wav}}\n"
        f"- name: two\n  pipeline: {NAME}\n  model: tiny.safetensors\n  params: {{cutoff: 2000}}\n"
        "  files: {audio: {stage: one}}\n"
    )
    done = run("run", "recipe.yaml", "--out", "out")
    assert done.status == 0, done.err
    assert len(list((here / "out").rglob("*.wav"))) == 2


@pytest.mark.skipif(os.name == "nt", reason="no SIGTERM")
def test_a_kill_on_the_way_leaves_nothing(here: Path) -> None:
    (here / "scratch").mkdir()
    kit.dull(1, 60).save(here / "long.wav")
    before = sorted(path.name for path in here.iterdir())
    environment = os.environ | {"TMPDIR": str(here / "scratch"), "PYTHONUNBUFFERED": "1"}
    code = (  # a step of progress says that the work has begun
        "import sys; from genkit.cli import _common, main; from genkit.media import recording; "
        "_common.LINE_EVERY, recording.SMALL = 0, 1000; sys.exit(main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", code, NAME, "-a", "long.wav", "-m", "tiny.safetensors", "-o", "out.wav"]
    words += ["--cutoff", "3500"]
    with subprocess.Popen(words, cwd=here, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "restoring" in line:
                break
        time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode in (143, -15)
    assert sorted(path.name for path in here.iterdir()) == before
    assert list((here / "scratch").iterdir()) == []


MEMORY = """
import resource, sys
import genkit
from genkit.media import provenance, recording, streaming
import restoring_kit as kit

recording.SMALL = 1000
restorer = genkit.load("audio-super-resolution", model="tiny.safetensors", device="cpu")
minute = kit.music(1, 60, 8000)
for minutes in map(int, sys.argv[1:]):
    streaming.write("long.flac", (minute for _ in range(minutes)), 8000, 1, bits=16)
    [made] = restorer(audio="long.flac", sample_rate=16000).save("out.flac")
    assert provenance.open_media(made).digest() == provenance.read(made).content
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(os.name == "nt", reason="no getrusage")
@pytest.mark.slow
@pytest.mark.parametrize("minutes", [20, 120])
def test_hours_take_no_more_memory_than_minutes(minutes: int, here: Path) -> None:
    """Of the whole process, torch's memory included: restored, saved with its record, and read back."""
    kit.model_file(here / "tiny.safetensors", "unet")
    words = [sys.executable, "-c", MEMORY, "2", str(minutes)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(words, cwd=here, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    few, many = (int(line) * (1 if sys.platform == "darwin" else 1024) for line in done.stdout.split())
    assert many - few < 50e6  # as float32 the result alone is 4 MB a minute
