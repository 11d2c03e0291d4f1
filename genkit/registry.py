"""Name -> pipeline, by entry points. Nothing is imported until a pipeline is asked for by name."""

from __future__ import annotations

import ast
import difflib
import importlib.util
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genkit.errors import GenkitError, InputError

if TYPE_CHECKING:
    from genkit.pipeline import Pipeline

__all__ = ["GROUP", "first_line", "get", "load", "origin", "pipelines", "summary"]

GROUP = "genkit.pipelines"
BROKEN = "(does not import; see `genkit doctor`)"


@cache
def _entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)}


def pipelines() -> list[str]:
    """The names of every pipeline installed, sorted."""
    return list(_entries())


def get(name: str) -> type[Pipeline]:
    """The class behind a name.

    Raises InputError for an unknown name, GenkitError for a pipeline that does not import or is none.
    """
    entry = _entries().get(name)
    if entry is None:
        close = difflib.get_close_matches(name, _entries(), 1)
        hint = f"did you mean {close[0]!r}?" if close else f"installed are {', '.join(_entries()) or 'none'}"
        raise InputError(f"no pipeline is called {name[:80]!r}: {hint}")
    try:
        found = entry.load()
    except Exception as error:  # somebody else's module may raise anything
        raise GenkitError(_why_not(entry, error)) from error
    _check(entry, found)
    return found


def _check(entry: EntryPoint, found: Any) -> None:
    """Whether an entry point leads to a pipeline that keeps the contract."""
    from genkit.pipeline import Params, Pipeline

    where = f"pipeline {entry.name!r} ({entry.value})"
    if not (isinstance(found, type) and issubclass(found, Pipeline)):
        raise GenkitError(f"{where} is no subclass of genkit.Pipeline; correct its entry point")
    params = getattr(found, "Params", None)
    if not (isinstance(params, type) and issubclass(params, Params)):
        raise GenkitError(f"{where} has no `Params` that is a subclass of genkit.Params; give it one")
    if getattr(found, "name", None) != entry.name:
        raise GenkitError(f"{where} states another name ({getattr(found, 'name', None)!r}); make the two equal")
    if found.produces not in ("image", "audio", "midi"):
        raise GenkitError(f"{where} produces {found.produces!r}; it must be image, audio or midi")


def _why_not(entry: EntryPoint, error: Exception) -> str:
    top = entry.module.split(".")[0]
    spec = importlib.util.find_spec(top)
    home = entry.dist and Path(str(entry.dist.locate_file(top)))
    found = Path(spec.origin).parent if spec and spec.origin else None
    if found and home and home.exists() and not found.samefile(home):
        return (
            f"pipeline {entry.name!r} is hidden: another package called {top!r} at {found} comes before its own "
            f"at {home}; remove or rename the other"
        )
    reason = f"{type(error).__name__}: {error}"
    return f"pipeline {entry.name!r} does not import ({reason}); `genkit doctor` shows what is missing"


def origin(name: str) -> str:
    """The distribution that a pipeline comes with, and its version: "genkit-media 1.0.0"."""
    dist = _entries()[name].dist
    return f"{dist.name} {dist.version}" if dist else "unknown"


def summary(name: str) -> str:
    """A pipeline's one line: the first of its module's docstring."""
    return first_line(_entries()[name].module)


def first_line(module: str) -> str:
    """The first line of a module's docstring, read from the source without running it."""
    try:
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            return BROKEN
        doc = ast.get_docstring(ast.parse(Path(spec.origin).read_text("utf-8")))
    except Exception:  # finding a module imports the packages around it, which may raise anything
        return BROKEN
    return doc.splitlines()[0] if doc else ""


def load(
    name: str,
    *,
    model: str | Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
    deterministic: bool = False,
) -> Pipeline:
    """Loads a pipeline, ready to be called.

    name: as in `genkit list`; model: an alias of `genkit models`, a hub id, a folder or a file (default: the model that
    ships); device: "cpu", "cuda", "cuda:1", "mps", "xpu" (default: the best there is); dtype: "float32", "bfloat16" or
    "float16" (default: what the device does well); deterministic: the same bits on every run, where that costs speed.

    Raises InputError (unknown name), ModelError, DeviceError.
    """
    from genkit.runtime import Runtime

    return get(name).load(model, Runtime.pick(device=device, dtype=dtype, deterministic=deterministic))
