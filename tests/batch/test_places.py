"""Where outputs land, whatever lies in their folder: nowhere but in it, and over nothing of anybody else's."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from genkit.batch import journal
from genkit.cli import main
from genkit.media.image import Image

RECIPE = """\
pipeline: test-noise
params: {width: 4, height: 4}
matrix: {seed: [1, 2]}
output: "%s"
"""


@pytest.fixture
def made(noise_pipeline: str, tmp_path: Path) -> Callable[[str], int]:
    """Runs the recipe with an output template; its exit status. The folder is `tmp_path`/out."""

    def run(output: str, text: str = RECIPE) -> int:
        (tmp_path / "r.yaml").write_text(text % output)
        return main(["run", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "out"), "--quiet", "--no-report"])

    return run


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder beside the outputs', with a picture of somebody's in it."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (tmp_path / "out").mkdir()
    Image.open(_red()).save(folder / "theirs.png")
    return folder


def _red() -> object:
    from PIL import Image as PILImage

    return PILImage.new("RGB", (3, 3), "red")


LINKS = {
    "a folder": ("sub", "../outside"),
    "a folder's folder": ("sub", ".."),
    "a folder by its whole path": ("sub", None),
    "a folder that is not there": ("sub", "../outside/none"),
    "a folder above all": ("sub", "/"),
    "itself": ("sub", "sub"),
    "a file": ("sub/1.png", "../../outside/theirs.png"),
    "a file that is not there": ("sub/1.png", "../../outside/new.png"),
    "a device": ("sub/1.png", "/dev/null"),
}


@pytest.mark.parametrize("kind", LINKS)
def test_no_link_is_followed_out(made, outside: Path, tmp_path: Path, kind: str) -> None:
    name, target = LINKS[kind]
    link = tmp_path / "out" / name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(target if target is not None else outside)
    before = {path: path.read_bytes() for path in outside.iterdir()}
    beside = sorted(tmp_path.iterdir())
    # What is taken already is said before anything is made, what leads out when its job comes.
    taken = kind in ("a file", "a device")
    assert made("sub/{seed}.png") == (2 if taken else 3)
    assert {path: path.read_bytes() for path in outside.iterdir()} == before
    assert sorted({*tmp_path.iterdir()} - {tmp_path / "r.yaml"}) == beside
    assert link.is_symlink(), "what lies there is somebody's"
    if not taken:
        failed = journal.read(tmp_path / "out").failed
        assert set(failed) == ({"sub/1.png"} if "file" in kind else {"sub/1.png", "sub/2.png"})
        assert all(one.error.isprintable() for one in failed.values())


def test_a_link_within_the_folder_is_a_folder_like_any_other(made, outside: Path, tmp_path: Path) -> None:
    (tmp_path / "out/real").mkdir()
    (tmp_path / "out/sub").symlink_to("real")
    assert made("sub/{seed}.png") == 0
    assert {path.name for path in (tmp_path / "out/real").iterdir()} == {"1.png", "2.png"}


def test_the_output_folder_itself_may_be_a_link(made, outside: Path, tmp_path: Path) -> None:
    (tmp_path / "out").rmdir()
    (tmp_path / "out").symlink_to(outside)
    assert made("{seed}.png") == 0
    assert {"1.png", "2.png", "theirs.png"} <= {path.name for path in outside.iterdir()}


def test_a_file_of_anybody_elses_stays(made, outside: Path, tmp_path: Path) -> None:
    theirs = (outside / "theirs.png").read_bytes()
    (tmp_path / "out/1.png").write_bytes(theirs)
    (tmp_path / "out/2.png").mkdir()
    assert made("{seed}.png") == 2
    assert (tmp_path / "out/1.png").read_bytes() == theirs
    assert list((tmp_path / "out/2.png").iterdir()) == []


# A name in another Unicode form, or with the letters of another case, is another name here and the same one elsewhere:
# two jobs of one recipe never have such names, see test_plan.py. Names themselves are written as they are.


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_name_is_written_in_the_form_that_it_has(made, tmp_path: Path, form: str) -> None:
    text = unicodedata.normalize(form, "\u00e9\u00fc\ud55c")
    recipe = (
        f"pipeline: test-noise\nparams: {{width: 4, height: 4}}\nrows: [{{look: {json.dumps(text)}}}]\noutput: '%s'"
    )
    assert made("{look}.png", recipe) == 0
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == [f"{text}.png"]


def test_the_longest_name_has_room_for_several_and_a_record_beside_it(made, tmp_path: Path) -> None:
    name = "x" * 226
    recipe = f"pipeline: test-noise\nparams: {{width: 4, height: 4, count: 8}}\noutput: '{name}%s'"
    assert made(".bmp", recipe) == 0  # a format without a place for the record
    assert len(list((tmp_path / "out").glob("*.bmp.genkit.json"))) == 8
