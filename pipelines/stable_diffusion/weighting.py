r"""Prompts as A1111 writes them: what counts for more, what for less, and where a new chunk begins.

    (text)       counts 1.1 times       ((text))   1.21 times
    [text]       counts 1/1.1 times     (text:1.3) 1.3 times, (text:0) not at all
    \( \) \[ \]  are the signs themselves
    BREAK        fills up the chunk, so that what follows begins a new one

A bracket without its counterpart is a sign like any other, and so is what no number can be read from: "(a:nan)" is the
text "a:nan" in parentheses. A number beyond LIMIT is refused; what nested brackets come to is bounded by it. A1111's
schedules ("[cat:dog:0.5]") and "<lora:name:0.8>" are no weights: they stay text, and `remarks` says so.

Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from genkit.errors import InputError

__all__ = ["LIMIT", "Fragment", "parse", "plain", "remarks", "weighted"]

Fragment: TypeAlias = tuple[str, float]
"""A text and how much it counts."""

STRESS = 1.1
LIMIT = 10.0
"""No part of a prompt counts for more, or for less than this below zero."""

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_SIGN = re.compile(rf"\\([()\[\]\\])|:\s*({_NUMBER})\s*\)|(\bBREAK\b)|[()\[\]]")
_FACTORS = {"(": STRESS, "[": 1 / STRESS}
_OPENED_BY = {")": "(", "]": "["}
_LORA = re.compile(r"<(lora|lyco|hypernet):[^<>]{1,200}>", re.IGNORECASE)
_SCHEDULE = re.compile(r"\[[^\[\]]{0,500}:[^\[\]]{0,500}:\s*\d+\.?\d*\s*\]|\[[^\[\]:]{0,500}\|[^\[\]]{0,500}\]")

BREAK = "BREAK"


def parse(prompt: str) -> list[list[Fragment]]:
    """The prompt's sections, parted by BREAK, each of fragments of which no two neighbours count the same.

    Raises InputError for a weight beyond LIMIT.
    """
    signs = list(_signs(prompt))
    factors = _matched(signs)
    weights = {"(": [1.0], "[": [1.0]}  # a stack for each kind of bracket, of what all open ones come to
    sections: list[list[Fragment]] = [[]]
    for i, (sign, text) in enumerate(signs):
        if sign == BREAK:
            sections.append([])
        elif i not in factors:
            _add(sections[-1], text, max(-LIMIT, min(LIMIT, weights["("][-1] * weights["["][-1])))
        elif sign in _FACTORS:
            stack = weights[sign]
            stack.append(max(-1e9, min(1e9, stack[-1] * factors[i])))
        else:
            weights[_OPENED_BY[sign]].pop()
    return sections


def plain(prompt: str) -> str:
    """The prompt's words, without brackets and weights."""
    sections = ["".join(text for text, _ in section) for section in parse(prompt)]
    return sections[0] if len(sections) == 1 else " ".join(section.strip() for section in sections)


def remarks(prompt: str) -> list[str]:
    """What somebody coming from A1111 may expect of a prompt, and is not done."""
    notes = []
    if found := _LORA.search(prompt):
        notes.append(f"{found[0]} in a prompt is read as words; LoRA files go into the parameter lora")
    if found := _SCHEDULE.search(prompt):
        notes.append(f"{found[0][:60]} in a prompt is read as words: it does not change while sampling")
    return notes


def _signs(prompt: str) -> Iterator[tuple[str, str]]:
    """(sign, as written): brackets, BREAK, and "" for text. The weight stands with the bracket that it closes."""
    start = 0
    for match in _SIGN.finditer(prompt):
        yield "", prompt[start : match.start()]
        start = match.end()
        if match[1]:
            yield "", match[1]
        elif match[2] is not None:
            yield ")", match[0]
        else:
            yield match[3] or match[0], match[0]
    yield "", prompt[start:]


def _matched(signs: list[tuple[str, str]]) -> dict[int, float]:
    """Each bracket that has a counterpart, by its place, and the factor of the two."""
    open_: dict[str, list[int]] = {"(": [], "[": []}
    factors: dict[int, float] = {}
    for i, (sign, text) in enumerate(signs):
        if sign in _FACTORS:
            open_[sign].append(i)
        elif sign in _OPENED_BY and open_[_OPENED_BY[sign]]:
            opening = open_[_OPENED_BY[sign]].pop()
            factor = _weight(text) if text != sign else _FACTORS[signs[opening][0]]
            factors |= {opening: factor, i: factor}
    return factors


def _weight(text: str) -> float:
    """Of ":1.3)". Raises InputError."""
    number = text[1:-1].strip()
    weight = float(number)
    if not -LIMIT <= weight <= LIMIT:
        raise InputError(f"a weight of {number[:40]} in the prompt is out of range: it must be {-LIMIT:g} to {LIMIT:g}")
    return weight


def _add(section: list[Fragment], text: str, weight: float) -> None:
    if text and section and section[-1][1] == weight:
        section[-1] = (section[-1][0] + text, weight)
    elif text:
        section.append((text, weight))


def weighted(sections: Iterable[Iterable[Fragment]]) -> bool:
    """Whether anything but blanks counts other than once."""
    return any(weight != 1 and text.strip() for section in sections for text, weight in section)
