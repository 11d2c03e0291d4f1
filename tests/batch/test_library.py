"""Shipped recipes: found by name, and copied so that the copy makes the very same jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from genkit import shipped
from genkit.batch import library, plan, recipe
from genkit.batch.planning.planner import Digests
from genkit.errors import RecipeError


@pytest.fixture
def collection(noise_pipeline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Recipes of the test's own in the place of the shipped ones."""
    root = tmp_path / "recipes"
    for name, text in {
        "plain.yaml": "# Plain noise.\npipeline: test-noise\n",
        "family/blend.yaml": "# yaml-language-server: $schema=../genkit-recipe.schema.json\n# Two pictures.\n"
        "pipeline: test-noise\nfiles: {content: ../assets/*.png}\nrows: table.csv\n",
        "family/table.csv": "width\n3\n4\n",
        "assets/a.png": "a",
        "assets/b.png": "b",
        "genkit-recipe.schema.json": "{}",
        "train/family/small.yaml": "# A training.\ntrain: something\n",
        "broken.yaml": "a: [",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setattr(shipped, "folder", lambda: root)
    return root


def test_recipes_are_listed_with_their_kind_and_first_comment(collection: Path) -> None:
    found = {entry.name: (entry.kind, entry.description) for entry in library.entries()}
    assert found["plain"] == ("batch", "Plain noise.")
    assert found["family/blend"] == ("batch", "Two pictures.")
    assert found["train/family/small"] == ("training", "A training.")
    assert "broken.yaml:" in found["broken"][1]


def test_a_recipe_is_found_by_path_or_name(collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert library.find("family/blend") == collection / "family/blend.yaml"
    assert library.find("my.yaml") == Path("my.yaml")
    with pytest.raises(RecipeError, match="did you mean 'plain'"):
        library.find("plan")
    with pytest.raises(RecipeError, match="genkit train family/small"):
        library.find("family/small")
    (tmp_path / "folder").mkdir()
    with pytest.raises(RecipeError, match="is a folder"):
        library.find("folder")


def test_a_copy_makes_the_same_jobs(collection: Path, tmp_path: Path) -> None:
    written = library.copy("family/blend", tmp_path / "mine")
    names = {path.relative_to(tmp_path / "mine").as_posix() for path in written}
    assert names == {"blend.yaml", "table.csv", "assets/a.png", "assets/b.png", "genkit-recipe.schema.json"}
    original = plan.make(recipe.load(collection / "family/blend.yaml")).jobs
    copied = plan.make(recipe.load(written[0])).jobs
    assert [(job.id, job.output) for job in copied] == [(job.id, job.output) for job in original]
    assert written[0].read_text().startswith("# yaml-language-server: $schema=genkit-recipe.schema.json")
    assert library.copy("family/blend", tmp_path / "mine") == written  # nothing of it changed


def test_a_copy_overwrites_nothing(collection: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/table.csv").write_text("precious")
    with pytest.raises(RecipeError, match=r"table\.csv: exists already"):
        library.copy("family/blend", tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["table.csv"]


@pytest.mark.parametrize("name", [name for name in shipped.recipes() if not name.startswith("train/")])
def test_every_shipped_recipe_plans_and_so_does_its_copy(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = Digests(model=lambda ref, models: str(ref))  # the recipes are looked at here, not the models

    def jobs(path: Path) -> list[tuple[str, str]]:
        return [(job.id, job.output) for job in plan.stream(recipe.load(path), digests=digests)]

    monkeypatch.setattr(library, "_inputs", lambda path, found=library._inputs: found(path, digests))
    original = jobs(library.find(name))
    assert original
    assert jobs(library.copy(name, tmp_path)[0]) == original
