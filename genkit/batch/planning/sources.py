"""Where a recipe's values come from when it does not hold them itself: tables (CSV, JSONL) and folders (globs).

Both are read when the recipe is, so that planning needs no disk but for digests. Both stop at the recipe's `max_jobs`.
"""

from __future__ import annotations

import csv
import glob
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from genkit import yaml
from genkit.errors import RecipeError
from genkit.fields import expanded
from genkit.media.files import SUFFIXES

__all__ = ["matches", "table"]

MAX_LINE = 1 << 20
_NUMBERS: dict[str, Any] = {"parse_int": yaml.scalar, "parse_float": yaml.scalar}
"""JSON's numbers within the bounds of YAML's."""


def table(path: Path, limit: int) -> list[dict[str, Any]]:
    """The rows of a CSV (first line: names) or JSONL file. An empty CSV cell leaves its variable unset.

    Raises RecipeError with file and line; ValueError, one line, for a file that is none.
    """
    readers = {".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".ndjson": _jsonl}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"rows come from a .csv, .tsv or .jsonl file, and {str(path)!r} is none")
    try:
        if not path.is_file():
            raise ValueError(f"{str(path)!r} does not exist or is no ordinary file; check the path")
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(islice(reader(path, file), limit + 1))
    except UnicodeDecodeError:
        raise RecipeError("is not UTF-8 text; save it as UTF-8", where=str(path)) from None
    except OSError as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    if len(rows) > limit:
        raise RecipeError(f"holds more rows than max_jobs: {limit}; raise max_jobs or split the file", where=str(path))
    if not rows:
        raise RecipeError("holds no rows; add some", where=str(path))
    return rows


def _lines(path: Path, file: Any) -> Iterator[tuple[int, str]]:
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise RecipeError("a line longer than 1 MiB; is it the right file?", where=f"{path}:{number}")
        yield number, line


def _csv(path: Path, file: Any) -> Iterator[dict[str, Any]]:
    # A generator, so that a huge file is never read beyond the limit of jobs.
    reader = csv.reader(
        (line for _, line in _lines(path, file)), delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True
    )

    def fail(message: str) -> NoReturn:
        raise RecipeError(message, where=f"{path}:{max(reader.line_num, 1)}")

    try:
        header = [name.strip() for name in next(reader, [])]
        if len(set(header)) < len(header) or not all(header):
            fail("each column needs a name of its own in the first line")
        for cells in reader:
            if not any(cells):
                continue
            if len(cells) != len(header):
                fail(f"{len(cells)} cells under {len(header)} names; quote a cell that holds a comma")
            yield {name: cell for name, cell in zip(header, cells, strict=True) if cell != ""}
    except csv.Error as error:
        fail(f"is not valid CSV: {error}")


def _jsonl(path: Path, file: Any) -> Iterator[dict[str, Any]]:
    for number, line in _lines(path, file):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_unique, parse_constant=_no_constant, **_NUMBERS)
            if not isinstance(row, dict):
                raise ValueError('each line is an object: {"prompt": "a fox"}')
            yield _plain(row)
        except (ValueError, RecursionError) as error:
            reason = str(error) if type(error) is ValueError else "is not a line of JSON: check the quotes and brackets"
            raise RecipeError(reason, where=f"{path}:{number}") from None


def _plain(value: Any, depth: int = 0) -> Any:
    """What YAML could say too. Raises ValueError for deep nesting and for halves of characters."""
    if depth > yaml.MAX_DEPTH:
        raise ValueError(f"is nested deeper than {yaml.MAX_DEPTH} levels")
    if isinstance(value, dict):
        return {yaml.whole(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, depth + 1) for item in value]
    return yaml.whole(value) if isinstance(value, str) else value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a name stands twice")
    return row


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def matches(pattern: str, root: Path, kind: str, limit: int) -> list[str]:
    """The files that a pattern names, sorted, as written from `root` down. A folder stands for its files of that kind.

    Raises ValueError, one line, when there are none or more than `limit`.
    """
    base = expanded(pattern)
    if (root / base).is_file():  # a name with brackets in it is taken as it stands
        return [pattern]
    folder = (root / base).is_dir()
    search = str(Path(glob.escape(str(base))) / "*") if folder else str(base)
    # Unlike Path.glob, this leaves out hidden files, as a shell does.
    candidates = glob.iglob(search, root_dir=root, recursive=True)  # noqa: PTH207
    found = (name for name in candidates if (root / name).is_file() and (not folder or _is_kind(name, kind)))
    names = sorted(islice(found, limit + 1))
    if odd := next((name for name in names if _not_text(name)), None):
        raise ValueError(f"{pattern!r} names a file whose name is not UTF-8 ({odd!a}); rename it")
    if len(names) > limit:
        raise ValueError(f"{pattern!r} names more than max_jobs: {limit} files; raise max_jobs or name fewer")
    if not names:
        what = f"holds no {kind} file" if folder and kind else "names no file"
        raise ValueError(f"{pattern!r} {what} (searched from {root}); check the pattern")
    return names


def _not_text(name: str) -> bool:
    """Whether bytes of a name were no text: neither a record nor a plan could hold it."""
    return any("\ud800" <= sign <= "\udfff" for sign in name)


def _is_kind(name: str, kind: str) -> bool:
    return kind not in SUFFIXES or Path(name).suffix.lower() in SUFFIXES[kind]
