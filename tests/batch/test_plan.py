"""Planning: how many jobs, what they are called, and what makes them the same job."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genkit.batch import plan, recipe
from genkit.batch.planning import names
from genkit.batch.planning.planner import Digests
from genkit.errors import RecipeError


def ids(found: list) -> list[str]:
    return [job.id for job in found]


def outputs(found: list) -> list[str]:
    return [job.output for job in found]


def test_a_matrix_is_the_product_the_last_axis_fastest(jobs) -> None:
    found = jobs("matrix: {animal: [fox, owl], seed: [1, 2, 3]}\noutput: '{animal}-{seed:02}.png'")
    assert outputs(found) == [f"{animal}-{seed:02}.png" for animal in ("fox", "owl") for seed in (1, 2, 3)]
    assert [job.params["seed"] for job in found] == [1, 2, 3, 1, 2, 3]


def test_zip_is_taken_side_by_side_and_multiplies_with_a_matrix(jobs) -> None:
    found = jobs("zip: {width: [1, 2], height: [3, 4]}\nmatrix: {seed: [5, 6]}")
    sizes = [(job.params["width"], job.params["height"], job.params["seed"]) for job in found]
    assert sizes == [(1, 3, 5), (1, 3, 6), (2, 4, 5), (2, 4, 6)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("r.csv", "animal,width\nfox,3\n\nowl,\n"),
        ("r.tsv", "animal\twidth\nfox\t3\nowl\t\n"),
        ("r.jsonl", '{"animal": "fox", "width": 3}\n{"animal": "owl"}\n'),
    ],
)
def test_rows_of_a_table_override_params_and_leave_gaps_to_them(jobs, tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    found = jobs(f"params: {{width: 9}}\nrows: {name}\noutput: '{{animal}}.png'")
    assert [(job.output, job.params["width"]) for job in found] == [("fox.png", 3), ("owl.png", 9)]


def test_what_a_table_holds_is_no_template(jobs, tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("look\n{a}\n")
    assert outputs(jobs("rows: r.csv\noutput: '{look}.png'")) == ["{a}.png"]


def test_files_make_a_job_each(jobs, tmp_path: Path) -> None:
    for name in ("b.png", "a.png", ".hidden.png", "notes.txt"):
        (tmp_path / name).write_bytes(name.encode())
    for source in ("'*.png'", "[a.png, '*.png']", ".", "[a.png, b.png]"):
        found = jobs(f"files: {{content: {source}}}\noutput: '{{stem}}-{{index}}.png'")
        assert outputs(found) == ["a-1.png", "b-2.png"]
        assert [Path(job.params["content"]).name for job in found] == ["a.png", "b.png"]
    several = jobs("files: {content: '*.png'}\nmatrix: {seed: [1, 2]}")
    assert outputs(several) == ["a-1.png", "a-2.png", "b-1.png", "b-2.png"]


def test_a_file_stands_for_its_stem_in_an_output(jobs, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    text = "params: {content: ./a.jpg, seed: 5}\noutput: '{content}_{content.name}_{seed}_{width}.png'"
    assert outputs(jobs(text)) == ["a_a.jpg_5_32.png"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: x", ["x.png"]),
        ("matrix: {seed: [1], width: [3, 4]}", ["1-3.png", "1-4.png"]),
        ("rows: [{width: 1}, {height: 2}]", ["0001.png", "0002.png"]),
        ("matrix: {seed: [1]}\ninclude: [{width: 3}]", ["0001-1.png"]),
    ],
)
def test_outputs_without_a_template_are_named_by_what_they_are_made_from(jobs, text: str, expected: list[str]) -> None:
    assert outputs(jobs(text)) == expected


def test_exclude_and_include_work_as_in_a_github_matrix(jobs) -> None:
    found = jobs(
        "matrix: {fruit: [apple, pear], seed: [1, 2]}\n"
        "exclude: [{fruit: pear, seed: 2}]\n"
        "include:\n"
        "- {width: 1}\n"  # fits every combination
        "- {width: 2, seed: 1}\n"  # overwrites what another entry added, not what the matrix says
        "- {fruit: apple, height: 7}\n"
        "- {fruit: banana}\n"  # fits none: a combination of its own
        "- {fruit: banana, seed: 1}\n"  # does not fit that one, which the matrix does not hold
        "output: '{index}-{fruit}.png'"
    )
    made = [
        (job.variables["fruit"], job.variables.get("seed"), job.params["width"], job.params["height"]) for job in found
    ]
    assert made == [
        ("apple", 1, 2, 7),
        ("apple", 2, 1, 7),
        ("pear", 1, 2, 24),
        ("banana", None, 32, 24),
        ("banana", 1, 32, 24),
    ]


def test_a_recipe_that_excludes_everything_is_refused(jobs) -> None:
    with pytest.raises(RecipeError, match=r"^recipe:3:1: every combination is excluded"):
        jobs("matrix: {seed: [1, 2]}\nexclude: [{seed: 1}, {seed: 2}]")


def test_thousands_of_exceptions_cost_no_more_than_one(jobs) -> None:
    seeds, start = list(range(3000)), time.perf_counter()
    exclude = [{"seed": seed, "width": 1 + seed % 2} for seed in seeds]
    include = [{"seed": seed, "height": 5} for seed in seeds[:1500]]
    found = jobs(f"matrix: {{seed: {seeds}, width: [1, 2]}}\nexclude: {exclude}\ninclude: {include}")
    made = [(job.params["seed"], job.params["width"], job.params["height"]) for job in found]
    assert made == [(seed, 2 - seed % 2, 5 if seed < 1500 else 24) for seed in seeds]
    assert time.perf_counter() - start < 30  # two seconds on an idle core, minutes where each is compared with each


def test_the_cap_on_jobs_counts_before_anything_is_made(jobs) -> None:
    start = time.perf_counter()
    with pytest.raises(RecipeError, match="max_jobs"):
        jobs("matrix: {" + ", ".join(f"v{i}: [1, 2, 3, 4, 5, 6, 7, 8]" for i in range(20)) + "}\noutput: '"
             + "".join(f"{{v{i}}}" for i in range(20)) + ".png'")  # fmt: skip
    assert time.perf_counter() - start < 1


# What makes a job.


def test_identity_is_content_not_place_order_name_or_key_order(jobs, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    (tmp_path / "one/a.png").write_bytes(b"the same")
    (tmp_path / "two/b.png").write_bytes(b"the same")
    first = jobs("params: {seed: 1, width: 4, content: a.png}", tmp_path / "one")
    second = jobs("params: {content: b.png, width: '4', seed: 1}\noutput: other.png", tmp_path / "two")
    assert ids(first) == ids(second)
    forward, backward = jobs("matrix: {seed: [1, 2]}"), jobs("matrix: {seed: [2, 1]}")
    assert sorted(ids(forward)) == sorted(ids(backward))


def test_identity_changes_with_whatever_changes_the_result(
    jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import genkit_test_pipelines

    (tmp_path / "a.png").write_bytes(b"a")
    (tmp_path / "b.png").write_bytes(b"b")
    params = ["seed: 1", "seed: 2", "seed: 1, width: 5", "seed: 1, content: a.png", "seed: 1, content: b.png"]
    texts = [f"params: {{{values}}}" for values in params]
    found = [ids(jobs(text))[0] for text in texts]
    found.append(plan.make(recipe.parse("pipeline: test-noise\nparams: {seed: 1}"), dtype="bfloat16").jobs[0].id)
    for digest in ("sha256:1", "sha256:2"):
        loaded = recipe.parse("pipeline: test-noise\nparams: {seed: 1}\nmodel: some")
        found.append(next(plan.stream(loaded, digests=Digests(model=lambda ref, models, d=digest: d))).id)
    monkeypatch.setattr(genkit_test_pipelines.Noise, "version", 2)
    found += ids(jobs("params: {seed: 1}"))
    (tmp_path / "a.png").write_bytes(b"changed")
    found += ids(jobs(texts[3]))
    assert len(set(found)) == len(found)


def test_a_seed_not_given_is_its_variables_own(jobs) -> None:
    def seeds(text: str) -> dict[str, int]:
        return {job.output: job.params["seed"] for job in jobs(f"name: x\noutput: '{{take}}.png'\n{text}")}

    before = seeds("matrix: {take: [1, 2]}")
    after = seeds("matrix: {take: [0, 1, 2, 3]}\nparams: {width: 5}")
    assert {name: after[name] for name in before} == before
    assert len(set(after.values())) == 4


def test_equal_rows_have_seeds_of_their_own(jobs) -> None:
    found = jobs("rows: [{width: 3}, {width: 3}, {width: 3}]\noutput: '{index}.png'")
    assert len({job.params["seed"] for job in found}) == 3


# Stages.

CHAIN = """\
stages:
- name: paint
  pipeline: test-noise
  matrix: {animal: [fox, owl]}
  output: "{stage}/{animal}.png"
- name: blend
  pipeline: test-noise
  matrix: {strength: [0.1, 0.5]}
  files: {content: {stage: paint}}
  output: "{stage}/{paint.animal}-{content}-{paint.seed}-{strength}.png"
"""


def test_a_later_stage_makes_a_job_for_each_earlier_one(jobs) -> None:
    found = jobs(CHAIN)
    paint, blend = found[:2], found[2:]
    assert [job.takes["content"].output for job in blend] == ["paint/fox.png", "paint/owl.png"] * 2
    assert [job.takes["content"].job for job in blend] == ids(paint) * 2
    seeds = [job.params["seed"] for job in paint]
    assert outputs(blend)[0] == f"blend/fox-fox-{seeds[0]}-0.1.png"


def test_a_later_job_is_another_one_when_an_earlier_one_is(jobs) -> None:
    before, after = jobs(CHAIN), jobs(CHAIN, overrides=["stages.paint.params.width=5"])
    assert not set(ids(before)) & set(ids(after))
    one = jobs(CHAIN, overrides=["stages.blend.params.width=5"])
    assert ids(one)[:2] == ids(before)[:2]


# Names.


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("../x.png", "climbs"),
        ("a/../../x.png", "climbs"),
        ("/etc/x.png", "absolute"),
        ("C:/x.png", "absolute"),
        ("a//x.png", "empty part"),
        ("CON.png", "reserved"),
        ("aux/x.png", "reserved"),
        ("com\u00b9.png", "reserved"),
        ("CONOUT$.png", "reserved"),
        ("nul .x.png", "reserved"),
        ("\u200b.png", "hidden"),
        ("\u2060.x.png", "hidden"),
        ("\u202egnp.png", "holds"),
        ("a\u2028b.png", "holds"),
        ("a/" * 600 + "x.png", "1000 is the most"),
        ("x" * 227 + ".png", "231 bytes"),
        ("a\\\\x.png", "holds"),
        ("a?.png", "holds"),
        ("a\\0.png", "holds"),
        (".x.png", "hidden"),
        (".genkit/x.png", "hidden"),
        ("x./y.png", "dot or a space"),
        ("x" * 260 + ".png", "bytes"),
        ("ü" * 130 + ".png", "bytes"),
        ("x", "suffix"),
        ("report.html/x.png", "the report"),
    ],
)
def test_an_output_that_is_unsafe_somewhere_is_refused(jobs, output: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        jobs(f'output: "{output}"')


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a", "a"),
        ("a", "A"),
        ("\u00e9", "e\u0301"),
        ("\u00c9", "e\u0301"),
        ("ß", "SS"),
        ("\u1fb3\u0300", "\u1f70\u0345"),
        ("K", "\u212a"),
        ("ab", "a\u200db"),
        ("ab", "a\ufe0fb"),
        ("\U0001f98a", "\U0001f98a\ufe0f"),
    ],
)
def test_names_that_some_disk_holds_for_one_clash(jobs, first: str, second: str) -> None:
    with pytest.raises(RecipeError, match=r"job 2 and job 1 would write over each other.*\{look\}"):
        jobs(f"rows: [{{look: '{first}', width: 1}}, {{look: '{second}', width: 2}}]\noutput: '{{look}}.png'")


def test_a_file_cannot_be_another_ones_folder(jobs) -> None:
    with pytest.raises(RecipeError, match="stage2/1 and job stage1/1"):
        jobs("stages: [{pipeline: test-noise, output: x.png}, {pipeline: test-noise, output: x.png/y.png}]")


@given(st.text(max_size=40), st.text(max_size=40))
def test_a_variable_in_a_name_never_leaves_its_folder(first: str, second: str) -> None:
    path = f"x{names.safe(first)}/y{names.safe(second)}.png"
    if names.fault(path) is None:
        assert Path("out", path).resolve().parent.parent == Path("out").resolve()
        assert path.count("/") == 1


def test_ten_thousand_jobs_are_planned_in_seconds_and_each_file_read_once(noise_pipeline: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    read: Counter[Path] = Counter()

    def digest(path: Path) -> str:
        read[path] += 1
        return "0" * 64

    seeds = list(range(2500))
    text = f"pipeline: test-noise\nparams: {{content: a.png}}\nmatrix: {{width: [1, 2, 3, 4], seed: {seeds}}}\n"
    start = time.perf_counter()
    found = list(plan.stream(recipe.parse(text, root=tmp_path), digests=Digests(file=digest)))
    assert time.perf_counter() - start < 10  # half a second on an idle core
    assert len(set(ids(found))) == 10_000
    assert dict(read) == {tmp_path / "a.png": 1}
