"""Instruments by name, and which of them stand for which."""

from __future__ import annotations

import json

import numpy as np
import pytest
from composing_kit import HEARD, VOCABULARY
from hypothesis import given
from hypothesis import strategies as st
from midi_kit import score

from genkit.errors import ModelError
from pipelines.midi_generation.tokens.instruments import DRUMS, Instruments, name_of, program_of

programs = st.integers(-1, 127)


@pytest.mark.parametrize(
    ("name", "program"),
    [
        ("piano", 0),
        ("Violin", 40),
        (" flute ", 73),
        ("harp", 46),
        ("horn", 60),
        ("french horn", 60),
        ("drums", DRUMS),
        ("127", 127),
        (40, 40),
        ("Acoustic Grand Piano", 0),
        ("choir", 52),
    ],
)
def test_names(name: str | int, program: int) -> None:
    assert program_of(name) == program


@pytest.mark.parametrize("name", ["", "kazoo", "128", "-2", "a", "²", "pian", "violin;flute", "x" * 10_000])
def test_no_instrument(name: str) -> None:
    with pytest.raises(ValueError, match="no instrument is called") as caught:
        program_of(name)
    assert len(str(caught.value)) < 300


@given(programs)
def test_every_program_goes_by_its_name(program: int) -> None:
    assert program_of(name_of(program)) == program
    assert program_of(program) == program


@given(st.dictionaries(programs, st.none() | st.floats(0, 127), min_size=1, max_size=10), st.data())
def test_stand_ins(wanted: dict[int, float | None], data) -> None:
    apart = data.draw(st.sets(st.sampled_from(sorted(wanted))))
    known = set(HEARD.known)
    found = HEARD.stand_ins(wanted, apart)
    assert list(found) == list(wanted)
    assert all((program == DRUMS) == (stand_in == DRUMS) for program, stand_in in found.items())
    first = {found[p] for p in apart if p != DRUMS}
    rest = {found[p] for p in wanted if p not in apart and p != DRUMS}
    assert not first & rest if apart else True
    assert first <= known
    pitched = [p for p in wanted if p != DRUMS]
    if not apart:
        assert rest <= known
        assert all(found[p] == p for p in pitched if p in known)
        assert len(rest) == min(len(known), len(pitched))


def test_a_stand_in_lies_as_high() -> None:
    assert HEARD.stand_ins({40: 74.0, 42: 50.0}) == {40: 68, 42: 0}
    assert HEARD.stand_ins({42: 50.0, 40: 74.0}) == {42: 0, 40: 68}
    assert HEARD.stand_ins({73: None}) == {73: 68}  # by what flutes play, as it has no notes yet
    assert HEARD.stand_ins({32: None}) == {32: 0}


def test_parts_that_write_are_told_from_those_that_are_given() -> None:
    assert HEARD.stand_ins({40: 74.0, 41: 66.0, 42: 50.0}, {42}) == {40: 68, 41: 68, 42: 0}
    assert HEARD.stand_ins({0: 60.0, 73: None}, {73}) == {0: 0, 73: 68}
    alone = Instruments({0: (1.0, 60.0)}).stand_ins({40: 74.0, 42: 50.0}, {42})
    assert alone[42] == 0
    assert alone[40] != 0


def test_what_pieces_play_is_counted_and_recorded() -> None:
    pieces = [
        VOCABULARY.encode(score([(0, 48, 60, 0), (48, 48, 70, 0), (0, 48, 36, DRUMS)])),
        VOCABULARY.encode(score([(0, 48, 80, 0), (0, 48, 50, 42)])),
    ]
    found = Instruments.of(VOCABULARY, pieces)
    assert found.heard == {0: (1.0, 70.0), DRUMS: (0.5, 36.0), 42: (0.5, 50.0)}
    assert Instruments.from_record(found.record()) == found
    assert next(iter(found.known)) == 0
    assert Instruments({}).known == {0: 60.0}
    assert Instruments.of(VOCABULARY, [np.array([], np.int64)]).heard == {}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", '{"0": 1}', '{"x": [1, 2]}', '{"0": [1]}', '{"200": [0.5, 60]}', '{"0": [5, 60]}']
    + [json.dumps({"0": [0.5, value]}) for value in (float("nan"), -1, "high", None)],
)
def test_a_damaged_record(text: str) -> None:
    with pytest.raises(ModelError, match="the instruments in the model's header are damaged"):
        Instruments.from_record(text)
