"""A mistake in a training recipe is one line with its file, line and column."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from genkit import registry
from genkit.errors import InputError
from genkit.training.loading import load

PLUGIN = Path(__file__).parent / "plugin"
GOOD = """\
train: test-regress
name: tiny
steps: 10
batch_size: 4
checkpoint: {every: 5}
task:
  rate: 0.5
debug:
  steps: 2
  checkpoint: {keep_last: 1}
  task: {channels: 2}
"""


@pytest.fixture(autouse=True)
def plugin(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(PLUGIN))
    registry._entries.cache_clear()
    yield
    registry._entries.cache_clear()


def write(folder: Path, text: str) -> Path:
    (folder / "tiny.yaml").write_text(text)
    return folder / "tiny.yaml"


def test_a_recipe_is_read_and_debug_is_laid_over_it(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    whole, small = load(path), load(path, debug=True)
    assert (whole.recipe.steps, whole.recipe.checkpoint.every, whole.recipe.checkpoint.keep_last) == (10, 5, 3)
    assert (small.recipe.steps, small.recipe.checkpoint.every, small.recipe.checkpoint.keep_last) == (2, 5, 1)
    assert (whole.config.channels, small.config.channels, small.config.rate) == (4, 2, 0.5)  # type: ignore[attr-defined]
    assert load(path, debug=True, overrides=["steps=3"]).recipe.steps == 3
    assert whole.task.__name__ == "Regress"


@pytest.mark.parametrize(
    ("change", "where", "message"),
    [
        (("steps: 10", "steps: 0"), "3:1", "steps 0 is out of range"),
        (("steps: 10", "steps: ten"), "3:1", "steps 'ten' is not a whole number"),
        (("steps: 10", "stepz: 10"), "1:1", "steps is missing"),
        (("name: tiny", "name: ../up"), "2:1", "name '../up' is not valid"),
        (("name: tiny", "name: tiny\nlog_evry: 5"), "3:1", "unknown parameter 'log_evry': did you mean 'log_every'?"),
        (("{every: 5}", "{evry: 5}"), "5:14", "unknown parameter 'evry': did you mean 'every'?"),
        (("{every: 5}", "{every: 0}"), "5:14", "every 0 is out of range"),
        (("rate: 0.5", "rate: .nan"), "7:3", "rate nan is not"),
        (("rate: 0.5", "rat: 0.5"), "7:3", "unknown parameter 'rat': did you mean 'rate'?"),
        (("rate: 0.5", "data: nowhere"), "7:3", "does not exist; check the path"),
        (("rate: 0.5", "data: [tiny.yaml]"), "7:10", "is a file; name the folder it is in"),
        (("task:\n  rate: 0.5", "task: 5"), "6:1", "task 5 is not valid"),
        (("train: test-regress", "train: test-regres"), "1:1", "did you mean 'test-regress'?"),
        (("train: test-regress", "tran: test-regress"), "1:1", "train is missing"),
        (("train: test-regress", "pipeline: x"), "1:1", "this is a recipe of a batch; start it with `genkit run`"),
        (("batch_size: 4", "batch_size: 4\nbatch_size: 4"), "5:1", "stands here a second time"),
        (("debug:\n", "debug: 4\nx:\n"), "8:1", "debug is a mapping"),
    ],
)
def test_mistakes_have_their_place(tmp_path: Path, change: tuple[str, str], where: str, message: str) -> None:
    assert change[0] in GOOD
    path = write(tmp_path, GOOD.replace(*change))
    with pytest.raises(InputError) as raised:
        load(path)
    assert str(raised.value).startswith(f"{path}:{where}: ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_mistake_in_debug_is_found_in_debug(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("{channels: 2}", "{channels: 0}"))
    assert load(path)
    with pytest.raises(InputError, match=rf"{path}:11:10: channels 0 is out of range"):
        load(path, debug=True)
    with pytest.raises(InputError, match="has no `debug` section"):
        load(write(tmp_path, GOOD[: GOOD.index("debug")]), debug=True)


@pytest.mark.parametrize("text", ["", "- 1\n", "just words", "a: [", "\x00", "!!python/object:os.system {}"])
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"tiny\.yaml:1:\d+: "):
        load(write(tmp_path, text))


def test_names_of_folders_start_at_the_recipe_and_on_the_command_line_at_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes/photos").mkdir(parents=True)
    (tmp_path / "work/photos").mkdir(parents=True)
    path = write(tmp_path / "recipes", GOOD.replace("rate: 0.5", "data: photos"))
    monkeypatch.chdir(tmp_path / "work")
    name = Path(os.path.relpath(path))
    assert load(name).config.data == [tmp_path / "recipes/photos"]  # type: ignore[attr-defined]
    given = load(name, overrides=["task.data=photos"]).config.data  # type: ignore[attr-defined]
    assert given == [tmp_path / "work/photos"]
    assert load(name, overrides=["data=photos"]).config.data == given  # type: ignore[attr-defined]
    both = load(name, overrides=[f"task.data=[photos, {tmp_path}]"]).config.data  # type: ignore[attr-defined]
    assert both == [tmp_path / "work/photos", tmp_path]
    with pytest.raises(InputError, match=r"^--set task\.data=nowhere: data.* does not exist"):
        load(name, overrides=["task.data=nowhere"])
    with pytest.raises(InputError, match=r"^--set steps: give it as key=value"):
        load(name, overrides=["steps"])


def test_unknown_names() -> None:
    with pytest.raises(InputError, match="no training recipe is called 'nonsense'"):
        load("nonsense")
    with pytest.raises(InputError, match=r"^nowhere\.yaml: does not exist"):
        load("nowhere.yaml")
