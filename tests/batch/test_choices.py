"""Choices in texts: all of them, or one that the job's seed settles; never one that nobody asked for."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genkit.batch.planning import template
from genkit.batch.planning.choices import Choices
from genkit.errors import RecipeError

WORDS = st.lists(st.text("abcdefgh ", min_size=1, max_size=5), min_size=2, max_size=4, unique=True)


@pytest.fixture
def wildcards(tmp_path: Path) -> Path:
    folder = tmp_path / "wildcards"
    (folder / "sea").mkdir(parents=True)
    (folder / "animals.txt").write_text("# of the wood\nfox\n\nowl\n__sea/fish__\n")
    (folder / "sea/fish.txt").write_text("{red|blue} carp\n")
    (folder / "loop.txt").write_text("a __loop__\nb __loop__\n")
    (folder / "empty.txt").write_text("# nothing\n")
    return folder


@given(st.lists(WORDS, max_size=3))
def test_all_is_the_product_and_a_drawn_one_is_among_them(groups: list[list[str]]) -> None:
    text = "x".join(f"{{{'|'.join(words)}}}" for words in groups)
    choices = Choices(Path("nowhere"), 10_000)
    found = choices.all(text)
    # no two are equal, since no word holds the x between them
    assert len(found) == math.prod(map(len, groups))
    assert len(found) == len(set(found))
    assert "{" not in "".join(found)
    drawn = {choices.pick(text, str(seed)) for seed in range(20)}
    assert drawn <= set(found)
    assert choices.pick(text, "7") == Choices(Path("elsewhere"), 1).pick(text, "7")


@given(st.text())
def test_a_text_without_choices_stays_as_it_is(text: str) -> None:
    text = text.replace("|", "").replace("__", "")
    choices = Choices(Path("nowhere"), 1)
    assert choices.all(text) == [text] == [choices.pick(text, "1")]


def test_a_doubled_brace_is_no_choice_and_variables_are_left_for_later() -> None:
    assert Choices(Path(), 9).all("{{a|b}} {x} {c|{y}}") == ["{{a|b}} {x} {c|{y}}"]
    assert Choices(Path(), 9).all("{x} {a|b}") == ["{x} a", "{x} b"]


def test_wildcards_are_lines_that_may_hold_choices(wildcards: Path) -> None:
    choices = Choices(wildcards.parent, 100)
    assert choices.all("a __animals__") == ["a fox", "a owl", "a red carp", "a blue carp"]
    assert {choices.pick("__animals__", str(seed)) for seed in range(60)} == {"fox", "owl", "red carp", "blue carp"}


def test_random_is_settled_by_the_seed_and_all_multiplies(jobs, wildcards: Path) -> None:
    text = "choices: random\nmatrix: {look: ['{old|new} __animals__'], seed: %s}\noutput: '{seed}-{look}.png'"
    found = jobs(text % list(range(12)))
    assert [job.output for job in found] == [job.output for job in jobs(text % list(range(12)))]
    assert [job.id for job in found] == [job.id for job in jobs(text % list(range(12)))]
    assert len({job.output.partition("-")[2] for job in found}) > 3
    assert {job.variables["look"] for job in found} == {"{old|new} __animals__"}
    assert jobs(text % [7])[0].output == found[7].output
    every = jobs((text % [1, 2]).replace("random", "all"))
    assert len({job.output for job in every}) == len(every) == 2 * 4 * 2


def test_without_a_seed_the_derived_one_settles_it_and_is_recorded(jobs) -> None:
    text = "choices: random\nmatrix: {width: %s}\nparams: {height: '{4|5|6}'}"
    first, again = (jobs(text % [1, 2, 3, 4, 5, 6, 7, 8]) for _ in range(2))
    assert [job.id for job in first] == [job.id for job in again]
    assert {job.params["height"] for job in first} == {4, 5, 6}
    for job in first:
        width, seed = job.params["width"], job.params["seed"]
        alone = jobs(f"choices: random\nparams: {{width: {width}, height: '{{4|5|6}}', seed: {seed}}}")
        assert alone[0].id == job.id


def test_all_under_params_is_an_axis_as_if_it_stood_in_the_matrix(jobs) -> None:
    written = jobs("matrix: {height: [4, 5], seed: [1, 2]}")
    chosen = jobs("choices: all\nparams: {height: '{4|5}'}\nmatrix: {seed: [1, 2]}")
    assert [(job.id, job.output) for job in chosen] == [(job.id, job.output) for job in written]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("params: {height: '{4|5}'}", "say which are made: choices: all, or choices: random"),
        ("choices: some", "choices"),
        ("choices: all\nparams: {height: '{4|5}'}\nmatrix: {height: [6]}", "set both here and under params"),
        ("choices: random\nparams: {height: __animal__}", "did you mean 'animals'"),
        ("choices: random\nparams: {height: __empty__}", "holds no lines"),
        ("choices: random\nparams: {height: __loop__}", "does a wildcard name itself"),
        ("choices: all\nparams: {height: __loop__}", "name each other"),
        ("choices: random\nparams: {height: '{{no}|4}'}", "lone"),
        ("choices: all\nzip: {height: ['{4|5}']}", "choice in zip, where choices: all makes none"),
        ("choices: all\ninclude: [{height: 4}, {height: '{4|5}'}]", "choice in include, where choices: all makes none"),
        ("max_jobs: 5\nchoices: all\nparams: {height: '{1|2|3}{1|2|3}'}", "max_jobs is 5"),
        ("choices: all\nparams: {height: '" + "{1|2|3}" * 60 + "'}", "max_jobs is 10,000"),
    ],
)
def test_wrong_choices_are_one_line(jobs, wildcards: Path, text: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        jobs(text)
    assert "\n" not in str(caught.value)


def test_what_a_table_holds_is_no_choice(jobs, tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("look\n{a|b}\n")
    (job,) = jobs("choices: random\nrows: r.csv\noutput: '{look}.png'")
    assert job.output == "{a_b}.png"


def test_a_template_that_is_a_choice_says_so() -> None:
    with pytest.raises(template.TemplateError, match="choices: all"):
        template.fill("{a|b}", {})
