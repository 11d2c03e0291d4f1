"""The direction of imports, read from the source of every file, lazy imports included; and what starting up imports."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import genkit

ROOT = Path(__file__).parents[1]
FILES = sorted(path for top in ("genkit", "pipelines") for path in (ROOT / top).rglob("*.py"))
LOWER = ("genkit.media", "genkit.runtime", "genkit.weights", "genkit.metrics", "genkit.errors", "genkit.fields")
UPPER = ("genkit.batch", "genkit.cli", "genkit.ui", "genkit.training")


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere in it, functions and type checking included, names as dotted paths."""
    package = module_of(path).split(".")
    package = package if path.name == "__init__.py" else package[:-1]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module" and node.args:
            argument = node.args[0]
            if isinstance(argument, ast.Constant):
                yield str(argument.value)


def under(name: str, tops: tuple[str, ...]) -> bool:
    return any(name == top or name.startswith(top + ".") for top in tops)


def offenders(importers: tuple[str, ...], imported: tuple[str, ...], *, but: tuple[str, ...] = ()) -> list[str]:
    """ "file imports module" for every import that a rule forbids."""
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in FILES
        if under(module_of(path), importers) and not under(module_of(path), but)
        for name in imports(path)
        if under(name, imported)
    ]


def test_the_rules_see_lazy_relative_and_named_imports(tmp_path):
    """The reader of imports is itself held to what it must find."""
    found = set(imports(ROOT / "genkit" / "registry.py"))
    assert "genkit.runtime.Runtime" in found  # inside a function
    assert "genkit.pipeline.Pipeline" in found  # under TYPE_CHECKING
    assert len(FILES) > 20


def test_the_lower_layers_do_not_import_the_upper():
    assert offenders(LOWER, UPPER) == []


def test_errors_and_fields_import_nothing_else_of_genkit():
    assert offenders(("genkit.errors",), ("genkit",)) == []
    assert [line for line in offenders(("genkit.fields",), ("genkit",)) if "genkit.errors" not in line] == []


def test_the_engine_knows_no_pipeline():
    assert offenders(("genkit",), ("pipelines",)) == []


def test_pipelines_import_the_lower_layers_only():
    # A pipeline's train.py is the one that meets the trainer.
    assert offenders(("pipelines",), ("genkit.batch", "genkit.cli", "genkit.ui")) == []


def test_no_pipeline_imports_another():
    packages = [path.name for path in (ROOT / "pipelines").iterdir() if (path / "__init__.py").is_file()]
    for package in packages:
        others = tuple(f"pipelines.{other}" for other in packages if other != package)
        assert offenders((f"pipelines.{package}",), others) == []


@pytest.mark.parametrize(
    ("library", "home"),
    [("gradio", "genkit.ui"), ("diffusers", "pipelines.stable_diffusion"), ("ray", "genkit.batch.engines.ray")],
)
def test_heavy_libraries_stay_in_one_place(library, home):
    assert offenders(("genkit", "pipelines"), (library,), but=(home,)) == []


def test_only_the_runtime_picks_a_device():
    """`torch.cuda.is_available()` elsewhere is a second opinion."""
    asking = [
        str(path.relative_to(ROOT))
        for path in FILES
        if "cuda.is_available" in path.read_text("utf-8") and module_of(path) != "genkit.runtime"
    ]
    assert asking == []


def test_weights_are_unpickled_in_one_place_and_safely():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pickle.load", "pickle.loads"):
                safe = [k for k in node.keywords if k.arg == "weights_only" and ast.unparse(k.value) == "True"]
                assert safe, f"{path.relative_to(ROOT)}:{node.lineno} loads a pickle without weights_only=True"


# ----------------------------------------------------------------------------------------------------------- start


def imported_by(*statements: str) -> set[str]:
    """The top-level packages in sys.modules of a fresh interpreter after these statements."""
    code = "; ".join(["import sys", *statements, "print(*{name.split('.')[0] for name in sys.modules})"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.splitlines()[-1].split())


HEAVY = {
    "torch",
    "torchvision",
    "torchaudio",
    "gradio",
    "diffusers",
    "transformers",
    "accelerate",
    "ray",
    "numpy",
    "PIL",
}


def test_importing_genkit_imports_nothing_heavy():
    assert not imported_by("import genkit") & (HEAVY | {"pydantic", "click", "rich", "yaml"})


def test_the_help_imports_nothing_heavy():
    for arguments in (
        ["--help"],
        ["--version"],
        ["list"],
        ["no-such-command"],
        ["run", "--help"],
        ["doctor", "--help"],
    ):
        found = imported_by("from genkit.cli import main", f"main({arguments!r})")
        assert not found & HEAVY, arguments
    assert "pydantic" not in imported_by("from genkit.cli import main", "main(['--help'])")


def test_every_pipeline_and_its_help_come_without_torch():
    from importlib.metadata import entry_points

    for entry in entry_points(group="genkit.pipelines"):
        if entry.dist is not None and entry.dist.name == "genkit-media":
            found = imported_by("from genkit.cli import main", f"main([{entry.name!r}, '--help'])")
            assert not found & (HEAVY - {"numpy", "PIL"}), entry.name


@pytest.mark.parametrize("name", genkit.__all__)
def test_every_public_name_resolves(name):
    assert getattr(genkit, name) is not None
    assert name in dir(genkit)


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        genkit.nothing  # noqa: B018


@pytest.mark.parametrize("path", [p for p in FILES if module_of(p).startswith("genkit")], ids=module_of)
def test_every_name_a_module_offers_is_there(path):
    pytest.importorskip("gradio") if under(module_of(path), ("genkit.ui",)) else None
    pytest.importorskip("ray") if module_of(path) == "genkit.batch.engines.ray" else None
    if path.name == "__main__.py":
        return
    module = importlib.import_module(module_of(path))
    missing = [name for name in getattr(module, "__all__", ()) if not hasattr(module, name)]
    assert missing == []
