"""Recipes by name: those that ship with genkit, found, listed and copied out."""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genkit import shipped, yaml
from genkit.batch import plan
from genkit.batch import recipe as recipes
from genkit.batch.planning.planner import Digests
from genkit.batch.planning.template import suggest
from genkit.errors import GenkitError, RecipeError
from genkit.fields import way
from genkit.media.files import atomic_write

__all__ = ["Entry", "copy", "entries", "find"]

SCHEMA = "genkit-recipe.schema.json"
_MODELINE = re.compile(r"(#\s*yaml-language-server:\s*\$schema=)\S+")


@dataclass(frozen=True)
class Entry:
    """A shipped recipe. kind: "batch" (for `genkit run`) or "training" (for `genkit train`)."""

    name: str
    kind: str
    description: str
    path: Path


def find(reference: str | Path) -> Path:
    """A recipe file by path, or by the name of a shipped one. Raises RecipeError."""
    path = Path(reference)
    if path.suffix in (".yaml", ".yml", ".json") or path.is_file():
        return path
    if path.is_dir():
        raise RecipeError("is a folder; name a recipe file in it", where=str(reference))
    known = shipped.recipes()
    if str(reference) in known:
        return known[str(reference)]
    if f"train/{reference}" in known:
        raise RecipeError(f"this is a training recipe; start it with `genkit train {reference}`", where=str(reference))
    hint = suggest(str(reference)[:80], known)
    raise RecipeError(f"no recipe file and no shipped recipe is called so: {hint}", where=str(reference)[:80])


def entries() -> list[Entry]:
    """Every shipped recipe. One that does not parse is listed with its error for a description."""
    return [_entry(name, path) for name, path in shipped.recipes().items()]


def _entry(name: str, path: Path) -> Entry:
    try:
        value = yaml.read(path).value
    except GenkitError as error:
        return Entry(name, "batch", str(error), path)
    fields = value if isinstance(value, dict) else {}
    kind = "training" if "train" in fields else "batch"
    return Entry(name, kind, str(fields.get("description") or _first_comment(path)), path)


def _first_comment(path: Path) -> str:
    for line in path.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            return ""
        text = line.lstrip("# ").strip()
        if text and not _MODELINE.match(line):
            return text
    return ""


def copy(name: str, destination: str | Path | None = None) -> list[Path]:
    """Copies a shipped recipe to be edited, with the files it takes, so that the copy runs as it is.

    destination: a file name, or a folder (default: here). Files from other folders of the collection come to lie beside
    the copy, whose text is changed accordingly. Returns what was written, the recipe first. Raises RecipeError if the
    name is unknown, and if a file of another content is there already.
    """
    source = find(name)
    root = shipped.folder() or source.parent
    target = Path(destination or ".")
    if target.is_dir() or target.suffix not in (".yaml", ".yml"):
        target = target / source.name
    text = source.read_text("utf-8")
    files: dict[Path, bytes] = {}
    for path in _inputs(source):
        if path.is_relative_to(source.parent):
            inner = path.relative_to(source.parent)
        elif path.is_relative_to(root):
            inner = path.relative_to(root)
            up = "../" * len(source.relative_to(root).parent.parts)
            text = text.replace(f"{up}{inner.parts[0]}/", f"{inner.parts[0]}/")
        else:
            raise RecipeError(f"takes {str(path)!r}, which did not come with genkit; copy both", where=str(source))
        files[target.parent / inner] = path.read_bytes()
    if _MODELINE.search(text) and (root / SCHEMA).is_file():
        text = _MODELINE.sub(rf"\g<1>{SCHEMA}", text, count=1)
        files[target.parent / SCHEMA] = (root / SCHEMA).read_bytes()
    files = {target: text.encode(), **files}
    for path, content in files.items():
        if path.exists() and not (path.is_file() and path.read_bytes() == content):
            raise RecipeError("exists already; give another name or folder", where=str(path))
    for path, content in files.items():
        atomic_write(path, content)
    return list(files)


def _inputs(path: Path, digests: Digests | None = None) -> list[Path]:
    """The files a recipe names: tables, folders' files, and every file parameter of every job."""
    document = yaml.read(path)
    if not isinstance(document.value, dict) or "train" in document.value:
        return []
    recipe = recipes.load(path)
    found = {Path(file) for job in plan.stream(recipe, digests=digests) for file in _job_files(job)}
    stages = document.value.get("stages") or [document.value]
    found |= {recipe.root / stage["rows"] for stage in stages if isinstance(stage.get("rows"), str)}
    return sorted(path.resolve() for path in found)


def _job_files(job: Any) -> Iterator[str]:
    for name in job.inputs:
        yield functools.reduce(operator.getitem, way(name), job.params)
