"""Bars come apart and together again; lines of the tasks hold what is given and what is written, each once."""

from __future__ import annotations

import midi_kit
import numpy as np
import pytest
from hypothesis import given, settings
from midi_kit import QUARTER, score

from pipelines.midi_generation.tokens import keys, tasks
from pipelines.midi_generation.tokens.bars import Bar
from pipelines.midi_generation.tokens.vocabulary import Vocabulary
from pipelines.midi_generation.train.data import Augment

REMI = Vocabulary.build()
WRITE, MASK = REMI.special("Write"), REMI.special("Mask")


def piece(bars: int = 12) -> np.ndarray:
    draw = np.random.default_rng(bars)
    parts = [(QUARTER * i, QUARTER, int(draw.integers(60, 80)), p) for i in range(4 * bars) for p in (0, 40, 73)]
    return REMI.encode(score(parts, [(0, 4, 4)], [(0, 90.0), (8 * QUARTER, 120.0)]))


def line(task: str, seed: int = 0) -> tasks.Line:
    augment = Augment(REMI, transpose=0, tempo=0, velocity=0, shares={})
    return augment.line(piece(), task, np.random.default_rng(seed))


@settings(max_examples=40, deadline=None)
@given(midi_kit.scores())
def test_a_bar_taken_apart_is_put_together_again(made):
    for bar in REMI.bars(REMI.encode(made)):
        assert Bar.parse(REMI, bar).tokens() == bar.tolist()


def events(tokens: np.ndarray | list[int]) -> list[list[int]]:
    """Bar by bar the events, in order."""
    return [sorted(Bar.parse(REMI, bar).events) for bar in REMI.bars(np.asarray(tokens))]


def test_plain_music_is_all_written():
    made = line("continue")
    assert [REMI.kinds[t] for t in made.tokens[:3]] == ["BOS", "Key", "Bar"]
    assert made.tokens[2:-1] == piece().tolist()
    assert made.weight == [0] + [1] * (len(made.tokens) - 1)
    assert made.bar[-1] == 12


@pytest.mark.parametrize("seed", range(8))
def test_an_infill_has_every_bar_of_its_window_once(seed):
    made = line("infill", seed)
    at = made.tokens.index(WRITE)
    after, rest = made.tokens[3:at], made.tokens[at + 1 : -1]
    bars = [*REMI.bars(np.array(rest)), *REMI.bars(np.array(after))]
    whole = [bar.tolist() for bar in REMI.bars(piece())]
    assert [bar.tolist() for bar in bars] == whole[: len(bars)]
    numbers = dict(zip(made.bar[at + 1 :], made.weight[at + 1 :], strict=True))
    assert list(numbers) == list(range(1, max(numbers) + 1))
    assert not any(made.weight[3 : at + 1])
    assert all(made.weight[at + 1 :])


@pytest.mark.parametrize("seed", range(8))
def test_an_accompaniment_gives_some_parts_and_writes_the_others(seed):
    made = line("accompany", seed)
    tokens, weight = np.array(made.tokens), np.array(made.weight)
    assert events(tokens) == events(piece())
    given_parts, written_parts = set(), set()
    kinds = np.array(REMI.kinds)[tokens]
    for program, counted in zip(tokens[kinds == "Program"], weight[kinds == "Program"], strict=True):
        (written_parts if counted else given_parts).add(int(program))
    assert given_parts
    assert written_parts
    assert not given_parts & written_parts
    assert weight[kinds == "Bar"].all()
    assert not weight[kinds == "TimeSig"].any()


@pytest.mark.parametrize("task", ["pitches", "rhythms"])
@pytest.mark.parametrize("seed", range(4))
def test_a_variation_hides_one_side_and_writes_the_bar(task, seed):
    made = line(task, seed)
    tokens, weight = np.array(made.tokens), np.array(made.weight)
    whole = [Bar.parse(REMI, bar) for bar in REMI.bars(piece())]
    varied = 0
    for bar, full in zip(REMI.bars(tokens), whole, strict=True):
        places = np.flatnonzero(bar == WRITE)
        if not len(places):
            continue
        varied += 1
        given_side, written = bar[1 : places[0]], bar[places[0] + 1 :]
        written = written[written != REMI.special("EOS")]
        assert Bar.parse(REMI, [*full.head, *written]).events == full.events
        hidden = {"pitches": "Pitch", "rhythms": "Duration"}[task]
        assert hidden not in {REMI.kinds[token] for token in given_side}
        if task == "rhythms":
            assert not {"Position", "Tempo"} & {REMI.kinds[token] for token in given_side}
        else:
            assert (given_side == MASK).sum() == sum(event.program != -1 for event in full.events)
    assert varied
    assert not weight[tokens == WRITE].any()
    assert not weight[tokens == MASK].any()


def test_a_piece_of_one_part_or_of_three_bars_is_plain_music():
    augment = Augment(REMI, transpose=0, tempo=0, velocity=0, shares={})
    solo = REMI.encode(score([(QUARTER * i, QUARTER, 60, 0) for i in range(40)]))
    short = REMI.encode(score([(QUARTER * i, QUARTER, 60, i % 2) for i in range(12)]))
    for tokens, task in ((solo, "accompany"), (short, "infill"), (short, "pitches")):
        made = augment.line(tokens, task, np.random.default_rng(0))
        assert made.tokens[2:-1] == tokens.tolist() or made.tokens[1:-1] == tokens.tolist()


# --------------------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize("root", range(12))
def test_a_scale_is_in_its_key(root):
    major = [60 + root + step for step in (0, 4, 7, 0, 5, 9, 7, 11, 2, 0, 4, 7, 0)]
    minor = [60 + root + step for step in (0, 3, 7, 0, 5, 8, 7, 11, 2, 0, 3, 7, 0)]
    assert keys.estimate(major) == root
    assert keys.estimate(minor) == 12 + root
    assert {(p % 12) for p in major} <= {*keys.scale(root)}
    assert {(p % 12) for p in minor} <= {*keys.scale(12 + root)}
    assert keys.transposed(root, -root) == 0


def test_no_notes_no_key_and_longer_notes_weigh_more():
    assert keys.estimate([]) is None
    assert keys.estimate([60, 64, 67, 61, 65, 68], [4, 4, 4, 0.1, 0.1, 0.1]) == 0
    assert keys.estimate([60, 64, 67, 61, 65, 68], [0.1, 0.1, 0.1, 4, 4, 4]) == 1
