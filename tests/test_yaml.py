"""The YAML of recipes: values by the core schema of YAML 1.2, places for errors, none of the traps."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import yaml as pyyaml
from hypothesis import given
from hypothesis import strategies as st

from genkit import yaml
from genkit.errors import RecipeError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("1e3", 1000.0),
        ("-.5", -0.5),
        ("+12", 12),
        ("012", 12),
        ("0o17", 15),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2024-01-01", "2024-01-01"),
        (".inf", float("inf")),
        ("-.Inf", float("-inf")),
        ("'12'", "12"),
        ('"true"', "true"),
        ("1.2.3", "1.2.3"),
        ("<<", "<<"),
        ("=", "="),
        ("1e", "1e"),
        (".", "."),
    ],
)
def test_scalars(text: str, value: Any) -> None:
    found = yaml.parse(f"a: {text}").value["a"]
    assert found == value
    assert type(found) is type(value)


def test_keys_are_text_as_written() -> None:
    assert yaml.parse("on: 1\n1: 2\nnull: 3\n'x y': 4").value == {"on": 1, "1": 2, "null": 3, "x y": 4}


TRAPS = {
    "a duplicate key": ("a: 1\nb: 2\na: 3", "3:1", "'a' stands here a second time"),
    "an alias": ("a: &x [1]\nb: *x", "1:4", "anchors and aliases"),
    "a lone alias": ("a: *x", "1:4", "anchors and aliases"),
    "a bomb": ("a: &a [x,x]\nb: &b [*a,*a]", "1:4", "anchors and aliases"),
    "an anchored key": ("&k a: 1", "1:", "anchors and aliases|plain text"),
    "a tag": ("a: !!python/object/apply:os.system [ls]", "1:4", "the tag .* is not allowed"),
    "a harmless tag": ("a: !!str 1", "1:4", "the tag .* is not allowed"),
    "depth": ("[" * 20_000, "1:34", "nested deeper than 32"),
    "depth by braces": ("{a: " * 5_000, "1:", "nested deeper than 32"),
    "two documents": ("a: 1\n---\nb: 2", "2:1", "a second document"),
    "a list as key": ("? [1]\n: 2", "1:3", "a key must be plain text"),
    "a huge number": ("a: " + "9" * 5_000, "1:4", "3,000 digits"),
    "a huge number, hexadecimal": ("a: 0x" + "f" * 5_000, "1:4", "3,000 digits"),
    "a number beyond floats": ("a: 1e999", "1:4", "1.8e308"),
    "half a character": ('a: "\\ud83e"', "1:4", "U.D83E"),
    "half a character in a key": ('"\\udd8a": 1', "1:1", "U.DD8A"),
    "no character": ('a: "\\U00110000"', "1:7", "no character"),
    "a long version": ("%YAML 1." + "9" * 5_000 + "\n---\na: 1", "1:9", "version"),
    "a NUL": ("a: b\nc: \x00", "2:4", "U.0000"),
    "half a list": ("a: [1,\nb", "2:", "check the YAML"),
    "a tab": ("a:\n\tb: 1", "2:1", "check the YAML"),
    "bytes": (b"a: 1\nb: \xff", "2:4", "is not UTF-8"),
}


@pytest.mark.parametrize("name", TRAPS)
def test_traps_are_refused_with_their_place(name: str) -> None:
    text, where, message = TRAPS[name]
    with pytest.raises(RecipeError, match=message) as raised:
        yaml.parse(text, name="r.yaml")
    assert str(raised.value).startswith(f"r.yaml:{where}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["[" * yaml.MAX_BYTES, "- a\n" * (yaml.MAX_NODES + 1), " " * (yaml.MAX_BYTES + 1)])
def test_size_costs_no_more_than_seconds(text: str) -> None:
    start = time.monotonic()
    with pytest.raises(RecipeError):
        yaml.parse(text)
    assert time.monotonic() - start < 60


def test_every_value_has_its_place() -> None:
    document = yaml.parse("a:\n  b: 1\n  c: [x, {d: 2}]\n", name="r.yaml")
    assert document.where(("a", "b")) == "r.yaml:2:3"
    assert document.where(("a", "c", 1)) == "r.yaml:3:10"
    assert document.where(("a", "c", 1, "d")) == "r.yaml:3:11"
    assert document.where(("a", "some-union-branch", "b")) == "r.yaml:2:3"
    assert document.where(("a", "absent")) == "r.yaml:1:1"
    assert document.where() == "r.yaml:1:1"


def test_assign() -> None:
    document = yaml.parse("a: {b: 1}\nl: [1, {x: 2}]", name="r.yaml")
    for text in ("a.b=[1, no]", "l.1.x=3", "new.deep.name=x=y"):
        document.assign(text)
    assert document.value == {"a": {"b": [1, "no"]}, "l": [1, {"x": 3}], "new": {"deep": {"name": "x=y"}}}
    assert document.where(("a", "b", 1)) == "--set a.b=[1, no]"
    assert document.where(("a",)) == "r.yaml:1:1"
    assert document.where(("new", "deep", "other")) == "--set new.deep.name=x=y"
    for text in ("a", "=1", "a..b=1", "a.b.0.c=1", "l.7=1", "l.x=1", "a.b=[", "a.b=*x"):
        with pytest.raises(RecipeError, match=r"^--set "):
            document.assign(text)


def test_an_empty_or_marked_file() -> None:
    assert yaml.parse("").value is None
    assert yaml.parse("# nothing\n").value is None
    assert yaml.parse(b"\xef\xbb\xbfa: \xc3\xa9\r\n").value == {"a": "é"}


# Without NEL, LS and PS, which PyYAML's emitter and scanner do not agree on as line breaks.
TEXT = st.text(st.characters(exclude_characters="\x85\u2028\u2029", exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_what_pyyaml_writes_is_read_back(value: Any) -> None:
    text = pyyaml.safe_dump(value, allow_unicode=True, default_style='"') if isinstance(value, str) else None
    text = text or pyyaml.safe_dump(value, allow_unicode=True)
    if "!!" in text or "&id" in text:  # tags and shared values, which are refused
        return
    assert yaml.parse(text).value == value


@given(st.text(max_size=200))
def test_any_text_gives_a_value_or_one_line(text: str) -> None:
    try:
        yaml.parse(text)
    except RecipeError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_a_character_in_two_halves_is_one() -> None:
    """JSON writes what lies beyond 16 bits so, and JSON is YAML."""
    assert yaml.parse(json.dumps({"a \U0001f98a": "\U0001f98a"})).value == {"a \U0001f98a": "\U0001f98a"}
