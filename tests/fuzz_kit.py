"""What the fuzzing tests share: how much of it, traps for readers of text, and the command line called in-process.

Every property has two tests: a short one in each run of the suite, the same examples every time, and a long one under
`slow`, other examples every time; GENKIT_FUZZ sets how many (default 3000).
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from genkit.cli import main

MOST_SECONDS = 20
"""For any one input: many times what the slowest takes on a quiet machine, far below what a spinning one would."""

_COMMON: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck)}


def short(examples: int) -> settings:
    return settings(max_examples=examples, derandomize=True, database=None, **_COMMON)


def long() -> settings:
    return settings(max_examples=int(os.environ.get("GENKIT_FUZZ", "3000")), print_blob=True, **_COMMON)


def genkit(*arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr. Holds that a refusal is one printable line, nothing is a fault, and it ends."""
    out, err = io.StringIO(), io.StringIO()
    start = time.monotonic()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(arguments)
    said = err.getvalue()
    assert time.monotonic() - start < MOST_SECONDS, f"{arguments} took too long"
    assert "Traceback" not in said
    assert "a fault in genkit" not in said, said
    if status:
        assert said.startswith("genkit: "), said
        assert said.count("\n") == 1, said
        assert said.rstrip("\n").isprintable(), said
        assert len(said) < 2000, said
    return status, out.getvalue(), said


# Texts that readers stumble over: YAML's and JSON's own, then numbers, templates, names of files, models.
TRAPS: Sequence[str] = (
    *("&a x", "*a", "!!python/object/apply:os.system ['true']", "!x y", "<<: {a: 1}", "---\n", "...\n", "%YAML 1.2\n"),
    *("%FOO bar\n", "? x\n: y", "? [a, b]\n: c", "!!binary aGk=", "2026-01-01", "12:30:45", "no", "|", ">\n", "|9\n"),
    *("[" * 40, "[" * 5000, "{a: " * 200, "]", "}", "- " * 500, "'", '"', '"\\ud800"', '"\\U00110000"', '"\\x00"'),
    *("k" * 2000 + ": 1", "k" * 70_000, "#", "\t", "\0", "\x7f", "\ufeff", "\u2028", "\x85", "\ud800", "\U0010ffff"),
    *("1e999", "-1e999", ".inf", ".nan", "9" * 4000, "9" * 5000, "0x" + "f" * 5000, "0o" + "7" * 6000, "1e-400"),
    *("-1", "0", "-0.0", "1" * 30, "true", "null", "~", "", "[]", "{}", "[[]]", "{stage: paint}", "{stage: 1}"),
    *("{a|b}", "__x__", "__../x__", "__look__", "{index}", "{{", "{a.b.c}", "{index:99d}", "{index:.9f}", "{x!r}"),
    *("{a|" * 60, "{index:0}", "{self.__class__}", "\u202e", "\u0130", "\ufb01", "e\u0301", "\u1fb3\u0345"),
    *("../x.png", "/dev/zero", "/dev/stdin", "/proc/self/mem", "/etc/passwd", "~/x", "~nobody-here/x", "~", ".", ".."),
    *("*", "**/*", "[", "[!]", "a" * 300, "a/" * 600, "CON", "nul.png", "rows.csv", "x.jsonl", "/", "//", "\\\\a\\b"),
    *("http://example.com/x", "file:///etc/passwd", "hub:org/name", "org/name", "shipped:os/../x", "torchvision:vgg19"),
    *("max_jobs: 10000000", "stages: []", "stages: {}", "pipeline: test-tune", "name: ..", "name: a/b", "choices: all"),
)


Wound = tuple[str, int, int, str]
"""What is done, two numbers for where, and a trap."""

WOUNDS: st.SearchStrategy[list[Wound]] = st.lists(
    st.tuples(
        st.sampled_from(("drop", "double", "indent", "swap", "insert", "replace", "cut", "byte")),
        st.integers(0, 1 << 16),
        st.integers(0, 1 << 16),
        st.sampled_from(TRAPS),
    ),
    min_size=1,
    max_size=6,
)


def wounded(text: str, wounds: Sequence[Wound]) -> bytes:
    """A text with its lines dropped, doubled, indented, moved; traps put in; bytes changed."""
    data = text.encode("utf-8", "surrogatepass")
    for kind, first, second, trap in wounds:
        lines = data.splitlines(keepends=True) or [b""]
        a, b, at = first % len(lines), second % len(lines), first % (len(data) + 1)
        token = trap.encode("utf-8", "surrogatepass")
        if kind in ("drop", "double", "indent"):
            lines[a : a + 1] = {"drop": [], "double": [lines[a]] * 2, "indent": [b" " * (second % 9) + lines[a]]}[kind]
        elif kind == "swap":
            lines[a], lines[b] = lines[b], lines[a]
        elif kind == "replace":  # what stands behind a colon, or the whole line
            head, colon, _ = lines[a].rpartition(b": ")
            lines[a] = head + colon + token + b"\n"
        data = b"".join(lines)
        if kind == "insert":
            data = data[:at] + token + data[at:]
        elif kind == "cut":
            data = data[:at]
        elif kind == "byte" and data:
            at %= len(data)
            data = data[:at] + bytes([second % 256]) + data[at + 1 :]
    return data
