"""Grids: every job stands under its own labels, whatever the recipe varies, on the page and in the picture of it."""

from __future__ import annotations

import html.parser
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from genkit.batch import plan, recipe, report, runner
from genkit.batch.journal import Done, Failed, Journal, Made
from genkit.batch.plan import Plan
from genkit.batch.reporting import contact
from genkit.batch.reporting.grid import Grid, layout
from genkit.errors import RecipeError

Planned = Callable[..., Plan]


@pytest.fixture
def planned(noise_pipeline: str, tmp_path: Path) -> Planned:
    def planned(text: str) -> Plan:
        text = text if "pipeline:" in text else f"pipeline: {noise_pipeline}\n{text}"
        return plan.make(recipe.parse(text, root=tmp_path))

    return planned


def grid_of(made: Plan) -> Grid | None:
    return layout(made.outline.stages[0], {place: job.variables for place, job in enumerate(made.jobs)})


def names(grid: Grid) -> tuple[str, str | None, list[str]]:
    return grid.x.name, grid.y.name if grid.y else None, [", ".join(map("=".join, s.title)) for s in grid.sheets]


THREE = "matrix: {strength: [0.1, 0.2], width: [4, 5, 6], height: [7, 8]}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (THREE, ("strength", "width", ["height=7", "height=8"])),
        (THREE + "grid: {x: height}", ("height", "strength", ["width=4", "width=5", "width=6"])),
        (THREE + "grid: {y: strength}", ("width", "strength", ["height=7", "height=8"])),
        (THREE + "grid: {z: strength, x: width}", ("width", "height", ["strength=0.1", "strength=0.2"])),
        ("matrix: {seed: [1, 2], width: [4], height: [7, 8]}", ("seed", "height", [""])),
        ("matrix: {seed: [1, 2, 3]}\ngrid: {x: seed}", ("seed", None, [""])),
        ("matrix: {seed: [1, 2, 3]}\ngrid: {y: seed}", ("seed", None, [""])),
        # many columns change places with few rows, but not where they were asked for
        (f"matrix: {{seed: {list(range(13))}, width: [4, 5]}}", ("width", "seed", [""])),
        (f"grid: {{x: seed}}\nmatrix: {{seed: {list(range(13))}, width: [4, 5]}}", ("seed", "width", [""])),
        # rows that hold every combination are as good as a matrix; a zip is one thing
        ("rows: [{width: 1, seed: 1}, {width: 1, seed: 2}, {width: 2, seed: 1}]", ("width", "seed", [""])),
        ("zip: {width: [1, 2, 3], height: [4, 5, 6]}\nmatrix: {seed: [1, 2]}", ("", "seed", [""])),
    ],
)
def test_the_first_key_is_x_the_second_y_and_a_recipe_may_say_otherwise(
    planned: Planned, text: str, expected: tuple[str, str | None, list[str]]
) -> None:
    grid = grid_of(planned(text))
    assert grid is not None
    assert names(grid) == expected


def test_what_changes_together_is_one_scale_that_names_both(planned: Planned) -> None:
    grid = grid_of(planned("zip: {width: [1, 2, 3], height: [4, 5, 6]}\nmatrix: {seed: [1, 2], strength: [0.5]}"))
    assert grid is not None
    assert list(grid.x.labels.values()) == [f"width {w}, height {w + 3}" for w in (1, 2, 3)]
    assert list(grid.fixed) == [("strength", "0.5")]


@pytest.mark.parametrize(
    "text",
    [
        "matrix: {seed: [1, 2, 3]}",
        "name: one",
        "zip: {width: [1, 2, 3], height: [4, 5, 6]}",
        "rows: [{width: 1, height: 2}, {width: 3, height: 4}]",
        "include: [{width: 1, seed: 1}, {width: 2, seed: 2}]",
    ],
)
def test_what_varies_in_one_way_is_no_grid(planned: Planned, text: str) -> None:
    assert grid_of(planned(text)) is None


def test_a_job_that_include_adds_outside_the_grid_is_shown_beside_it(planned: Planned) -> None:
    text = "matrix: {width: [1, 2], seed: [1, 2]}\ninclude: [{seed: 3}, {width: 4, seed: 1, height: 9}]"
    made = planned(text)
    grid = grid_of(made)
    assert grid is not None
    assert list(grid.x.labels.values()) == ["1", "2", "4"]
    assert [made.jobs[place].variables for place in grid.rest] == [{"seed": 3}]


def test_files_of_one_name_in_two_folders_are_told_apart(planned: Planned, tmp_path: Path) -> None:
    for name in ("a/x.png", "b/x.png", "b/y.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    text = "files: {content: ['a/*.png', 'b/*.png']}\nmatrix: {seed: [1, 2]}\noutput: '{index}.png'"
    grid = grid_of(planned(text))
    assert grid is not None
    assert list(grid.x.labels.values()) == ["a/x.png", "b/x.png", "y"]


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ("{x: widht}", "did you mean 'width'"),
        ("{x: width, y: width}", "names 'width' twice"),
        ("{w: width}", "grid"),
        ("width", "grid"),
    ],
)
def test_a_wrong_grid_is_one_line(planned: Planned, grid: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        planned(f"matrix: {{width: [1, 2]}}\ngrid: {grid}")


LISTS = st.lists(st.integers(1, 50), min_size=1, max_size=4, unique=True)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("width", "height", "seed", "count"), LISTS)), st.data())
def test_every_job_has_one_place_and_stands_under_its_own_labels(
    planned: Planned, matrix: dict[str, list[int]], data: st.DataObject
) -> None:
    matrix = {
        key: [min(value, 8) for value in values][:1] if key == "count" else values for key, values in matrix.items()
    }
    asked = data.draw(st.sampled_from(["", *(f"grid: {{{way}: {key}}}" for way in "xyz" for key in matrix)]))
    made = planned(f"matrix: {matrix}\n{asked}")
    grid = grid_of(made)
    if grid is None:
        assert not asked
        assert sum(len(values) > 1 for values in matrix.values()) < 2
        return
    placed = []
    for sheet in grid.sheets:
        for (row, column), places in sheet.cells.items():
            assert row in sheet.rows
            assert column in sheet.columns
            for place in places:
                told = {**dict(sheet.title), **dict(grid.fixed), grid.x.name: grid.x.labels[column]}
                told |= {grid.y.name: grid.y.labels[row]} if grid.y else {}
                assert told == {key: str(value) for key, value in made.jobs[place].variables.items()}
                placed.append(place)
    assert sorted(placed) == list(range(len(made.jobs)))


# The page.


@dataclass
class Tables(html.parser.HTMLParser):
    """The tables of a page: rows of (tag, text, tags inside)."""

    tables: list[list[list[tuple[str, str, list[str]]]]] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    text: str = ""
    _in: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append((tag, "", []))
            self._in = True
        elif self._in:
            self.tables[-1][-1][-1][2].append(tag)

    def handle_endtag(self, tag: str) -> None:
        self._in = self._in and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in:
            tag, text, inside = self.tables[-1][-1][-1]
            self.tables[-1][-1][-1] = (tag, text + data, inside)


def read(path: Path) -> Tables:
    tables = Tables()
    tables.feed(path.read_text("utf-8"))
    return tables


def test_a_grid_is_a_table_with_names_and_its_holes_give_their_reason(planned: Planned, tmp_path: Path) -> None:
    made = planned(
        "matrix: {width: [4, 5], height: [6, 7, 8], strength: [0.5], count: [2]}\nexclude: [{width: 5, height: 8}]"
    )
    *most, failing, missing = made.jobs
    out = tmp_path / "out"
    runner.run(plan.gather(made.outline, most), out)
    with Journal(out) as journal:
        journal.enter(Failed(failing.id, failing.output, "no <luck> today"))
    page = read(report.write(made, out))
    (table,) = page.tables
    assert [cell[1] for cell in table[0]] == ["", "width4", "width5"]
    assert [row[0][1] for row in table[1:]] == ["height6", "height7", "height8"]
    assert table[1][1][2].count("img") == 2
    assert [cell[1] for cell in table[3][1:]] == ["failedno <luck> todayparameters", ""] or failing.variables[
        "width"
    ] == 5
    holes = "".join(cell[1] for row in table[1:] for cell in row[1:])
    assert "no <luck> today" in holes
    assert "not made yet" in holes
    assert "strength 0.5, count 2" in page.text
    assert missing.output not in {path.name for path in out.iterdir()}


def test_sounds_and_pieces_are_cells_too(planned: Planned, tmp_path: Path) -> None:
    made = planned(
        "stages:\n"
        "- {name: sound, pipeline: test-tone, matrix: {pitch: [220, 440], seed: [1, 2]}}\n"
        "- {name: tune, pipeline: test-tune, matrix: {seed: [1, 2]}, grid: {x: seed}}\n"
    )
    runner.run(made, tmp_path / "out")
    sounds, tunes = read(report.write(made, tmp_path / "out")).tables
    assert all("audio" in cell[2] for row in sounds[1:] for cell in row[1:])
    assert all("img" in cell[2] for row in tunes[1:] for cell in row)


def as_made(made: Plan, out: Path) -> None:
    """Enters every job as done, on one file."""
    out.mkdir()
    Image.new("RGB", (8, 8), "red").save(out / "one.png")
    with Journal(out) as journal:
        for job in made.jobs:
            entry = Done(job.id, job.output, (Made("one.png", "0" * 64, 100),))
            journal.state.done[job.output] = entry
    lines = [
        f'{{"kind":"done","job":"{job.id}","output":"{job.output}","files":[{{"path":"one.png","sha256":"0","bytes":9}}]}}'
        for job in made.jobs
    ]
    (out / ".genkit/journal.jsonl").write_text("\n".join(lines) + "\n")


MANY = list(range(1, 2501))


@pytest.mark.parametrize("matrix", [f"{{width: {MANY[:50]}, height: {MANY[:50]}}}", f"{{seed: {MANY}}}"])
def test_a_large_page_holds_every_job_but_few_thumbnails_and_is_mostly_inert(
    planned: Planned, tmp_path: Path, matrix: str
) -> None:
    made = planned(f"matrix: {matrix}")
    as_made(made, tmp_path / "out")
    path = report.write(made, tmp_path / "out")
    text = path.read_text("utf-8")
    assert text.count("<img ") == text.count('<img loading="lazy"') == 2500
    assert text.count("base64") <= 500
    assert re.sub(r"<template>.*?</template>", "", text, flags=re.S).count("<img ") <= 600
    assert len(text) < 3_000_000
    assert not (tmp_path / "out/grid.png").exists()


# The picture of it.


def test_the_contact_sheet_shows_every_picture_in_its_place_and_is_the_same_each_time(
    planned: Planned, tmp_path: Path
) -> None:
    made = planned("matrix: {width: [100, 120], height: [40, 50, 60], seed: [7]}")
    runner.run(made, tmp_path / "out")
    report.write(made, tmp_path / "out")
    first = (tmp_path / "out/grid.png").read_bytes()
    with Image.open(tmp_path / "out/grid.png") as sheet:
        pixels = sheet.convert("RGB")
    places = {}
    for job in made.jobs:
        with Image.open(tmp_path / "out" / job.output) as picture:
            places[job.params["width"], job.params["height"]] = find(pixels, picture.convert("RGB"))
    for (width, height), (x, y) in places.items():
        assert x == places[width, 40][0]  # one column
        assert y == places[100, height][1]  # one row
    assert places[100, 40][0] < places[120, 40][0]
    assert places[100, 40][1] < places[100, 50][1] < places[100, 60][1]
    report.write(made, tmp_path / "out")
    assert (tmp_path / "out/grid.png").read_bytes() == first


def find(whole: Image.Image, part: Image.Image) -> tuple[int, int]:
    import numpy as np

    big, small = np.asarray(whole), np.asarray(part)
    high, wide = small.shape[:2]
    for y, x in np.argwhere((big[: len(big) - high + 1, : big.shape[1] - wide + 1] == small[0, 0]).all(2)):
        if (big[y : y + high, x : x + wide] == small).all():
            return int(x), int(y)
    raise AssertionError("the picture is not on the sheet")


def test_a_sheet_goes_when_there_is_no_grid_and_a_picture_of_somebody_else_stays(
    planned: Planned, tmp_path: Path
) -> None:
    grid, single = planned("matrix: {width: [4, 5], height: [4, 5]}"), planned("name: x")
    out, sheet = tmp_path / "out", tmp_path / "out/grid.png"
    runner.run(grid, out)
    report.write(grid, out)
    assert 'href="./grid.png"' in (out / "report.html").read_text("utf-8")
    report.write(single, out)
    assert not sheet.exists()
    Image.new("RGB", (3, 3)).save(sheet)
    mine = sheet.read_bytes()
    for made in (single, grid):
        assert 'href="./grid.png"' not in report.write(made, out).read_text("utf-8")
        assert sheet.read_bytes() == mine


def test_an_output_cannot_take_the_sheets_name(planned: Planned) -> None:
    with pytest.raises(RecipeError, match="the report"):
        planned("output: Grid.png")


@given(st.text(max_size=300), st.integers(1, 12))
def test_a_label_is_broken_into_lines_that_fit_and_loses_nothing_unsaid(text: str, width: int) -> None:
    lines = contact._broken(text, lambda line: len(line) <= width + 3, 4)
    assert len(lines) <= 4
    assert all(len(line) <= width + 3 for line in lines)
    whole = "".join(text.split())
    kept = "".join("".join(lines).split())
    assert kept == whole or (kept.endswith("...") and whole.startswith(kept[:-3]))
