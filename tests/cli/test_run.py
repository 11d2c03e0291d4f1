"""genkit run, validate, schema and recipes, as a person types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from genkit.cli import main

RECIPE = "pipeline: test-noise\nparams: {width: 4, height: 4}\nmatrix: {seed: [1, 2]}\n"


@pytest.fixture
def recipe(noise_pipeline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "foxes.yaml"
    path.write_text(RECIPE)
    return path


def test_run_makes_files_and_a_report_and_then_nothing(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "foxes.yaml"]) == 0
    out, err = capsys.readouterr()
    assert Path(out.strip()) == Path("outputs/foxes/report.html").absolute()
    assert "2 made" in err
    assert {path.name for path in Path("outputs/foxes").iterdir()} == {"1.png", "2.png", "report.html", ".genkit"}
    assert main(["run", "foxes.yaml"]) == 0
    again, err = capsys.readouterr()
    assert "2 done already, nothing to do" in err
    assert again == out


def test_a_dry_run_makes_nothing(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "foxes.yaml", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert [line.split("\t")[0] for line in out.splitlines()] == ["1.png", "2.png"]
    assert "2 jobs, 0 done already" in err
    assert not Path("outputs").exists()
    assert main(["run", "foxes.yaml", "--set", "matrix.seed=[2]"]) == 0
    capsys.readouterr()
    assert main(["run", "foxes.yaml", "--dry-run", "--json"]) == 0
    jobs = json.loads(capsys.readouterr().out)["jobs"]
    assert [(job["output"], job["done"]) for job in jobs] == [("1.png", False), ("2.png", True)]


MORE = RECIPE.replace("[1, 2]", "[1, 2, 3]")
OTHER = RECIPE.replace("[1, 2]", "[2, 3]").replace("width: 4", "width: 5")


@pytest.fixture
def made(recipe: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, bytes]:
    """The files that the recipe makes, made."""
    assert main(["run", "foxes.yaml", "--quiet"]) == 0
    capsys.readouterr()
    return {path.name: path.read_bytes() for path in Path("outputs/foxes").glob("*.png")}


@pytest.mark.parametrize(
    ("text", "lines", "remedies"),
    [
        (MORE, ["  + 3.png"], ["--extend", "--replace"]),
        (OTHER, ["  ~ 2.png: width 4 -> 5", "  + 3.png", "  - 1.png"], ["--replace"]),
    ],
)
def test_another_plan_is_refused_with_what_differs(
    recipe: Path, made: dict[str, bytes], capsys: pytest.CaptureFixture[str], text: str, lines: list[str], remedies
) -> None:
    recipe.write_text(text)
    assert main(["run", "foxes.yaml"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    *differences, error = err.splitlines()
    assert differences == lines
    assert "was made by another plan" in error
    assert [flag for flag in ("--extend", "--replace") if flag in error] == remedies
    assert {path.name: path.read_bytes() for path in Path("outputs/foxes").glob("*.png")} == made
    assert main(["run", "foxes.yaml", "--quiet"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_extend_adds_and_keeps(recipe: Path, made: dict[str, bytes], capsys: pytest.CaptureFixture[str]) -> None:
    recipe.write_text(MORE)
    assert main(["run", "foxes.yaml", "--extend", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["total"], facts["done"], facts["skipped"]) == (3, 1, 2)
    recipe.write_text(OTHER)  # what has changed is not for --extend
    assert main(["run", "foxes.yaml", "--extend"]) == 2
    assert "--replace" in capsys.readouterr().err
    assert Path("outputs/foxes/1.png").read_bytes() == made["1.png"]
    recipe.write_text(RECIPE.replace("[1, 2]", "[3, 4]"))  # what is no longer in it stays
    assert main(["run", "foxes.yaml", "--extend", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["total"] == 4


def test_replace_makes_what_the_recipe_says_now(
    recipe: Path, made: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe.write_text(OTHER)
    assert main(["run", "foxes.yaml", "--replace", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["total"], facts["done"], facts["skipped"]) == (2, 2, 0)
    after = {path.name: path.read_bytes() for path in Path("outputs/foxes").glob("*.png")}
    assert sorted(after) == ["1.png", "2.png", "3.png"]
    assert after["1.png"] == made["1.png"]
    assert after["2.png"] != made["2.png"]
    assert main(["run", "foxes.yaml"]) == 0  # it is the folder's plan now


def test_a_dry_run_tells_what_differs(recipe: Path, made: dict[str, bytes], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "foxes.yaml", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["differs"] is None
    recipe.write_text(OTHER)
    assert main(["run", "foxes.yaml", "--dry-run"]) == 0
    err = capsys.readouterr().err
    assert "another plan made outputs/foxes (jobs: 1 changed, 1 new, 1 no longer in it)" in err
    assert "  ~ 2.png: width 4 -> 5" in err
    assert main(["run", "foxes.yaml", "--dry-run", "--json"]) == 0
    differs = json.loads(capsys.readouterr().out)["differs"]
    assert (differs["added"], differs["changed"], differs["removed"]) == (1, 1, 1)
    assert len(differs["lines"]) == 3


def test_a_report_that_cannot_be_written_is_no_failed_run(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("outputs/foxes/report.html").mkdir(parents=True)
    assert main(["run", "foxes.yaml"]) == 0
    assert "no report: " in capsys.readouterr().err


def test_json_is_all_there_is_on_stdout(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "foxes.yaml", "--json", "--quiet", "--out", "here"]) == 0
    out, err = capsys.readouterr()
    facts = json.loads(out)
    assert (facts["total"], facts["done"], facts["skipped"], facts["failed"]) == (2, 2, 0, [])
    assert err == ""


def test_failed_jobs_end_in_status_3_and_the_others_are_there(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.png").write_text("no picture")
    recipe.write_text(RECIPE + "include: [{seed: 2, content: bad.png}]\noutput: '{seed}.png'\n")
    assert main(["run", "foxes.yaml"]) == 3
    err = capsys.readouterr().err
    assert "1 of 2 jobs failed; '2.png': " in err
    assert Path("outputs/foxes/1.png").exists()
    assert not Path("outputs/foxes/2.png").exists()
    assert main(["run", "foxes.yaml", "--json"]) == 3  # tried again, and told again
    assert json.loads(capsys.readouterr().out)["skipped"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "nope"], "no shipped recipe"),
        (["run", "nope.yaml"], "nope.yaml: does not exist"),
        (["run", "foxes.yaml", "--set", "params.widht=3"], "did you mean 'width'"),
        (["run", "foxes.yaml", "--set", "output=../x.png"], "climbs"),
        (["run", "foxes.yaml", "--out", "foxes.yaml"], "choose another"),
        (["run", "train.yaml"], "genkit train"),
        (["run", "foxes.yaml", "--batch", "0"], "--batch"),
        (["run", "foxes.yaml", "--extend", "--replace"], "give one of them"),
        (["run", "foxes.yaml", "--job-timeout", "3"], "--workers 1"),
        (["run", "foxes.yaml", "--address", "auto"], "--engine ray"),
    ],
)
def test_a_mistake_is_one_line_and_makes_nothing(
    recipe: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    Path("train.yaml").write_text("train: style-fast\n")
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert words in err
    assert not Path("outputs").exists()


def test_validate_says_how_many_jobs_or_what_is_wrong(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "foxes.yaml"]) == 0
    assert capsys.readouterr().out == "foxes.yaml: 2 jobs\n"
    Path("wrong.yaml").write_text("pipeline: test-noise\nparams:\n  width: 0\n")
    assert main(["validate", "foxes.yaml", "wrong.yaml"]) == 2
    out, err = capsys.readouterr()
    assert out == "foxes.yaml: 2 jobs\n"
    assert "wrong.yaml:3:3: job 1: width 0" in err
    assert main(["validate", "wrong.yaml", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)[0]["valid"] is False


def test_schema_is_written_and_checked(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert "test-noise" in json.loads(capsys.readouterr().out)["definitions"]
    assert main(["schema", "-o", "s.json"]) == 0
    assert main(["schema", "--check", "s.json"]) == 0
    Path("s.json").write_text("{}")
    assert main(["schema", "--check", "s.json"]) == 2
    assert "genkit schema -o s.json" in capsys.readouterr().err


def test_recipes_lists_and_copies(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert "quickstart" in {row[0] for row in rows}
    assert {row[1] for row in rows} == {"batch", "training"}
    assert main(["recipes", "copy", "nope"]) == 2
