"""Names of outputs that are safe on every disk: they stay inside the folder, and no two are one on some file system.

Windows and macOS are kept in mind on Linux too, since folders of results travel: reserved names (CON, NUL, ...), the
signs `<>:"|?*\\`, names that differ only in case or in Unicode form.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from genkit.batch.template import shown

__all__ = ["Names", "fault", "folded", "numbered", "safe"]

MAX_NAME = 240
"""Bytes of one name: file systems take 255, and several pictures of one job get `-1`, `-2`, ... on top."""
MAX_PATH = 1000

_FORBIDDEN = re.compile('[<>:"|?*\\\\\x00-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]')
_NUMBERED = re.compile(r"(.+)-[0-9]+(\.[^./]+)")
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in "123456789")}


def safe(value: Any) -> Any:
    """A variable's value as part of a file name: numbers as they are, in texts no separators, at most 80 signs."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    text = _FORBIDDEN.sub("_", " ".join(shown(value).split())).replace("/", "_")
    return text[:80].strip()


def fault(path: str) -> str | None:
    """What is wrong with a relative output path, with the remedy; None if nothing is."""
    if path.startswith("/") or re.match(r"[A-Za-z]:", path):
        return "is absolute; outputs are named from the output folder down"
    if bad := _FORBIDDEN.search(path):
        return f"holds {bad[0]!r}, which not every disk takes; leave it out"
    for part in path.split("/"):
        if part in ("", "."):
            return "has an empty part; write folder/name.suffix"
        if part == "..":
            return "climbs out of the output folder; leave out the '..'"
        if part.startswith("."):
            return f"is hidden: {part[:40]!r} begins with a dot (is a variable empty?); begin it with another sign"
        if part.endswith((".", " ")):
            return f"has a part that ends in a dot or a space ({part[-40:]!r}); leave that out"
        if part.split(".")[0].rstrip().casefold() in _RESERVED:
            return f"holds {part[:40]!r}, a reserved name on Windows; choose another"
        if len(part.encode()) > MAX_NAME:
            return f"has a part of {len(part.encode())} bytes, and {MAX_NAME} is the most; shorten it, or use {{index}}"
    if len(path.encode()) > MAX_PATH:
        return f"is {len(path.encode())} bytes long; {MAX_PATH} is the most"
    return None


def folded(path: str) -> str:
    """Equal for paths that some file system holds for one: Unicode form and case are dropped."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def numbered(path: str) -> str | None:
    """The output whose several files could have this name: "a.png" for "a-2.png"; folded. None if none could."""
    found = _NUMBERED.fullmatch(folded(path))
    return found[1] + found[2] if found else None


class Names:
    """The names given so far. One string a name is kept, so a hundred thousand cost some megabytes."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {folded("report.html"): 0, folded("grid.png"): 0}
        self._folders: dict[str, int] = {}

    def add(self, path: str, number: int) -> int | None:
        """Enters a job's path. Returns the number of the job it clashes with (0 for the report), or None."""
        key = folded(path)
        parts = key.split("/")
        parents = ["/".join(parts[:i]) for i in range(1, len(parts))]
        if key in self._files:
            return self._files[key]
        if key in self._folders:
            return self._folders[key]
        for parent in parents:
            if parent in self._files:
                return self._files[parent]
        self._files[key] = number
        for parent in parents:
            self._folders.setdefault(parent, number)
        return None
