"""Augmentation moves pieces and leaves them music; lanes give the same segments in any order, in any process."""

from __future__ import annotations

from itertools import islice

import midi_kit
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from midi_kit import DRUMS, QUARTER, score

from genkit.training.data import Draw, batches
from pipelines.midi_generation.tokens import keys
from pipelines.midi_generation.tokens.vocabulary import Settings, Vocabulary
from pipelines.midi_generation.train.data import Augment, Lanes, LaneSampler

REMI = Vocabulary.build()
LOUD = Vocabulary.build(Settings(velocities=8))
SHARES = {"infill": 0.2, "accompany": 0.2, "pitches": 0.2, "rhythms": 0.2}
LANES, SEGMENT = 4, 24


def tune(seed: int, bars: int = 8) -> np.ndarray:
    draw = np.random.default_rng(seed)
    melody = [(QUARTER * i, QUARTER, int(draw.integers(55, 80)), 0) for i in range(4 * bars)]
    return REMI.encode(score([*melody, *((t, d, p - 24, 32) for t, d, p, _ in melody[::2])]))


def lanes(seed: int = 3, vocabulary: Vocabulary = REMI) -> Lanes:
    augment = Augment(vocabulary, transpose=6, tempo=2, velocity=1, shares=SHARES)
    return Lanes([tune(i) for i in range(6)], augment, lanes=LANES, segment=SEGMENT, seed=seed)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# ------------------------------------------------------------------------------------------------- augmentation


@settings(max_examples=40, deadline=None)
@given(midi_kit.scores(), st.integers(-12, 12))
def test_transposing_tokens_is_transposing_the_score(made, semitones):
    moved = made.copy()
    for track in moved.tracks:
        if not track.is_drum:
            for note in track.notes:
                note.pitch = min(127, max(0, note.pitch + semitones))
    pitches = [note.pitch + semitones for track in made.tracks if not track.is_drum for note in track.notes]
    tokens = REMI.encode(made)
    if pitches and not 0 <= min(pitches) <= max(pitches) <= 127:
        with pytest.raises(ValueError, match="move a pitch out of"):
            REMI.transpose(tokens, semitones)
        return
    # Notes of one moment are in the order of pitches, which moves with them.
    np.testing.assert_array_equal(REMI.transpose(tokens, semitones), REMI.encode(moved))


def test_keys_move_along_and_drums_do_not():
    drums = REMI.encode(score([(0, QUARTER, 40, DRUMS)]))
    np.testing.assert_array_equal(REMI.transpose(drums, 5), drums)
    for key in range(24):
        for semitones in (-7, 1, 12):
            moved = REMI.transpose(np.array([REMI.key(key)]), semitones)
            assert moved.tolist() == [REMI.key(keys.transposed(key, semitones))]


def test_a_line_says_the_key_it_is_moved_to():
    scale = [(QUARTER * i, QUARTER, 60 + p, 0) for i, p in enumerate((0, 4, 7, 5, 9, 12, 7, 11, 14, 0, 4, 7))]
    piece = REMI.encode(score(scale))
    assert keys.KEYS[REMI.key_of(piece)] == "C:maj"
    augment = Augment(REMI, transpose=6, tempo=0, velocity=0, shares={})
    found = set()
    for i in range(200):
        tokens = augment(piece, torch.Generator().manual_seed(i))[0]
        assert REMI.kinds[tokens[1]] == "Key"
        moved = REMI.numbers[tokens[REMI.notes[tokens]]].tolist()
        assert keys.KEYS.index(REMI.values[tokens[1]]) == (moved[0] - 60) % 12
        found.add(moved[0] - 60)
    assert found == set(range(-6, 6))


def test_tempo_and_loudness_move_by_a_few_levels_and_stay_inside():
    piece = LOUD.encode(score([(0, QUARTER, 60, 0)], (), [(0, 239.0)]))
    augment = Augment(LOUD, transpose=0, tempo=2, velocity=1, shares={})
    made = [augment(piece, torch.Generator().manual_seed(i))[0][2:-1] for i in range(60)]
    for kind, reach in (("Tempo", 2), ("Velocity", 1)):
        at = int(np.flatnonzero(LOUD.where(kind)[piece])[0])
        moves = {int(line[at] - piece[at]) for line in made}
        assert moves <= set(range(-reach, reach + 1))
        assert len(moves) > 1
        assert all(LOUD.kinds[line[at]] == kind for line in made)
    others = ~LOUD.where("Tempo")[piece] & ~LOUD.where("Velocity")[piece]
    assert all((line[others] == piece[others]).all() for line in made)


def test_a_piece_over_all_pitches_is_left_where_it_is():
    piece = REMI.encode(score([(0, QUARTER, 0, 0), (0, QUARTER, 127, 0)]))
    augment = Augment(REMI, transpose=6, tempo=0, velocity=0, shares={})
    for i in range(10):
        np.testing.assert_array_equal(augment(piece, torch.Generator().manual_seed(i))[0][2:-1], piece)


# -------------------------------------------------------------------------------------------------------- lanes


def test_a_segment_is_the_same_in_any_order():
    one, two = lanes(), lanes()
    draws = [Draw(lane, number, 3) for number in range(7) for lane in range(LANES)]
    items = [one[draw] for draw in draws]
    for draw, item in zip(reversed(draws), reversed(items), strict=True):
        assert same(two[draw], item)
    assert same(lanes()[draws[-1]], items[-1])
    assert len({item["tokens"].numpy().tobytes() for item in items}) == len(items)


def test_segments_of_a_lane_join_into_whole_lines():
    data = lanes()
    for lane in range(LANES):
        items = [data[Draw(lane, number, 3)] for number in range(12)]
        joined = {key: torch.cat([item[key] for item in items]) for key in items[0]}
        lines = [data.line(n * LANES + lane) for n in range(4)]
        n = min(len(joined["tokens"]), sum(len(line[0]) for line in lines))
        for i, key in enumerate(("tokens", "place", "bar")):
            np.testing.assert_array_equal(joined[key][:n], np.concatenate([line[i] for line in lines])[:n])
        assert torch.equal(joined["target"][:-1], joined["tokens"][1:])


def test_no_target_across_pieces_counts_and_given_parts_do_not():
    data = lanes()
    for lane in range(LANES):
        items = [data[Draw(lane, number, 3)] for number in range(12)]
        tokens, target, weight = (torch.cat([item[key] for item in items]) for key in ("tokens", "target", "weight"))
        begins = target == REMI.special("BOS")
        assert begins.any()
        assert not weight[begins].any()
        ends = tokens == REMI.special("EOS")
        assert not weight[ends].any()
        wanted = np.concatenate([data.line(n * LANES + lane)[3] for n in range(8)])[1 : len(weight) + 1]
        np.testing.assert_array_equal(weight, wanted * ~begins.numpy())


def test_processes_share_one_batch_and_reading_processes_change_nothing():
    sampler = LaneSampler(LANES, 3)
    whole = list(islice(batches(lanes(), sampler), 5))
    shares = [list(islice(batches(lanes(), sampler, rank=rank, processes=2), 5)) for rank in range(2)]
    for batch, first, second in zip(whole, *shares, strict=True):
        assert same(batch, {key: torch.cat([first[key], second[key]]) for key in first})
    resumed = next(batches(lanes(), sampler, start=3))
    assert same(resumed, whole[3])


@pytest.mark.slow
def test_reading_processes_change_nothing():
    sampler, merged = LaneSampler(LANES, 3), REMI.with_merges([tune(i) for i in range(6)], 760)
    here = islice(batches(lanes(vocabulary=merged), sampler), 4)
    there = islice(batches(lanes(vocabulary=merged), sampler, workers=2), 4)
    for one, two in zip(here, there, strict=True):
        assert same(one, two)


def test_merges_change_the_tokens_not_the_music():
    data = lanes()
    merged = REMI.with_merges([tune(i) for i in range(6)], 760)
    shorter = lanes(vocabulary=merged)
    for number in range(12):
        base, short = data.line(number), shorter.line(number)
        assert len(short[0]) < len(base[0])
        np.testing.assert_array_equal(merged.expand(short[0]), base[0])
        lengths = merged.merges.lengths[short[0]]
        np.testing.assert_array_equal(np.repeat(short[2], lengths), base[2])
        np.testing.assert_array_equal(np.repeat(short[3], lengths), base[3])
        last = np.cumsum(lengths) - 1
        np.testing.assert_array_equal(short[1], base[1][last])
