"""Whatever is chosen within the grammar is a line that the vocabulary itself would have written."""

from __future__ import annotations

import numpy as np
import pytest
from composing_kit import GRAMMAR, VOCABULARY, drive
from hypothesis import example, given, settings
from hypothesis import strategies as st
from midi_kit import scores

from pipelines.midi_generation.composing.grammar import BarWriter
from pipelines.midi_generation.composing.writing import carry_on
from pipelines.midi_generation.tokens.bars import Bar

V = VOCABULARY
SIGNATURES = ["4/4", "3/4", "6/8", "5/4", "2/2", "12/8", "9/16", "15/8"]
programs = st.lists(st.sampled_from([*range(0, 128, 9), -1]), min_size=1, max_size=5, unique=True)


def token(program: int) -> int:
    return V.ids[f"Program_{program}"]


def music(line: list[int]) -> np.ndarray:
    """From the first bar on, without empty bars at the end: MIDI cannot hold them."""
    tokens = np.array(line)
    bars = V.bars(tokens)
    while bars and not V.notes[bars[-1]].any() and not any(V.kinds[t] == "Tempo" for t in bars[-1]):
        bars.pop()
    return np.concatenate(bars) if bars else tokens[:0]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(SIGNATURES), programs, st.integers(1, 4))
def test_any_choice_is_a_line_that_encode_writes(seed: int, signature: str, wanted: list[int], bars: int) -> None:
    time = V.ids[f"TimeSig_{signature}"]
    line, written = drive(
        carry_on(
            GRAMMAR, [], first=1, bars=bars, programs=[token(p) for p in wanted], key=None, signature=time, tempo=None
        ),
        seed,
    )
    assert [bar.number for bar in written] == list(range(1, bars + 1))
    assert line.count(GRAMMAR.bar) == bars
    made = music(line)
    np.testing.assert_array_equal(V.encode(V.decode(made)), made)


@settings(max_examples=40, deadline=None)
@given(scores(), st.integers(0, 2**32), programs)
def test_what_carries_a_piece_on_is_too(given_score, seed: int, wanted: list[int]) -> None:
    before = [Bar.parse(V, bar) for bar in V.bars(V.encode(given_score))]
    signature = GRAMMAR.signature(before[-1].head)
    line, written = drive(
        carry_on(GRAMMAR, before, first=1, bars=2, programs=[token(p) for p in wanted], key=3, signature=signature),
        seed,
    )
    new = [bar for bar in written if bar.number > len(before)]
    assert [bar.number for bar in new] == [len(before) + 1, len(before) + 2]
    begun = sum(len(bar.tokens()) for bar in before)
    assert music(line)[:begun].tolist() == [t for bar in before for t in bar.tokens()][: len(music(line))]
    made = music(line)
    np.testing.assert_array_equal(V.encode(V.decode(made)), made)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(SIGNATURES), programs)
@example(0, "15/8", [0])
def test_a_bar_holds_to_its_length_its_programs_and_the_order_of_its_notes(seed, signature, wanted) -> None:
    random = np.random.default_rng(seed)
    tokens = [token(p) for p in wanted]
    writer = BarWriter(GRAMMAR, V.ids[f"TimeSig_{signature}"], tokens)
    for _ in range(200):
        allowed = writer.allowed()
        assert allowed.any()
        writer.add(int(random.choice(np.flatnonzero(allowed))))
        if writer.closed:
            break
    notes = writer.events if writer.note_done or writer.closed else writer.events[:-1]
    assert all(V.numbers[e.position] < int(signature.split("/")[0]) * V.settings.positions for e in notes)
    assert {e.program for e in notes} <= set(tokens)
    assert all((V.kinds[e.tokens[0]] == "PitchDrum") == (V.values[e.program] == "-1") for e in notes)
    order = [
        (V.numbers[e.position], GRAMMAR.order(e.program), GRAMMAR.lengths[e.tokens[-1]], V.numbers[e.tokens[0]])
        for e in notes
    ]
    assert order == sorted(set(order))


def test_a_bar_that_grows_beyond_all_bounds_is_closed() -> None:
    writer, count = BarWriter(GRAMMAR, V.ids["TimeSig_12/4"], [token(p) for p in range(0, 128, 32)]), 0
    while not writer.closed:
        allowed = writer.allowed().copy()
        count += 1
        if allowed.sum() > 1:
            allowed[GRAMMAR.bar] = False  # whoever writes never closes it unless there is nothing else
        writer.add(int(np.flatnonzero(allowed)[0]))
    assert 1000 <= count < 3000


@pytest.mark.parametrize("positions", [0, 47])
def test_a_begun_bar_goes_on_behind_what_it_has(positions: int) -> None:
    event = Bar.parse(V, [V.ids[n] for n in (f"Position_{positions}", "Program_0", "Pitch_60", "Duration_0.1.12")])
    writer = BarWriter(GRAMMAR, V.ids["TimeSig_4/4"], [token(0)]).begun(event.events)
    left = V.numbers[np.flatnonzero(writer.allowed())]
    assert sorted(left.tolist()) == [-1, *range(positions + 1, 48)]
    assert not writer.events
