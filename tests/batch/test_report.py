"""The report: everything on one page that needs nothing else, and nothing in it can do anything."""

from __future__ import annotations

import html.parser
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from genkit.batch import plan, recipe, report, runner


class Reader(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def read_report(noise_pipeline: str, tmp_path: Path):
    def read_report(text: str) -> Reader:
        planned = plan.make(recipe.parse(text, root=tmp_path))
        runner.run(planned, tmp_path / "out")
        reader = Reader()
        reader.feed(report.write(planned, tmp_path / "out").read_text("utf-8"))
        return reader

    return read_report


def test_every_file_is_shown_and_linked_and_nothing_comes_from_elsewhere(read_report, tmp_path: Path) -> None:
    page = read_report(
        "stages:\n"
        "- {name: picture, pipeline: test-noise, params: {count: 2}, output: 'a b#%.png'}\n"
        "- {name: sound, pipeline: test-tone}\n"
        "- {name: tune, pipeline: test-tune}\n"
    )
    links = {unquote(str(link["href"])) for link in page.of("a")}
    files = {
        f"./{p.relative_to(tmp_path / 'out')}"
        for p in (tmp_path / "out").rglob("*.*")
        if p.suffix in (".png", ".mid", ".wav")
    }
    assert files == links
    assert [unquote(str(player["src"])) for player in page.of("audio")] == ["./sound/recipe.wav"]
    pictures = page.of("img")
    assert len(pictures) == 3  # two pictures and a roll
    assert all(str(picture["src"]).startswith("data:image/") for picture in pictures)
    addresses = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert not [address for address in addresses if re.match(r"(?!data:)[a-z]+:|//", str(address))]
    assert not page.of("link")


def test_what_a_recipe_says_is_only_text(read_report) -> None:
    evil = "<script>alert(1)</script>\\\"' onmouseover=x"
    page = read_report(
        f'name: x\ndescription: "{evil}"\npipeline: test-noise\n'
        f'matrix: {{look: ["{evil}", plain], seed: [1, 2]}}\noutput: "{{look}}-{{seed}}.png"'
    )
    assert not page.of("script")
    assert not [attributes for _, attributes in page.tags if "onmouseover" in attributes]
    assert page.text.count("<script>alert(1)</script>\"' onmouseover=x") >= 2


def test_two_axes_make_a_labelled_grid(read_report) -> None:
    page = read_report("pipeline: test-noise\nmatrix: {width: [4, 5], height: [6, 7, 8]}")
    assert len(page.of("table")) == 1
    assert (len(page.of("tr")), len(page.of("th")), len(page.of("img"))) == (4, 2 + 3, 6)
    three = read_report(
        "pipeline: test-noise\nmatrix: {strength: [0.1, 0.2], width: [4, 5], height: [6, 7, 8]}\nname: b"
    )
    assert len(three.of("table")) == 3


def test_failures_are_told(read_report, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    page = read_report("pipeline: test-noise\nparams: {content: a.png}")
    assert "0 of 1 made" in page.text
    assert "1 failed" in page.text
    assert "a.png" in page.text


def test_a_damaged_picture_leaves_a_link(read_report, noise_pipeline: str, tmp_path: Path) -> None:
    planned = plan.make(recipe.parse("pipeline: test-noise", root=tmp_path))
    runner.run(planned, tmp_path / "out")
    (tmp_path / "out/recipe.png").write_bytes(b"junk")
    page = Reader()
    page.feed(report.render(planned, tmp_path / "out"))
    assert not page.of("img")
    assert "./recipe.png" in {link["href"] for link in page.of("a")}
