"""The syntax of weights: what a prompt says, in fragments and how much each counts."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genkit.errors import InputError
from pipelines.stable_diffusion.weighting import LIMIT, parse, plain, remarks, weighted


def test_words_alone_count_once() -> None:
    assert parse("a red apple, noto style") == [[("a red apple, noto style", 1.0)]]
    assert parse("") == [[]]


@pytest.mark.parametrize(
    ("prompt", "fragments"),
    [
        ("a (red) apple", [("a ", 1), ("red", 1.1), (" apple", 1)]),
        ("a [red] apple", [("a ", 1), ("red", 1 / 1.1), (" apple", 1)]),
        ("a (red:1.3) apple", [("a ", 1), ("red", 1.3), (" apple", 1)]),
        ("(a (red:1.5):0.5)", [("a ", 0.5), ("red", 0.75)]),
        ("((red))", [("red", 1.1 * 1.1)]),
        ("([red])", [("red", 1.1 * (1 / 1.1))]),
        ("(red : .5 )", [("red ", 0.5)]),
        ("(red:-1)", [("red", -1)]),
        ("(red:0)", [("red", 0)]),
        ("(time 10:30:1.2)", [("time 10:30", 1.2)]),
        ("app(le:1.0)", [("apple", 1)]),
        ("(a:1.3)(b:1.3)", [("ab", 1.3)]),
        (r"a \(red\) \[apple\] \\ \x", [(r"a (red) [apple] \ \x", 1)]),
        (r"(red \(one\):1.3)", [("red (one)", 1.3)]),
        ("a) b( c] d[", [("a) b( c] d[", 1)]),
        ("(a:nan)", [("a:nan", 1.1)]),
        ("(a:inf) (b:)", [("a:inf", 1.1), (" ", 1), ("b:", 1.1)]),
        ("a:1.3) b", [("a:1.3) b", 1)]),
        ("[a:1.3)", [("[a:1.3)", 1)]),
        ("()", []),
    ],
)
def test_brackets_say_how_much_a_text_counts(prompt: str, fragments: list[tuple[str, float]]) -> None:
    (section,) = parse(prompt)
    assert [text for text, _ in section] == [text for text, _ in fragments]
    assert [weight for _, weight in section] == pytest.approx([weight for _, weight in fragments])


def test_after_the_brackets_everything_counts_exactly_once_again() -> None:
    assert parse("((((a:1.7):1.3) b)) [[c]] d")[0][-1] == (" d", 1.0)


def test_break_parts_a_prompt() -> None:
    assert parse("a BREAK b") == [[("a ", 1.0)], [(" b", 1.0)]]
    assert parse("(a BREAK b:1.3)") == [[("a ", 1.3)], [(" b", 1.3)]]
    assert parse("a BREAKFAST break") == [[("a BREAKFAST break", 1.0)]]


@pytest.mark.parametrize("weight", ["1e9", "11", "-10.5", "1e309", "9" * 400])
def test_a_weight_beyond_the_limit_is_one_line(weight: str) -> None:
    with pytest.raises(
        InputError, match=r"a weight of .* in the prompt is out of range: it must be -10 to 10"
    ) as caught:
        parse(f"a (red:{weight}) apple")
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize("prompt", ["(" * 10_000, ")" * 10_000, "(" * 5000 + ")" * 5000, "[(" * 2500 + ")]" * 2500])
def test_ten_thousand_brackets_are_read_at_once(prompt: str) -> None:
    start = time.perf_counter()
    sections = parse(prompt)
    assert time.perf_counter() - start < 5
    assert all(-LIMIT <= weight <= LIMIT for section in sections for _, weight in section)


def test_nested_brackets_come_to_the_limit_at_most() -> None:
    assert parse("(" * 1000 + "a" + ")" * 1000 + "b") == [[("a", LIMIT), ("b", 1.0)]]
    assert parse("(" * 1000 + "a" + ":10)" * 1000)[0] == [("a", LIMIT)]
    ((_, least),) = parse("[" * 10_000 + "a" + "]" * 10_000)[0]
    assert 0 <= least < 1e-9


@given(st.text(alphabet="ab ()[]:\\1.3-eBREAK\n", max_size=60))
def test_whatever_is_typed_is_read(prompt: str) -> None:
    try:
        sections = parse(prompt)
    except InputError:
        return
    for section in sections:
        assert all(text and -LIMIT <= weight <= LIMIT for text, weight in section)
        assert all(a[1] != b[1] for a, b in itertools.pairwise(section))


@given(st.text(max_size=60).filter(lambda text: "BREAK" not in text))
def test_escaped_text_is_itself(text: str) -> None:
    escaped = "".join("\\" + c if c in "()[]\\" else c for c in text)
    assert plain(escaped) == text
    assert not weighted(parse(escaped))


def test_plain_is_the_words() -> None:
    assert plain("a (red:1.3) [[apple]]") == "a red apple"
    assert plain("a fox BREAK (snow)") == "a fox snow"


def test_weights_on_blanks_are_none() -> None:
    assert not weighted(parse("a( :1.3)b"))
    assert weighted(parse("a (b)"))


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a fox <lora:detail:0.8>", "<lora:detail:0.8> in a prompt is read as words; LoRA files go into"),
        ("a [cat:dog:0.5]", "[cat:dog:0.5] in a prompt is read as words"),
        ("a [cat|dog]", "[cat|dog] in a prompt is read as words"),
    ],
)
def test_what_a1111_reads_and_we_do_not_is_told(prompt: str, said: str) -> None:
    (note,) = remarks(prompt)
    assert note.startswith(said)
    assert remarks("a [red] (fox:1.2), 10:30") == []
