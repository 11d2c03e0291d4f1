"""Scores become tokens and come back: signatures, tempos, tracks, drums, rests, other tokenisations, merges."""

from __future__ import annotations

from collections import Counter

import midi_kit
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from midi_kit import DRUMS, QUARTER, bar_lines, notes, score, scores

from genkit.errors import InputError, MediaError, ModelError
from genkit.media.midi import Midi
from pipelines.midi_generation.tokens.vocabulary import Settings, Vocabulary

REMI = Vocabulary.build()
OTHERS = {
    (name, velocities): Vocabulary.build(Settings(tokenization=name, velocities=velocities))
    for name in ("TSD", "MIDILike", "Structured")
    for velocities in (0, 8)
}
Q = QUARTER


def names(tokens: np.ndarray, vocabulary: Vocabulary = REMI) -> list[str]:
    return [vocabulary.names[token] for token in tokens]


def lengths(tokens: np.ndarray) -> list[str]:
    """The signature of each bar."""
    return [REMI.values[bar[1]] for bar in REMI.bars(tokens)]


@settings(max_examples=80, deadline=None)
@given(scores())
def test_what_is_on_the_grid_comes_back(made):
    tokens = REMI.encode(made)
    back = REMI.decode(tokens)
    assert notes(back) == notes(made)
    assert bar_lines(back) == bar_lines(made)
    np.testing.assert_array_equal(REMI.encode(back), tokens)


@settings(max_examples=30, deadline=None)
@given(scores(), st.sampled_from([7, 44, 47, 96, 220, 480, 1001]))
def test_bars_stay_where_they_are_whatever_the_resolution(made, quarter):
    made = made.resample(quarter * 16)  # sixteen: so that every bar line is a whole tick
    assert bar_lines(REMI.decode(REMI.encode(made))) == pytest.approx(bar_lines(made))


def test_a_bar_reads_as_the_docstring_says():
    tokens = REMI.encode(score([(0, Q, 60, 0), (0, Q, 64, 0), (Q, Q, 67, 0), (Q, Q, 40, 32)], [(0, 3, 4)], [(0, 90)]))
    assert names(tokens) == [
        *("Bar_None", "TimeSig_3/4", "Position_0", "Tempo_87.75", "Program_0", "Pitch_60", "Duration_1.0.12"),
        *("Pitch_64", "Duration_1.0.12", "Position_12", "Pitch_67", "Duration_1.0.12"),
        *("Program_32", "Pitch_40", "Duration_1.0.12"),
    ]


@pytest.mark.parametrize("signature", midi_kit.SIGNATURES)
def test_every_signature(signature):
    numerator, denominator = signature
    bar = Q * 4 * numerator // denominator
    made = score([(bar * i, bar // 12, 60 + i, 0) for i in range(4)], [(0, *signature)])
    tokens = REMI.encode(made)
    assert lengths(tokens) == [f"{numerator}/{denominator}"] * 4
    assert names(tokens).count("Position_0") == 4
    assert notes(REMI.decode(tokens)) == notes(made)


@pytest.mark.parametrize(
    ("signatures", "bars"),
    [
        ([(0, 28, 4), (28 * Q, 4, 4)], ["4/4"] * 8),
        ([(0, 10, 8), (5 * Q, 4, 4)], ["5/4", "4/4"]),
        ([(0, 5, 16), (Q * 5 // 4, 2, 4)], ["3/16", "1/8", "2/4"]),
        ([(0, 11, 4), (11 * Q, 3, 4)], ["4/4", "7/4", "3/4"]),
        ([(0, 4, 1), (16 * Q, 3, 4)], ["4/4"] * 4 + ["3/4"]),
        ([(0, 12, 32), (Q * 3 // 2, 3, 4)], ["3/8", "3/4"]),
        ([(0, 4, 4), (Q, 3, 4)], ["1/4", "3/4"]),  # a pickup
        ([(2 * Q, 3, 4)], ["2/4", "3/4"]),  # nothing is said of its beginning
        ([(0, 4, 4), (6 * Q, 4, 4)], ["4/4", "2/4", "4/4"]),  # a bar cut short before a repeat
        ([(0, 6, 8), (Q * 19 // 4, 6, 8)], ["6/8", "2/8", "3/16", "6/8"]),
        ([], ["4/4"]),
    ],
)
def test_bars_add_up_where_miditok_would_shift_them(signatures, bars):
    last = signatures[-1][0] if signatures else 0
    made = score([(0, Q, 60, 0), (last, Q, 61, 0)], signatures)
    tokens = REMI.encode(made)
    assert lengths(tokens) == bars
    assert names(REMI.bars(tokens)[-1])[2] == "Position_0"
    assert notes(REMI.decode(tokens)) == notes(made)
    np.testing.assert_array_equal(REMI.encode(REMI.decode(tokens)), tokens)


@pytest.mark.parametrize("signatures", [[(0, 1, 16), (Q // 4, 4, 4)], [(0, 1, 64)], [(0, 4, 4), (Q // 12, 3, 4)]])
def test_what_no_bar_can_say_leaves_the_notes_where_they_are(signatures):
    made = score([(0, Q, 60, 0), (5 * Q, Q, 61, 0)], signatures)
    assert notes(REMI.decode(REMI.encode(made))) == notes(made)


def test_a_file_off_by_a_tick_has_its_bars():
    made = score([(0, 480, 60, 0), (1921, 480, 62, 0)], [(0, 4, 4), (1921, 3, 4)], quarter=480)
    assert lengths(REMI.encode(made)) == ["4/4", "3/4"]


def test_more_bars_than_a_piece_has_are_refused():
    with pytest.raises(MediaError, match=r"the piece has 25,000 bars; at most 20,000"):
        REMI.encode(score([(0, Q, 60, 0), (100_000 * Q, 4 * Q, 60, 0)]))


def test_a_bar_without_length_is_passed_over():
    assert lengths(REMI.encode(score([(0, Q, 60, 0)], [(0, 0, 4)]))) == ["4/4"]


def test_tempos_change_where_they_did_and_by_at_most_a_level():
    made = score([(0, 8 * Q, 60, 0)], [(0, 4, 4)], [(0, 60.0), (Q, 120.0), (4 * Q, 33.0), (6 * Q, 200.0)])
    back = REMI.decode(REMI.encode(made))
    assert [t.time for t in back.tempos] == [0, Q, 4 * Q, 6 * Q]
    for found, wanted in zip(back.tempos, made.tempos, strict=True):
        assert found.tempo == pytest.approx(wanted.tempo, rel=0.035)


def test_sixteen_tracks_and_drums():
    parts = [(12 * i, Q, 40 + i, 7 * i) for i in range(15)] + [(0, Q, 38, DRUMS)]
    back = REMI.decode(REMI.encode(score(parts)))
    assert notes(back) == Counter(parts)
    assert len(back.tracks) == 16
    assert [track.is_drum for track in back.tracks].count(True) == 1


def test_two_tracks_of_one_program_become_one():
    made = score([(0, Q, 60, 5)])
    made.tracks.append(score([(0, Q, 60, 5), (0, 2 * Q, 64, 5)]).tracks[0])
    back = REMI.decode(REMI.encode(made))
    assert len(back.tracks) == 1
    assert notes(back) == notes(made)


def test_programs_stand_where_they_change_and_each_bar_says_its_own():
    made = score([(i * Q, Q, 60, 3) for i in range(8)] + [(0, Q, 40, 9)], [(0, 4, 4)])
    assert [t for t in names(REMI.encode(made)) if t.startswith("Program")] == [
        *("Program_3", "Program_9", "Program_3"),
        "Program_3",
    ]


def test_a_long_note_ends_after_twelve_beats_and_the_rest_stays():
    back = REMI.decode(REMI.encode(score([(0, 40 * Q, 60, 0), (20 * Q, Q, 62, 0)])))
    assert notes(back) == Counter([(0, 12 * Q, 60, 0), (20 * Q, Q, 62, 0)])


def test_notes_of_one_pitch_may_overlap():
    made = score([(0, 4 * Q, 60, 0), (Q, Q, 60, 0), (Q, 4 * Q, 60, 0)])
    assert notes(REMI.decode(REMI.encode(made))) == notes(made)


def test_empty_bars_and_long_rests_are_bars():
    made = score([(0, Q, 60, 0), (9 * Q, Q, 62, 0), (4000 * Q, Q, 64, 0)])
    tokens = REMI.encode(made)
    bars = REMI.bars(tokens)
    assert len(bars) == 1001
    assert names(bars[1]) == ["Bar_None", "TimeSig_4/4"]
    assert notes(REMI.decode(tokens)) == notes(made)


def test_a_piece_without_notes_is_a_bar_at_most():
    assert not REMI.where("Pitch")[REMI.encode(score([]))].any()


def test_the_clock_tells_where_every_token_is():
    tokens = REMI.encode(score([(0, Q, 60, 0), (2 * Q, Q, 62, 0), (3 * Q, Q, 64, 0)], [(0, 3, 4)]))
    place, bar = REMI.clock(tokens)
    told = dict(zip(zip(names(tokens), bar.tolist(), strict=True), place.tolist(), strict=True))
    assert told[("Pitch_60", 1)] == 0
    assert told[("Pitch_62", 1)] == 24
    assert told[("Pitch_64", 2)] == 0
    first, second = np.split(tokens, [5])
    at = REMI.clock(first)
    np.testing.assert_array_equal(REMI.clock(second, bar=int(at[1][-1]), place=int(at[0][-1]))[0], place[5:])


@pytest.mark.parametrize("positions", [4, 8, 24])
def test_other_grids(positions):
    vocabulary = Vocabulary.build(Settings(positions=positions, velocities=4))
    made = score([(0, Q, 60, 0), (Q, Q // 2, 62, 0), (3 * Q, 3 * Q, 64, 0)], [(0, 2, 2), (4 * Q, 6, 8)])
    assert notes(vocabulary.decode(vocabulary.encode(made))) == notes(made)


def test_loudness_comes_back_to_a_level():
    vocabulary = Vocabulary.build(Settings(velocities=32))
    made = score([(i * Q, Q, 60, 0) for i in range(4)])
    for note, velocity in zip(made.tracks[0].notes, (10, 50, 90, 127), strict=True):
        note.velocity = velocity
    back = vocabulary.decode(vocabulary.encode(made)).tracks[0].notes
    assert [note.velocity for note in back] == pytest.approx([10, 50, 90, 127], abs=2)


# ------------------------------------------------------------------------------------------- other tokenisations


def ends(made: Counter[tuple[int, int, int, int]]) -> tuple[Counter, Counter]:
    """Where notes begin and where they end: all that MIDILike tells of overlapping notes of one pitch."""
    begun, done = Counter(), Counter()
    for (time, duration, pitch, program), count in made.items():
        begun[time, pitch, program] += count
        done[time + duration, pitch, program] += count
    return begun, done


# One denominator for MIDILike, whose notes end on the grid of where they end; no rest beyond a bar for Structured.
PLAYABLE = {"TSD": scores(), "MIDILike": scores([(4, 4), (3, 4), (7, 4)]), "Structured": scores([(4, 4)], length=1)}


@pytest.mark.parametrize("kind", OTHERS)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_other_tokenisations_come_back(kind, data):
    vocabulary, made = OTHERS[kind], data.draw(PLAYABLE[kind[0]])
    back = vocabulary.decode(vocabulary.encode(made))
    if kind[0] == "MIDILike":
        assert ends(notes(back)) == ends(notes(made))
    else:
        assert notes(back) == notes(made)


@pytest.mark.parametrize("kind", OTHERS)
def test_their_clock_agrees_with_the_bars(kind):
    vocabulary = OTHERS[kind]
    signatures = [(0, 4, 4)] if kind[0] == "Structured" else [(0, 4, 4), (8 * Q, 3, 4), (14 * Q, 6, 8)]
    made = score([(Q * i, Q // 2, 40 + i, 0) for i in range(20)], signatures)
    tokens = vocabulary.encode(made)
    place, bar = vocabulary.clock(tokens)
    reference = REMI.encode(made)
    wanted_place, wanted_bar = REMI.clock(reference)
    sounding, wanted = vocabulary.notes[tokens], REMI.notes[reference]
    np.testing.assert_array_equal(place[sounding], wanted_place[wanted])
    np.testing.assert_array_equal(bar[sounding], wanted_bar[wanted] - 1)
    assert place.max() < vocabulary.places


# ------------------------------------------------------------------------------------------------------- merges


def tune(seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    parts = [(Q // 2 * i, Q // 2, int(60 + draw.integers(0, 12)), 0) for i in range(64)]
    return REMI.encode(score(parts + [(4 * Q * i, 4 * Q, 36 + 7 * (i % 2), 32) for i in range(8)]))


def test_merges_make_lines_shorter_and_come_back():
    lines = [tune(seed) for seed in range(6)]
    merged = REMI.with_merges(lines, 900)
    assert len(REMI) < len(merged) <= 900
    assert merged.names[: len(REMI)] == REMI.names
    for line in [*lines, tune(99)]:
        short, last = merged.merge(line)
        assert len(short) < 0.7 * len(line)
        np.testing.assert_array_equal(merged.expand(short), line)
        assert notes(merged.decode(short)) == notes(REMI.decode(line))
        for told, wanted in zip(merged.clock(short), REMI.clock(line), strict=True):
            np.testing.assert_array_equal(told, wanted[last])
        assert len(merged.bars(short)) == len(REMI.bars(line))


def test_a_merge_lies_within_one_moment():
    merged = REMI.with_merges([tune(seed) for seed in range(6)], 900)
    for parts in merged.merges.expansions[len(REMI) :]:
        kinds = [REMI.kinds[part] for part in parts]
        assert not {"Bar", "TimeSig", "BOS", "EOS", "Key", "Write", "Mask"} & {*kinds}
        assert "Position" not in kinds[1:]


def test_merges_are_learned_the_same_again_and_kept_in_the_record():
    lines = [tune(seed) for seed in range(4)]
    one, two = (REMI.with_merges(lines, 800) for _ in range(2))
    again = Vocabulary.from_record(one.record())
    assert one.names == two.names == again.names
    np.testing.assert_array_equal(again.merge(tune(7))[0], one.merge(tune(7))[0])
    assert again.record() == one.record()


@pytest.mark.parametrize("kind", [("TSD", 0), ("MIDILike", 8), ("Structured", 0)])
def test_merges_of_other_tokenisations(kind):
    vocabulary = OTHERS[kind]
    line = vocabulary.encode(REMI.decode(tune()))
    merged = vocabulary.with_merges([line], len(vocabulary) + 40)
    short, last = merged.merge(line)
    assert len(short) < len(line)
    np.testing.assert_array_equal(merged.expand(short), line)
    np.testing.assert_array_equal(merged.clock(short)[0], vocabulary.clock(line)[0][last])


def test_learning_merges_prints_nothing(capfd):
    REMI.with_merges([tune()], 700)
    assert capfd.readouterr() == ("", "")


def test_merges_that_cannot_be_are_refused():
    with pytest.raises(InputError, match=r"bpe 659 leaves nothing to merge: 659 tokens"):
        REMI.with_merges([tune()], 659)
    with pytest.raises(InputError, match="nothing to merge; give more"):
        REMI.with_merges([np.array([REMI.ids["Bar_None"]])], 700)


# ------------------------------------------------------------------------------------------------------- records


@pytest.mark.parametrize("vocabulary", [REMI, *OTHERS.values()])
def test_a_record_makes_it_again(vocabulary):
    again = Vocabulary.from_record(vocabulary.record())
    assert again.names == vocabulary.names
    line = vocabulary.encode(REMI.decode(tune()))
    np.testing.assert_array_equal(again.encode(again.decode(line)), line)


def test_the_default_numbers_stay():
    """Those of models that are there: their embeddings go by them."""
    assert len(REMI) == 659
    assert [REMI.ids[name] for name in ("PAD_None", "BOS_None", "EOS_None", "Write_None")] == [0, 1, 2, 3]
    assert [REMI.ids[name] for name in ("Key_C:maj", "Bar_None", "Pitch_60", "Position_0")] == [9, 33, 94, 226]


@pytest.mark.parametrize("text", ["", "{}", '{"settings": {"tokenization": "CPWord"}}', '{"settings": {"what": 1}}'])
def test_a_damaged_record_is_one_line(text):
    with pytest.raises(ModelError, match="the vocabulary in the model's header is damaged"):
        Vocabulary.from_record(text)


@pytest.mark.slow
def test_most_notes_of_real_songs_come_back(shared):
    files = sorted((shared / "data/midi/lieder/valid").glob("*.mid"))
    if not files:
        pytest.skip("no songs there")
    given, kept, begun = 0, 0, 0
    for file in files:
        made = Midi.open(file).score
        tokens = REMI.encode(made)
        back = REMI.decode(tokens)
        np.testing.assert_array_equal(REMI.encode(back), tokens)
        wanted, found = notes(made, 10080), notes(back, 10080)
        given += wanted.total()
        kept += (wanted & found).total()
        begun += found.total()
    assert begun == given
    assert kept > 0.96 * given
