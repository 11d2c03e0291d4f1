"""Prompts that are no music, or are made to do harm: one line and exit status 2, whatever the task."""

from __future__ import annotations

import struct
from pathlib import Path

import composing_kit
import pytest
from composing_kit import tune

import genkit
from genkit.cli import main
from genkit.errors import InputError


def track(events: bytes) -> bytes:
    return b"MTrk" + struct.pack(">I", len(events)) + events


def smf(events: bytes, division: int = 480) -> bytes:
    return b"MThd" + struct.pack(">IHHH", 6, 0, 1, division) + track(events)


END = b"\x00\xff\x2f\x00"
NOTE = b"\x00\x90\x3c\x50\x83\x60\x80\x3c\x00"
BAD = {
    "empty": b"",
    "text": b"la la la\n",
    "division 0": smf(NOTE + END, 0),
    "smpte": smf(NOTE + END, 0xE728),
    "one long delta": smf(b"\xff\xff\xff\x7f\x90\x3c\x50\x00\x80\x3c\x00" + END, 1),
    "no notes": smf(END),
    "running status of nothing": smf(b"\x00\x3c\x50" + END),
    "data over 127": smf(b"\x00\x90\xbc\x50\x00\x80\x3c\x00" + END),
    "meta beyond the end": smf(b"\x00\xff\x01\xff\xff\xff\x7f" + END),
    "cut off": smf(NOTE + END)[:-6],
    "no track": b"MThd" + struct.pack(">IHHH", 6, 0, 0, 480),
    "only drums that are none": smf(b"\x00\x99\x03\x50\x83\x60\x89\x03\x00" + END),
    "too many bars": smf(
        b"\x00\xff\x58\x04\x01\x04\x18\x08" + NOTE + b"\xc0\xe0\x00\x90\x3c\x50\x60\x80\x3c\x00" + END, 96
    ).replace(b"\xc0\xe0\x00", b"\x81\xc0\xe0\x00"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return composing_kit.model_file(tmp_path_factory.mktemp("model") / "m.safetensors")


@pytest.fixture(scope="module")
def composer(model: Path):
    return genkit.load("midi-generation", model=model, device="cpu")


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("task", ["continue", "vary"])
def test_a_bad_prompt(composer, tmp_path: Path, name: str, task: str) -> None:
    path = tmp_path / "bad.mid"
    path.write_bytes(BAD[name])
    with pytest.raises(InputError) as caught:
        composer(prompt=path, task=task, seed=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["division 0", "no notes"])
def test_on_the_command_line_it_is_one_line_and_nothing_is_left(model: Path, tmp_path: Path, name: str, capsys) -> None:
    path, out = tmp_path / "bad.mid", tmp_path / "out.mid"
    path.write_bytes(BAD[name])
    assert main(["midi-generation", "-p", str(path), "-m", str(model), "-o", str(out), "--quiet"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert not out.exists()


def test_a_folder_and_a_file_that_is_not_there(composer, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.mid"):
        with pytest.raises(InputError, match="prompt"):
            composer(prompt=path)


@pytest.mark.parametrize("pitches", [[0], [127], [0, 127]])
def test_the_highest_and_the_lowest_notes_are_music(composer, pitches: list[int]) -> None:
    prompt = tune(2)
    for note, pitch in zip(prompt.tracks[0].notes, pitches * 8, strict=False):
        note.pitch = pitch
    for params in ({"task": "continue", "bars": 1}, {"task": "vary"}, {"task": "vary", "vary": "rhythms"}):
        made = composer(prompt=genkit.Midi(prompt), seed=1, **params)
        assert made.midi.notes >= 8
