"""The registry: found by entry point, imported when asked, clear about what is wrong with somebody else's package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import genkit
from genkit import registry
from genkit.errors import GenkitError, InputError
from genkit.pipeline import Pipeline


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a module with entry points, as a distribution on the path; gives the folder."""

    def put(source: str, entry_points: str, module: str = "somebodys_pipeline") -> Path:
        (tmp_path / f"{module}.py").write_text(source, "utf-8")
        info = tmp_path / f"{module}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module.replace('_', '-')}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[genkit.pipelines]\n{entry_points}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        registry._entries.cache_clear()
        return tmp_path

    yield put
    registry._entries.cache_clear()
    sys.modules.pop("somebodys_pipeline", None)


GOOD = '''"""A pipeline of somebody's own."""
from genkit.pipeline import Params, Pipeline

class Own(Pipeline):
    name = "own"
    Params = Params
'''


def test_an_entry_point_is_all_it_takes(install):
    install(GOOD, "own = somebodys_pipeline:Own")
    assert "own" in genkit.pipelines()
    assert registry.summary("own") == "A pipeline of somebody's own."
    assert registry.origin("own") == "somebodys-pipeline 1"
    assert "somebodys_pipeline" not in sys.modules  # listed without being imported
    assert issubclass(registry.get("own"), Pipeline)
    assert isinstance(genkit.load("own", device="cpu"), Pipeline)


def test_an_unknown_name_is_told_the_nearest(install):
    install(GOOD, "own = somebodys_pipeline:Own")
    with pytest.raises(InputError, match=r"no pipeline is called 'onw': did you mean 'own'"):
        registry.get("onw")
    with pytest.raises(InputError, match=r"installed are .*own"):
        genkit.load("zzzzz")


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("raise OSError('libcuda')", "somebodys_pipeline:Own", r"does not import \(OSError: libcuda\)"),
        ("import no_such_module", "somebodys_pipeline:Own", "No module named 'no_such_module'"),
        ("def :", "somebodys_pipeline:Own", r"does not import \(SyntaxError"),
        (GOOD, "somebodys_pipeline:Other", "has no attribute 'Other'"),
        (GOOD, "no_such_package.module:Own", "No module named 'no_such_package'"),
        ("Own = 3", "somebodys_pipeline:Own", "is no subclass of genkit.Pipeline"),
        (GOOD.replace("    Params = Params\n", ""), "somebodys_pipeline:Own", "has no `Params`"),
        (GOOD.replace("Params = Params", "Params = dict"), "somebodys_pipeline:Own", "has no `Params`"),
        (GOOD.replace('"own"', '"other"'), "somebodys_pipeline:Own", r"states another name \('other'\)"),
        (GOOD + '    produces = "video"\n', "somebodys_pipeline:Own", "must be image, audio or midi"),
    ],
)
def test_a_broken_pipeline_is_one_line_and_does_not_hide_the_others(install, source, target, message):
    install(source, f"own = {target}")
    assert "own" in registry.pipelines()
    assert isinstance(registry.summary("own"), str)
    with pytest.raises(GenkitError, match=message) as caught:
        registry.get("own")
    assert "own" in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_package_that_hides_the_pipelines_is_named(tmp_path, monkeypatch):
    """Somebody's own top-level `toolbox` comes first on the path."""
    for place in ("site", "mine"):
        (tmp_path / place / "toolbox").mkdir(parents=True)
        (tmp_path / place / "toolbox" / "__init__.py").write_text("")
    (tmp_path / "site" / "toolbox" / "own.py").write_text(GOOD)
    (info := tmp_path / "site" / "toolbox-1.dist-info").mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toolbox\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[genkit.pipelines]\nown = toolbox.own:Own\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.syspath_prepend(str(tmp_path / "mine"))
    registry._entries.cache_clear()
    try:
        with pytest.raises(
            GenkitError, match=r"is hidden: another package called 'toolbox' at .*mine.* remove or rename"
        ):
            registry.get("own")
        assert registry.summary("own") == "(does not import; see `genkit doctor`)"
    finally:
        registry._entries.cache_clear()
        sys.modules.pop("toolbox", None)
