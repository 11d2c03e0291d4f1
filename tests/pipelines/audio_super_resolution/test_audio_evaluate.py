"""`genkit evaluate audio`, through a pipeline that names it: numbers by hand, folders, and bad input in one line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from genkit import evaluation
from genkit.errors import Cancelled
from genkit.media.audio import Audio
from pipelines.audio_super_resolution.evaluate import AudioEvaluation

RATE = 16000


class Done(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def evaluate(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The command as it will be once a pipeline declares `evaluations = {"audio": ...}`; here the list is given."""
    from genkit.cli import main

    place = f"{AudioEvaluation.__module__}:{AudioEvaluation.__name__}"
    monkeypatch.setattr(evaluation, "evaluations", lambda: {"audio": place})

    def call(*arguments: object) -> Done:
        status = main(["evaluate", "audio", *map(str, arguments)])
        return Done(status, *capfd.readouterr())

    return call


def sound(seed: int, frames: int = 20_000, channels: int = 1) -> torch.Tensor:
    return 0.1 * torch.randn(channels, frames, generator=torch.Generator().manual_seed(seed))


def save(path: Path, samples: torch.Tensor, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return Audio(samples, rate).save(path)


def test_two_files(evaluate: Any, tmp_path: Path) -> None:
    true, made = save(tmp_path / "true.wav", sound(0)), save(tmp_path / "made.flac", 0.5 * sound(0))
    done = evaluate(true, made, "--cutoff", 4000, "--json")
    assert done.status == 0
    found = json.loads(done.out)
    values = {row["measure"]: row["mean"] for row in found["distances"]}
    assert values == {
        "SNR (dB)": pytest.approx(6.02, abs=0.01),
        "LSD": pytest.approx(0.602, abs=0.002),
        "LSD-LF": pytest.approx(0.602, abs=0.002),
        "LSD-HF": pytest.approx(0.602, abs=0.002),
    }
    assert found["facts"] == {"files": 1, "seconds": 1.25}
    done = evaluate(true, made)
    assert "SNR (dB)\t6.02" in done.out
    assert "LF" not in done.out
    assert "1 files, 1.250 seconds" in done.err


def test_equal_and_silent_sounds_have_no_number_in_json(evaluate: Any, tmp_path: Path) -> None:
    true, silent = save(tmp_path / "true.wav", sound(0)), save(tmp_path / "silent.wav", torch.zeros(1, 20_000))
    for made, reference, note in ((true, true, "infinite"), (true, silent, "silent")):
        found = json.loads(evaluate(reference, made, "--json").out)
        assert found["distances"][0]["mean"] is None
        assert note in found["notes"][0]
    assert json.loads(evaluate(true, silent, "--json").out)["distances"][0]["mean"] == pytest.approx(0)


def test_folders(evaluate: Any, tmp_path: Path) -> None:
    for number, gain in enumerate((0.5, 0.9)):
        save(tmp_path / f"true/in/{number}.wav", sound(number, channels=2))
        longer = torch.cat((gain * sound(number, channels=2), torch.zeros(2, 7 * number)), 1)
        save(tmp_path / f"made/in/{number}.flac", longer)
    save(tmp_path / "true/alone.wav", sound(5))
    save(tmp_path / "true/rate.wav", sound(5))
    save(tmp_path / "made/rate.wav", sound(5), 8000)
    done = evaluate(tmp_path / "true", tmp_path / "made", "--json")
    assert done.status == 0
    found = json.loads(done.out)
    snr = found["distances"][0]
    assert (snr["lowest"], snr["highest"]) == (pytest.approx(6.02, abs=0.01), pytest.approx(20, abs=0.01))
    assert snr["mean"] == pytest.approx((-20 * math.log10(0.5) - 20 * math.log10(0.1)) / 2, abs=0.01)
    assert [(row["file"], row["longer_by"]) for row in found["by_file"]] == [("in/0", 0), ("in/1", 7)]
    notes = "\n".join(found["notes"])
    assert "alone.wav has no estimate" in notes
    assert "8000 Hz" in notes
    assert "1 of 2 files: longer or shorter" in notes


def test_bad_input_is_one_line(evaluate: Any, tmp_path: Path) -> None:
    true = save(tmp_path / "a/true.wav", sound(0))
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.wav").write_text("no sound at all")
    save(tmp_path / "b/other.wav", sound(0))
    cases = [
        (true, tmp_path / "none.wav", "does not exist"),
        (true, tmp_path / "a", "folder"),
        (true, tmp_path / "text.wav", "not a sound"),
        (tmp_path / "a", tmp_path / "empty", "no files ending in"),
        (tmp_path / "a", tmp_path / "b", "name the files alike"),
        (true, save(tmp_path / "stereo.wav", sound(0, channels=2)), "2 channels"),
        (true, save(tmp_path / "slow.wav", sound(0), 8000), "resample"),
        (true, save(tmp_path / "long.wav", sound(0, frames=22_000)), "differ in length"),
        (save(tmp_path / "long.wav", sound(0, frames=200_000)), true, "differ in length"),
    ]
    for reference, estimate, words in cases:
        done = evaluate(reference, estimate)
        assert (done.status, done.out) == (2, ""), words
        assert words in done.err
        assert done.err.count("\n") == 1, done.err
    for cutoff in (9000, 0, "nan"):
        done = evaluate(true, true, "--cutoff", cutoff)
        assert (done.status, done.err.count("\n")) == (2, 1), done.err


def test_a_cancel_stops_within_a_block(tmp_path: Path) -> None:
    true = save(tmp_path / "true.wav", sound(0, frames=400_000))
    calls = 0

    def progress(step: int, total: int, **_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        AudioEvaluation().run(AudioEvaluation.Params.parse({"reference": true, "estimate": true}), progress)
    assert calls == 2


def test_its_help_says_what_is_measured(evaluate: Any) -> None:
    done = evaluate("--help")
    assert done.status == 0
    for words in ("REFERENCE ESTIMATE", "--cutoff", "--json", "20 log10", "1e-8"):
        assert words in done.out
