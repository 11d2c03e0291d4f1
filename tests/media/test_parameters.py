"""The text of parameters: what genkit writes others read, what others write genkit reads."""

from __future__ import annotations

import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genkit.media import parameters


def test_it_is_of_the_form_that_others_read() -> None:
    params = {"prompt": "a fox", "negative_prompt": "dog", "guidance_scale": 7.5, "seed": 4, "num_inference_steps": 20}
    text = parameters.text(params, size=(512, 384), model="emoji", version="genkit 1")
    assert text == (
        "a fox\nNegative prompt: dog\n"
        "Steps: 20, CFG scale: 7.5, Seed: 4, Size: 512x384, Model: emoji, Version: genkit 1"
    )
    assert parameters.parse(text) == params | {"width": 512, "height": 384, "Model": "emoji", "Version": "genkit 1"}


plain = st.text(string.ascii_letters + string.digits + " ,:\"'()<>[]ü日", min_size=1, max_size=40).map(str.strip)
words = plain.filter(lambda text: text and "Negative prompt:" not in text)
scalars = (
    st.integers(-(10**6), 10**6)
    | st.booleans()
    | st.floats(-1e6, 1e6)
    | st.text("abc ,:", min_size=1).map(str.strip).filter(bool)
)


@given(
    prompt=words,
    negative=words,
    seed=st.integers(0, 2**53),
    steps=st.integers(1, 1000),
    more=st.dictionaries(
        st.text("abcdefgh", min_size=3, max_size=8), scalars | st.lists(st.integers(), max_size=3), max_size=4
    ),
)
def test_what_is_written_is_read_back(
    prompt: str, negative: str, seed: int, steps: int, more: dict[str, object]
) -> None:
    params = {"prompt": prompt, "negative_prompt": negative, "seed": seed, "num_inference_steps": steps} | more
    text = parameters.text(params, size=None, model="m", version="genkit 1")
    assert parameters.parse(text) == params | {"Model": "m", "Version": "genkit 1"}


@given(st.text(max_size=300))
def test_any_text_is_taken(text: str) -> None:
    assert isinstance(parameters.parse(text), dict)


def test_a_prompt_with_a_colon_is_a_prompt() -> None:
    assert parameters.parse("a fox\nin the style of: noto") == {"prompt": "a fox\nin the style of: noto"}


@pytest.mark.parametrize(
    "text", ["a " * 500_000, " " * 1_000_000 + "x", 'a: "\\' * 200_000, "a" * 1_000_000, '"' * 1_000_000]
)
def test_a_long_text_takes_seconds_at_most(text: str) -> None:
    start = time.monotonic()
    parameters.parse(f"Steps: 1, Seed: 2, Size: 3x4, {text}")
    assert time.monotonic() - start < 30  # two on a slow machine; hours where each sign is a new beginning
