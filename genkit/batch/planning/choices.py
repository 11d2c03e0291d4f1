"""Choices in a recipe's texts: {red|blue}, and __animals__ for a line of wildcards/animals.txt beside the recipe.

`choices: all` writes every combination out, as if it stood in `matrix`; `choices: random` takes one for each job, drawn
from the job's seed, so that the same recipe makes the same jobs. Neither is guessed. A line of a wildcard file may hold
choices and {variables} itself; blank lines and those that begin with # are passed over. `{{` and `}}` are left alone.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from genkit.batch.planning.template import TemplateError, suggest

__all__ = ["FOLDER", "Choices"]

FOLDER = "wildcards"
MAX_BYTES = 4 << 20
MAX_DRAWS = 200
"""Choices made for one text: wildcards that name wildcards could go on for ever."""
_PART = re.compile(r"\{\{|\}\}|\{([^{}|]*(?:\|[^{}|]*)+)\}|__([A-Za-z0-9][A-Za-z0-9/-]*(?:_[A-Za-z0-9/-]+)*)__")


class Choices:
    """root: the folder that the wildcards' folder stands in; limit: the most texts that one may be written out to.

    Every method raises TemplateError, one line.
    """

    def __init__(self, root: Path, limit: int) -> None:
        self.folder, self.limit = root / FOLDER, limit
        self.files: dict[str, tuple[str, ...]] = {}

    def within(self, text: str) -> bool:
        return any(match[1] is not None or match[2] is not None for match in _PART.finditer(text))

    def rows(self, row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """An assignment written out: one for each combination of its texts' choices."""
        texts = [self.all(value) if isinstance(value, str) else [value] for value in row.values()]
        if math.prod(map(len, texts)) > self.limit:
            raise self._too_many(math.prod(map(len, texts)))
        for values in product(*texts):
            yield dict(zip(row, values, strict=True))

    def all(self, text: str) -> list[str]:
        """Every text that the choices allow, in order, each once."""
        count = self._count(text, ())
        if count > self.limit:
            raise self._too_many(count)
        return list(dict.fromkeys(self._all(text)))

    def pick(self, text: str, seed: str) -> str:
        """One of them, always the same for a seed."""
        draw, left = random.Random(seed), MAX_DRAWS

        def picked(text: str) -> str:
            nonlocal left
            found = []
            for part in self._parts(text):
                if isinstance(part, tuple):
                    left -= 1
                    if left < 0:
                        raise TemplateError(f"makes more than {MAX_DRAWS} choices; does a wildcard name itself?")
                    part = picked(part[int(draw.random() * len(part))])  # random() is the same in every Python
                found.append(part)
            return "".join(found)

        return picked(text)

    def texts(self, value: Any, seen: set[str] | None = None) -> Iterator[Any]:
        """What is left to be filled as a template, whichever way the choices go."""
        seen = set() if seen is None else seen
        if not isinstance(value, str):
            yield value
        elif value not in seen:
            seen.add(value)
            for part in self._parts(value):
                for text in part if isinstance(part, tuple) else ():
                    yield from self.texts(text, seen)
            yield "".join(part for part in self._parts(value) if isinstance(part, str))

    def _parts(self, text: str) -> Iterator[str | tuple[str, ...]]:
        start = 0
        for match in _PART.finditer(text):
            if match[1] is not None or match[2] is not None:
                yield text[start : match.start()]
                yield self._lines(match[2]) if match[2] else tuple(match[1].split("|"))
                start = match.end()
        yield text[start:]

    def _all(self, text: str) -> Iterator[str]:
        options = [
            [part] if isinstance(part, str) else [one for option in part for one in self._all(option)]
            for part in self._parts(text)
        ]
        return ("".join(parts) for parts in product(*options))

    def _count(self, text: str, inside: tuple[str, ...]) -> int:
        if len(inside) > 8 or text in inside:
            raise TemplateError(f"{inside[0][:60]!r} holds wildcards that name each other; leave one out")
        count = 1
        for part in self._parts(text):
            if isinstance(part, tuple):
                count *= sum(self._count(option, (*inside, text)) for option in part)
            if count > self.limit:
                break
        return count

    def _lines(self, name: str) -> tuple[str, ...]:
        if name not in self.files:
            path = self.folder / f"{name}.txt"
            if not path.is_file():
                known = sorted(
                    p.relative_to(self.folder).with_suffix("").as_posix() for p in self.folder.rglob("*.txt")
                )
                raise TemplateError(f"__{name}__ is a line of {path}, which is not there: {suggest(name, known)}")
            try:
                if path.stat().st_size > MAX_BYTES:
                    raise TemplateError(f"{path} is over {MAX_BYTES >> 20} MiB; split it")
                lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
            except (OSError, UnicodeDecodeError):
                raise TemplateError(f"{path} cannot be read as UTF-8 text; save it as such") from None
            self.files[name] = tuple(line for line in lines if line and not line.startswith("#"))
            if not self.files[name]:
                raise TemplateError(f"{path} holds no lines; add some")
        return self.files[name]

    def _too_many(self, count: int) -> TemplateError:
        return TemplateError(
            f"has {count:,} or more choices, and max_jobs is {self.limit:,}; raise max_jobs, or draw: choices: random"
        )
