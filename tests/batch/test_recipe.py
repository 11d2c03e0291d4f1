"""Reading recipes: what is wrong is said in one line with file, line and column, whatever the file holds."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genkit.batch import plan, recipe
from genkit.errors import RecipeError

WRONG = {
    "unknown pipeline": ("pipeline: test-nois", 1, "did you mean 'test-noise'"),
    "no pipeline": ("name: x", 1, "pipeline is missing"),
    "unknown field": ("pipeline: test-noise\nmatrx: {}", 2, "did you mean 'matrix'"),
    "a parameter at the top": ("pipeline: test-noise\nwidth: 3", 2, "write it under params"),
    "unknown parameter": ("pipeline: test-noise\nparams:\n  widht: 3", 3, "did you mean 'width'"),
    "out of range": ("pipeline: test-noise\nparams:\n  height: 3\n  width: -1", 4, "1 to 4096 px"),
    "out of range in a matrix": ("pipeline: test-noise\nmatrix:\n  width: [1, 99999]", 3, "job 2 (width=99999)"),
    "not a number": ("pipeline: test-noise\nparams: {width: no}", 2, "'no'"),
    "a time is a text": ("pipeline: test-noise\nparams: {width: 12:30:45}", 2, "'12:30:45'"),
    "not a list": ("pipeline: test-noise\nmatrix: {width: 3}", 2, "matrix.width"),
    "empty list": ("pipeline: test-noise\nmatrix: {width: []}", 2, "matrix.width"),
    "unequal zip": ("pipeline: test-noise\nzip: {width: [1, 2], height: [1]}", 2, "width has 2, height has 1"),
    "unused variable": ("pipeline: test-noise\nmatrix: {animal: [fox]}", 2, "'animal'"),
    "unused near a parameter": ("pipeline: test-noise\nmatrix: {hieght: [1]}", 2, "did you mean 'height'"),
    "unknown variable": ("pipeline: test-noise\nmatrix: {width: [1]}\noutput: '{widt}.png'", 3, "did you mean 'width'"),
    "a lone brace": ("pipeline: test-noise\nparams: {width: '{'}", 2, "doubled"),
    "attribute in a template": ("pipeline: test-noise\noutput: '{seed.__class__}.png'", 2, "no variable"),
    "call in a template": ("pipeline: test-noise\noutput: '{seed!r}.png'", 2, "no variable"),
    "set twice": ("pipeline: test-noise\nparams: {width: 1}\nmatrix: {width: [1]}", 3, "under params"),
    "set twice by axes": ("pipeline: test-noise\nmatrix: {width: [1]}\nzip: {width: [1]}", 3, "two places"),
    "exclude of nothing": ("pipeline: test-noise\nmatrix: {width: [1]}\nexclude: [{heigth: 1}]", 3, "'heigth'"),
    "no such file": ("pipeline: test-noise\nparams: {content: nope.png}", 2, "nope.png"),
    "a folder": ("pipeline: test-noise\nparams: {content: .}", 2, "folder"),
    "glob of nothing": ("pipeline: test-noise\nfiles: {content: 'nope/*.png'}", 2, "nope/*.png"),
    "no table": ("pipeline: test-noise\nrows: nope.csv", None, "nope.csv"),
    "later stage": ("stages: [{pipeline: test-noise, files: {content: {stage: x}}}]", 1, "no stage comes before"),
    "stages and pipeline": ("stages: [{pipeline: test-noise}]\nparams: {}", 2, "move it into a stage"),
    "stages of nothing": ("stages: []", 1, "stages"),
    "too many jobs": ("pipeline: test-noise\nmax_jobs: 3\nmatrix: {width: [1, 2], height: [1, 2]}", 3, "max_jobs"),
    "not a mapping": ("- 1", 1, "mapping"),
    "empty": ("", 1, "mapping"),
    "training": ("train: style", 1, "genkit train"),
    "duplicate key": ("pipeline: test-noise\npipeline: test-noise", 2, "second time"),
    "alias": ("a: &x [1]\nb: *x", 1, "anchors"),
    "tag": ("a: !!python/object:os.system x", 1, "tag"),
    "depth": ("[" * 20_000, 1, "nested"),
    "bomb": ("a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]", 1, "anchors"),
    "broken": ("a: [1\nb: 2", None, ""),
    "two documents": ("a: 1\n---\nb: 2", None, "second document"),
    "a wrong suffix": ("pipeline: test-noise\noutput: x.wav", 2, ".png"),
    "name with a slash": ("pipeline: test-noise\nname: a/b", 2, "'/'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_recipe_is_one_line_at_its_place(case: str, noise_pipeline: str, tmp_path: Path) -> None:
    text, line, words = WRONG[case]
    file = tmp_path / "r.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError) as caught:
        plan.make(recipe.load(file))
    message = str(caught.value)
    assert words in message
    assert "\n" not in message
    assert caught.value.exit_status == 2
    if line is not None:
        assert message.startswith(f"{file}:{line}:")


def test_a_large_file_is_refused(noise_pipeline: str, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("#" * (5 << 20))
    with pytest.raises(RecipeError, match="CSV"):
        recipe.load(file)


def test_scalars_are_yaml_1_2(jobs) -> None:
    (job,) = jobs("params: {strength: 1e-1, width: 16}\nmatrix: {day: [2026-01-02]}\noutput: '{day}.png'")
    assert job.params["strength"] == 0.1
    assert job.output == "2026-01-02.png"


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        ("", ["params.seed=4"], [4]),
        ("", ["params.seed=4", "output={seed}-{width}.png"], [4]),
        ("params: {seed: 1}", ["params.seed=4"], [4]),
        ("matrix: {seed: [1, 2, 3]}", ["matrix.seed=[7, 8]"], [7, 8]),
        ("matrix: {seed: [1, 2, 3]}", ["matrix.seed=null", "params.seed=9"], [9]),
    ],
)
def test_overrides(jobs, text: str, overrides: list[str], expected: list[int]) -> None:
    assert [job.params["seed"] for job in jobs(text, overrides=overrides)] == expected


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=4", "write it under params"),
        ("params.sed=4", "did you mean 'seed'"),
        ("nonsense", "key=value"),
        ("params.width=-4", "1 to 4096"),
        ("matrx.seed=[1]", "did you mean 'matrix'"),
        ("params=4", "names with values"),
        ("matrix.seed=4", "should be a list"),
        ("max_jobs=many", "should be a whole number"),
        ("stages.paint.params.seed=4", "has no stages"),
        ("params.width={wide}", "no variable is called 'wide'"),
        ("params.seed=\udcff", "half a character"),
    ],
)
def test_wrong_overrides_name_themselves(jobs, override: str, words: str) -> None:
    with pytest.raises(RecipeError, match=f"^--set {override.split('=')[0]}") as caught:
        jobs("params: {seed: 1}", overrides=[override])
    assert words in str(caught.value)


def test_a_variable_given_by_an_override_is_no_mapping(jobs) -> None:
    found = jobs("matrix: {wide: [3, 4]}\noutput: '{wide}.png'", overrides=["params.width={wide}"])
    assert [job.params["width"] for job in found] == [3, 4]


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes are Linux's")
def test_a_file_whose_name_is_no_text_is_refused_by_name(jobs, tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"x")
    with pytest.raises(RecipeError, match=r"not UTF-8 \('caf.udce9\.png'\); rename it"):
        jobs("files: {content: '*.png'}")


def test_an_override_reaches_a_stage_by_its_name(jobs) -> None:
    text = "stages: [{name: one, pipeline: test-noise}, {name: two, pipeline: test-noise}]"
    assert [job.params["width"] for job in jobs(text, overrides=["stages.two.params.width=5"])] == [32, 5]
    with pytest.raises(RecipeError, match="did you mean 'two'"):
        jobs(text, overrides=["stages.tow.params.width=5"])
    with pytest.raises(RecipeError, match=r"say of which: stages\.NAME\.params\.width"):
        jobs(text, overrides=["params.width=5"])


def test_files_given_by_an_override_start_from_the_working_folder(
    jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a.png").write_bytes(b"a")
    monkeypatch.chdir(elsewhere)
    for override in ("params.content=a.png", "files.content=*.png", "matrix.content=[a.png]"):
        (job,) = jobs("", overrides=[override])
        assert job.params["content"] == str(elsewhere / "a.png")


BASE = """\
name: foxes
pipeline: test-noise
params: {width: 16, strength: 0.5}
matrix:
  animal: [fox, owl]
  seed: [1, 2]
exclude: [{animal: owl, seed: 1}]
include: [{animal: fox, height: 7}]
output: "{animal}-{seed:03}.png"
"""


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_mutilated_recipe_gives_jobs_or_one_line(noise_pipeline: str, tmp_path: Path, data: st.DataObject) -> None:
    text = BASE
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        end = min(len(text), at + data.draw(st.integers(0, 6)))
        piece = data.draw(
            st.one_of(
                st.sampled_from(
                    [":", "- ", "[", "]", "{", "}", "'", "\t", "\n", "~", "&a", "*a", "!!int", "1e999", ".nan"]
                ),
                st.text(max_size=4),
            )
        )
        text = text[:at] + piece + text[end:]
    try:
        plan.make(recipe.parse(text, root=tmp_path))
    except RecipeError as error:  # and nothing else
        message = str(error)
    else:
        message = "fine"
    assert message.isprintable()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("r.csv", "width,height\n1,2,3\n", "r.csv:2: 3 cells under 2 names"),
        ("r.csv", "width,width\n1,2\n", "r.csv:1: each column"),
        ("r.csv", "width\n", "holds no rows"),
        ("r.csv", 'width\n"1', "r.csv:2: is not valid CSV"),
        ("r.jsonl", '{"width": 1}\n{"width": \n', "r.jsonl:2: is not a line of JSON"),
        ("r.jsonl", "[1]\n", "r.jsonl:1: each line is an object"),
        ("r.jsonl", '{"width": NaN}\n', "NaN is no number"),
        ("r.jsonl", '{"width": 1, "width": 2}\n', "a name stands twice"),
        ("r.jsonl", "[" * 100_000, "r.jsonl:1"),
        ("r.jsonl", '{"width": ' + "[" * 50 + "]" * 50 + "}", "r.jsonl:1: is nested deeper than 32 levels"),
        ("r.jsonl", '{"width": "\\ud83e"}\n', "r.jsonl:1: holds half a character (U+D83E)"),
        ("r.jsonl", '{"width": 1e999}\n', "r.jsonl:1: a number beyond 1.8e308"),
        ("r.jsonl", '{"width": ' + "9" * 5000 + "}\n", "r.jsonl:1: a number of more than 3,000 digits"),
        ("r.txt", "width\n1\n", ".csv, .tsv or .jsonl"),
        ("r.csv", b"\xff\xfe\n", "UTF-8"),
    ],
)
def test_a_wrong_table_is_one_line_at_its_place(
    jobs, tmp_path: Path, name: str, content: str | bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RecipeError) as caught:
        jobs(f"rows: {name}")
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["r.csv", "r.txt", "x" * 300 + ".csv", "a\0.csv", "~nobody-here/r.csv", "/dev/zero"])
def test_a_table_that_is_none_is_told_where_it_is_named(jobs, name: str) -> None:
    with pytest.raises(RecipeError, match=r"^recipe:2:1: "):
        jobs(f"rows: {json.dumps(name)}")


def test_an_error_is_a_line_that_can_be_read_whatever_it_names(jobs) -> None:
    with pytest.raises(RecipeError, match=r"^recipe:2:1: .* \.\.\. .*check the path$|cannot be read") as caught:
        jobs(f"rows: {'x' * 70_000}.csv")
    assert len(str(caught.value)) < 2000
