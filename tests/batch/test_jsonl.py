"""Lines of JSON: what is read is what was written, and what is no line is said to be none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genkit.batch import jsonl

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters())
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@given(st.dictionaries(st.text(), values))
def test_what_is_read_is_what_was_written(value: dict[str, Any]) -> None:
    line = jsonl.written(value)
    assert line == json.dumps(value, separators=(",", ":")).encode() + b"\n"
    assert line.count(b"\n") == 1
    assert jsonl.read(line) == value


def test_half_a_surrogate_pair_survives() -> None:
    """The name of a file may hold one, where its bytes are no UTF-8."""
    assert jsonl.read(jsonl.written({"path": "\udcff.png"})) == {"path": "\udcff.png"}


@pytest.mark.parametrize("line", [b'{"a": 1', b"", b"{a: 1}", b'{"a": 1} {"b": 2}', b'{"a": "\xff"}', b"[" * 100_000])
def test_what_is_no_line_is_told(line: bytes) -> None:
    with pytest.raises((ValueError, RecursionError)):
        jsonl.read(line)
