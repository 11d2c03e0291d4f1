"""Names of outputs that are safe on every disk: they stay inside the folder, and no two are one on some file system.

Windows and macOS are kept in mind on Linux too, since folders of results travel: reserved names (CON, NUL, ...), the
signs `<>:"|?*\\`, names that differ only in case, in Unicode form, or in signs that nobody sees.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from genkit.batch.planning.template import shown

__all__ = ["Names", "fault", "folded", "numbered", "safe"]

MAX_NAME = 230
"""Bytes of one name: file systems take 255, and `-1`, `-2`, ... of several pictures and the `.genkit.json` of a record
beside its file come on top."""
MAX_PATH = 1000

_FORBIDDEN = re.compile('[<>:"|?*\\\\\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]')
_NUMBERED = re.compile(r"(.+)-[0-9]+(\.[^./]+)")
_PORTS = (f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789\u00b9\u00b2\u00b3")
_RESERVED = {"con", "prn", "aux", "nul", "conin$", "conout$", "clock$", *_PORTS}
# What Unicode calls Default_Ignorable_Code_Point: ext4 that folds case and HFS+ pass over them.
_UNSEEN = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


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
        if _UNSEEN.sub("", part).startswith("."):
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
    """Equal for paths that some file system holds for one: form, case and unseen signs are dropped (the Unicode
    standard's canonical caseless matching, D145)."""
    if path.isascii():
        return path.lower()
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", _UNSEEN.sub("", path)).casefold())


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
