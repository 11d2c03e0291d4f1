"""`genkit evaluate`: evaluations are found by their pipelines, and their Params become arguments and flags."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genkit.media.audio import Audio


@pytest.fixture
def run(noise_pipeline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Callable[..., Any]:
    """run("midi", ...) -> exit status, stdout, stderr of `genkit evaluate`, in a folder with two sounds."""
    from genkit.cli import main

    monkeypatch.chdir(tmp_path)
    for name, level in (("true", 0.5), ("mine", 0.75)):
        Audio(np.full((1, 800), level, np.float32), 8000).save(tmp_path / f"{name}.wav")

    def call(*arguments: object) -> tuple[int, str, str]:
        status = main(["evaluate", *map(str, arguments)])
        return status, *capsys.readouterr()

    return call


def test_the_list_has_every_pipelines_evaluations(run: Any) -> None:
    status, out, _ = run("--help")
    assert status == 0
    assert "midi" in out
    assert "How well a model knows pieces" in out
    assert "test-levels" in out


def test_help_shows_arguments_flags_and_examples(run: Any) -> None:
    status, out, _ = run("test-levels", "--help")
    assert status == 0
    assert "REFERENCE ESTIMATE" in out
    for words in ("The true sound.", "--floor X", "default: 0.0]", "--json", "--debug"):
        assert words in out
    assert "  genkit evaluate test-levels true.wav mine.wav\n" in out
    assert "--reference" not in out  # an argument has no flag beside it


def test_numbers_go_to_stdout_and_words_to_stderr(run: Any) -> None:
    status, out, err = run("test-levels", "true.wav", "mine.wav")
    assert (status, out) == (0, "peak\t0.250\t-\n")
    assert "2 sounds" in err
    assert err.endswith("a note\n")
    status, out, err = run("test-levels", "true.wav", "mine.wav", "--floor", "0.7", "--quiet")
    assert (status, out, err) == (0, "peak\t0.050\t-\n", "")


def test_json_holds_everything_and_no_nan(run: Any) -> None:
    status, out, _ = run("test-levels", "true.wav", "mine.wav", "--json")
    assert status == 0
    found = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found["facts"] == {"sounds": 2}
    assert found["levels"] == [{"measure": "peak", "difference": pytest.approx(0.25, abs=1e-4), "nothing": None}]
    assert [one["peak"] for one in found["each"]] == pytest.approx([0.5, 0.75], abs=1e-4)
    assert found["notes"] == ["a note"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing",), "no evaluation is called 'nothing': known are"),
        (("test-level",), "did you mean 'test-levels'?"),
        (("test-levels", "true.wav"), "Missing argument 'ESTIMATE'"),
        (("test-levels", "true.wav", "gone.wav"), "estimate 'gone.wav' does not exist; check the path"),
        (("test-levels", "true.wav", "mine.wav", "--floor", "2"), "floor '2' is out of range"),
        (("test-levels", "true.wav", "mine.wav", "--flor", "2"), "No such option"),
        (("midi", "true.wav"), "give --model to measure likelihood, --reference to compare statistics"),
    ],
)
def test_mistakes_are_one_line(run: Any, arguments: Any, message: str) -> None:
    status, out, err = run(*arguments)
    assert message in err
    assert (status, out, err.count("\n")) == (2, "", 1)


def test_no_evaluation_shows_the_list(run: Any) -> None:
    status, out, err = run()
    assert status == 2
    assert "test-levels" in out + err


def test_help_comes_without_torch() -> None:
    code = (
        "import sys; from genkit.cli import main; main(['evaluate', 'midi', '--help']); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
