"""A prompt on the grid and back: what is given survives note for note, whatever is written and whatever the file."""

from __future__ import annotations

import io
from collections import Counter
from fractions import Fraction
from typing import Any

import composing_kit
import mido
import numpy as np
import pytest
import symusic
from composing_kit import GRAMMAR, HEARD, VOCABULARY, drive
from hypothesis import given, settings
from hypothesis import strategies as st
from midi_kit import DRUMS, scores

from genkit import shipped
from genkit.errors import InputError
from genkit.media.midi import Midi
from genkit.runtime import Runtime
from pipelines.midi_generation.composing.parts import Change, Parts
from pipelines.midi_generation.composing.sheet import Sheet
from pipelines.midi_generation.composing.studio import Order, Studio
from pipelines.midi_generation.pipeline import MidiGeneration
from pipelines.midi_generation.tokens.keys import KEYS

V = VOCABULARY
seeds = st.integers(0, 2**32)


@pytest.fixture(scope="module")
def studio(tmp_path_factory) -> Studio:
    return Studio.open(
        composing_kit.model_file(tmp_path_factory.mktemp("model") / "m.safetensors"), Runtime.pick("cpu")
    )


def order_of(studio: Studio, given_score: Any, **params: Any) -> Order:
    return studio.order(MidiGeneration.Params.parse({"prompt": Midi(given_score), "seed": 1} | params))


def written(studio: Studio, given_score: Any, seed: int, **params: Any) -> Any:
    """The score that comes out, by chance instead of by a network."""
    order = order_of(studio, given_score, **params)
    order.piece.written = drive(order.piece.writer, seed)[1]
    assert len(order.piece.written) == order.piece.total
    return studio.score(order)


def every_note(score: Any) -> Counter[tuple[Any, ...]]:
    """(track, program, time, duration, pitch, velocity), times in quarters, exactly."""
    quarter = score.ticks_per_quarter
    return Counter(
        (
            i,
            DRUMS if t.is_drum else t.program,
            Fraction(n.time, quarter),
            Fraction(n.duration, quarter),
            n.pitch,
            n.velocity,
        )
        for i, t in enumerate(score.tracks)
        for n in t.notes
    )


def bar_starts(sheet: Sheet) -> list[Fraction]:
    return [Fraction(start, 4) for start in sheet._starts]


@st.composite
def played(draw: Any) -> Any:
    """Notes as a hand plays them: off the grid, in any division, several tracks of one program, a pickup."""
    score = symusic.Score(draw(st.sampled_from([96, 480, 1000, 10080, 32767, 1])))
    quarter = score.ticks_per_quarter
    for _ in range(draw(st.integers(1, 4))):
        program = draw(st.sampled_from([0, 0, 40, 40, 68, DRUMS]))
        track = symusic.Track(program=max(program, 0), is_drum=program == DRUMS, name="")
        time = 0
        for _ in range(draw(st.integers(1, 10))):
            time += draw(st.integers(0, 3 * quarter))
            duration = draw(st.integers(1, 5 * quarter))
            track.notes.append(symusic.Note(time, duration, draw(st.integers(30, 88)), draw(st.integers(1, 127))))
        score.tracks.append(track)
    if draw(st.booleans()):
        score.time_signatures.append(symusic.TimeSignature(0, *draw(st.sampled_from([(3, 4), (6, 8), (1, 4), (2, 2)]))))
        score.time_signatures.append(symusic.TimeSignature(quarter, *draw(st.sampled_from([(3, 4), (5, 4), (12, 8)]))))
    if draw(st.booleans()):
        score.tempos.append(symusic.Tempo(draw(st.integers(0, 8 * quarter)), 77.0))
    return score


prompts = st.one_of(scores(), played())


def overlaps(score: Any) -> set[tuple[int, int, int]]:
    """(track, pitch, tick) of notes that begin while one of their pitch sounds on their track."""
    found = set()
    for i, track in enumerate(score.tracks):
        ends: dict[int, int] = {}
        for note in sorted(track.notes, key=lambda n: n.time):
            if ends.get(note.pitch, -1) > note.time:
                found.add((i, note.pitch, note.time))
            ends[note.pitch] = max(ends.get(note.pitch, 0), note.time + note.duration)
    return found


def read_by_mido(data: bytes) -> Counter[tuple[int, int, int, int, int]]:
    """(track with notes, tick, duration, pitch, velocity): first on, first off."""
    found: Counter[tuple[int, int, int, int, int]] = Counter()
    tracks = [t for t in mido.MidiFile(file=io.BytesIO(data)).tracks if any(m.type == "note_on" for m in t)]
    for i, track in enumerate(tracks):
        time, on = 0, {}
        for message in track:
            time += message.time
            if message.type == "note_on" and message.velocity:
                on.setdefault(message.note, []).append((time, message.velocity))
            elif message.type in ("note_on", "note_off") and on.get(message.note):
                begun, velocity = on[message.note].pop(0)
                found[i, begun, time - begun, message.note, velocity] += 1
    return found


def own_notes(score: Any) -> Counter[tuple[int, int, int, int, int]]:
    tracks = [track for track in score.tracks if len(track.notes)]
    return Counter((i, n.time, n.duration, n.pitch, n.velocity) for i, t in enumerate(tracks) for n in t.notes)


@settings(max_examples=50, deadline=None)
@given(prompts, seeds)
def test_continue_keeps_every_note_and_adds_behind_them(studio: Studio, prompt: Any, seed: int) -> None:
    made = written(studio, prompt, seed, bars=2)
    before, after = every_note(prompt), every_note(made)
    assert not before - after
    last = max(time for _, _, time, *_ in before)
    assert all(time > last - Fraction(1, 8) for _, _, time, *_ in after - before)
    assert {program for _, program, *_ in after} == {program for _, program, *_ in before}
    assert overlaps(made) == overlaps(prompt) or made.ticks_per_quarter != prompt.ticks_per_quarter


@settings(max_examples=30, deadline=None)
@given(prompts, seeds)
def test_what_is_written_reads_the_same_from_its_file(studio: Studio, prompt: Any, seed: int) -> None:
    prompt = symusic.Score.from_midi(prompt.dumps_midi())  # as a file can hold it
    made = written(studio, prompt, seed, bars=2)
    data = made.dumps_midi()
    assert own_notes(symusic.Score.from_midi(data)) == own_notes(made)
    if not overlaps(made):
        assert read_by_mido(data) == own_notes(made)


@settings(max_examples=40, deadline=None)
@given(prompts, seeds, st.data())
def test_infill_keeps_all_that_is_outside(studio: Studio, prompt: Any, seed: int, data: Any) -> None:
    sheet = Sheet(GRAMMAR, HEARD, prompt)
    first = data.draw(st.integers(1, len(sheet.bars)))
    last = data.draw(st.integers(first, len(sheet.bars)))
    made = written(studio, prompt, seed, task="infill", start_bar=first, end_bar=last)
    begin, end = bar_starts(sheet)[first - 1], bar_starts(sheet)[last]
    slack = Fraction(1, 2 * sheet.score.ticks_per_quarter)  # of a division in which a bar line is no tick

    def outside(score: Any) -> Counter[Any]:
        return Counter({n: c for n, c in every_note(score).items() if not begin - slack <= n[2] < end - slack})

    assert outside(made) == outside(prompt)


@settings(max_examples=40, deadline=None)
@given(prompts, seeds, st.sampled_from([["flute"], ["piano"], ["tuba", "drums"]]))
def test_accompany_keeps_what_is_given(studio: Studio, prompt: Any, seed: int, parts: list[str]) -> None:
    numbers = {"flute": 73, "piano": 0, "tuba": 58, "drums": DRUMS}
    programs = {numbers[part] for part in parts}
    params = {"task": "accompany", "instruments": parts}
    playing = {program for _, program, *_ in every_note(prompt)}
    if playing == {DRUMS} and DRUMS in programs:
        with pytest.raises(InputError, match="nothing but drums"):
            written(studio, prompt, seed, **params)
        return
    made = written(studio, prompt, seed, **params)
    if playing <= programs:  # they are written beside those that are there
        assert not Counter({n: c for n, c in every_note(prompt).items() if n[1] != DRUMS}) - every_note(made)
        return
    given_notes = {n: c for n, c in every_note(prompt).items() if n[1] not in programs}
    assert {n: c for n, c in every_note(made).items() if n[1] not in programs} == given_notes


@settings(max_examples=50, deadline=None)
@given(prompts, seeds, st.booleans(), st.data())
def test_vary_keeps_the_rhythm_or_the_pitches(studio: Studio, prompt: Any, seed: int, rhythm: bool, data: Any) -> None:
    sheet = Sheet(GRAMMAR, HEARD, prompt)
    names = {0: "piano", 40: "violin", 68: "oboe"}
    parts = data.draw(st.sampled_from([None, *(names[p] for p in sheet.playing if p in names)]))
    first = data.draw(st.integers(1, len(sheet.bars)))
    last = data.draw(st.integers(first, len(sheet.bars)))
    made = written(
        studio,
        prompt,
        seed,
        task="vary",
        vary="rhythms" if rhythm else "pitches",
        start_bar=first,
        end_bar=last,
        instruments=parts and [parts],
    )
    before, after = every_note(prompt), every_note(made)
    chosen = {p for p in sheet.playing if parts is None or names.get(p) == parts}
    assert {n: c for n, c in after.items() if n[1] not in chosen} == {
        n: c for n, c in before.items() if n[1] not in chosen
    }
    kept = slice(4, 6) if rhythm else slice(2, 4)  # pitch and velocity, or time and duration

    def of(notes: Counter[Any]) -> Counter[Any]:
        found: Counter[Any] = Counter()
        for note, count in notes.items():
            found[note[0], note[kept]] += count
        return found

    assert of(before) == of(after)
    margin = Fraction(1, 4)  # a note played just before a bar line belongs behind it
    begin, end = bar_starts(sheet)[first - 1] - margin, bar_starts(sheet)[last] + margin
    far = {n: c for n, c in before.items() if not begin <= n[2] < end}
    assert {n: after[n] for n in far} == far


def test_a_begun_bar_is_finished_and_a_full_one_left_alone(studio: Studio) -> None:
    def prompt(duration: int) -> Any:
        score = symusic.Score(480)
        score.tracks.append(symusic.Track(program=0))
        score.tracks[0].notes.append(symusic.Note(1920, duration, 60, 90))
        return score

    begun, full = order_of(studio, prompt(480), bars=3), order_of(studio, prompt(1920), bars=3)
    assert (begun.piece.total, full.piece.total) == (4, 3)
    for order, numbers in ((begun, [2, 3, 4, 5]), (full, [3, 4, 5])):
        order.piece.written = drive(order.piece.writer, 4, closing=0.02)[1]
        assert [bar.number for bar in order.piece.written] == numbers
    assert any(1920 < note.time < 3840 for note in studio.score(begun).tracks[0].notes)
    assert not any(1920 < note.time < 3840 for note in studio.score(full).tracks[0].notes)


def test_new_bars_carry_a_signature_where_the_file_would_say_another(studio: Studio) -> None:
    score = symusic.Score(480)
    score.tracks.append(symusic.Track(program=0))
    score.tracks[0].notes.append(symusic.Note(0, 1440, 60, 90))
    score.time_signatures.append(symusic.TimeSignature(0, 3, 4))
    score.time_signatures.append(symusic.TimeSignature(480, 7, 8))  # behind the last note: nothing was heard of it
    made = written(studio, score, 1, bars=2)
    assert [(s.time, s.numerator, s.denominator) for s in made.time_signatures] == [(0, 3, 4)]
    made = written(studio, score, 1, bars=2, time_signature="6/8")
    assert [(s.time, s.numerator, s.denominator) for s in made.time_signatures] == [(0, 3, 4), (1440, 6, 8)]
    long = symusic.Score(480)
    long.tracks.append(symusic.Track(program=0))
    long.tracks[0].notes.append(symusic.Note(0, 7 * 1920, 60, 90))
    long.time_signatures.append(symusic.TimeSignature(0, 28, 4))  # no vocabulary has it: it is read as bars of 4/4
    made = written(studio, long, 1, bars=2)
    assert next((s.numerator, s.denominator) for s in made.time_signatures) == (28, 4)
    assert (made.time_signatures[-1].numerator, made.time_signatures[-1].denominator) == (4, 4)


def test_sixteen_tracks_come_out_as_they_were(studio: Studio) -> None:
    score = symusic.Score(480)
    for program in range(16):
        track = symusic.Track(program=program * 5, is_drum=program == 9, name=f"part {program}")
        track.notes.append(symusic.Note(program * 10, 1000, 40 + program, 50 + program))
        score.tracks.append(track)
    made = written(studio, score, 3, bars=2)
    assert not every_note(score) - every_note(made)
    assert [(t.program, t.is_drum, t.name) for t in made.tracks] == [
        (t.program, t.is_drum, t.name) for t in score.tracks
    ]
    assert own_notes(symusic.Score.from_midi(made.dumps_midi())) == own_notes(made)


def test_a_note_joins_the_track_of_its_height_as_loud_as_that_is() -> None:
    score = symusic.Score(480)
    for pitch, velocity in ((80, 100), (40, 30)):
        track = symusic.Track(program=0)
        track.notes.append(symusic.Note(0, 1920, pitch, velocity))
        score.tracks.append(track)
    sheet = Sheet(GRAMMAR, HEARD, score)
    names = "Bar_None TimeSig_4/4 Position_0 Program_0 Pitch_75 Duration_1.0.12 Pitch_45 Duration_1.0.12"
    bar = sheet.bars[0].parse(V, [V.ids[name] for name in names.split()])
    made = sheet.write({2: (bar.head[1], bar.events)}, replaced=())
    assert [[(n.time, n.pitch, n.velocity) for n in t.notes] for t in made.tracks] == [
        [(0, 80, 100), (1920, 75, 100)],
        [(0, 40, 30), (1920, 45, 30)],
    ]
    assert len(sheet.score.tracks[0].notes) == 1  # the sheet is as it was


def test_who_shares_a_stand_in_shares_its_notes_by_height_and_who_does_not_write_gets_none(studio: Studio) -> None:
    order = order_of(studio, composing_kit.tune(1), bars=4, instruments=["flute", "violin", "contrabass"])
    order.piece.written = drive(order.piece.writer, 2, closing=0.02)[1]
    made = studio.score(order)
    assert [note.time for note in made.tracks[0].notes] == [0, 480, 960, 1440]  # the piano has done its part
    pitches = {track.program: [note.pitch for note in track.notes] for track in made.tracks[1:]}
    assert set(pitches) <= {73, 40, 43}
    assert len(pitches) > 1


def test_a_piano_is_accompanied_by_another(studio: Studio) -> None:
    order = order_of(studio, composing_kit.tune(2), task="accompany", instruments=["piano"])
    assert order.sheet.stand_in == {0: 68, 128: 0}  # the tune is heard as what sings above the piano
    order.piece.written = drive(order.piece.writer, 2, closing=0.02)[1]
    made = studio.score(order)
    assert [track.program for track in made.tracks] == [0, 0]
    assert every_note(composing_kit.tune(2)) == Counter({n: c for n, c in every_note(made).items() if n[0] == 0})
    assert len(made.tracks[1].notes) > 3


def test_only_so_many_bars_and_only_what_can_be_heard() -> None:
    long = symusic.Score(48)
    long.tracks.append(symusic.Track(program=0))
    long.tracks[0].notes.append(symusic.Note(48 * 4 * 5000, 48, 60, 90))
    with pytest.raises(InputError, match=r"5,001 bars; at most 5,000"):
        Sheet(GRAMMAR, HEARD, long)
    silent = symusic.Score(48)
    silent.tracks.append(symusic.Track(program=0, is_drum=True))
    silent.tracks[0].notes.append(symusic.Note(0, 48, 3, 90))  # no drum of General MIDI
    with pytest.raises(InputError, match="no notes that the model can read"):
        Sheet(GRAMMAR, HEARD, silent)


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12), st.integers(60, 62)), max_size=6),
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12), st.integers(60, 62)), min_size=1, max_size=8),
)
def test_written_notes_give_way_to_given_ones_and_to_each_other(given_notes, new) -> None:
    score = symusic.Score(4)
    score.tracks.append(symusic.Track(program=0))
    for time, duration, pitch in given_notes:
        score.tracks[0].notes.append(symusic.Note(time, duration, pitch, 64))
    parts, made = Parts(score), score.copy()
    parts.apply(made, {}, [Change(0, *note, velocity=1) for note in new])
    after = [(n.time, n.duration, n.pitch, n.velocity) for n in made.tracks[0].notes]
    assert Counter(n[:3] for n in after if n[3] == 64) == Counter(given_notes)
    added = [n for n in after if n[3] == 1]
    for time, duration, pitch, _ in added:
        assert any((t, p) == (time, pitch) and duration <= d for t, d, p in new)
        others = [(t, d) for t, d, p, v in after if p == pitch and (t, d, p, v) != (time, duration, pitch, 1)]
        assert not any(t < time + duration and time < t + d for t, d in others)
    assert len(set(added)) == len(added)
    for time, _, pitch in new:  # nothing is left out that had room
        at = [1 for t, d, p, _ in after if p == pitch and (t == time or t <= time < t + d)]
        assert at


def test_ticks_are_made_finer_only_where_the_grid_asks_for_it() -> None:
    for quarter, expected in ((480, 480), (96, 96), (1000, 6000), (10080, 10080), (32767, 32767), (1, 48)):
        score = symusic.Score(quarter)
        score.tracks.append(symusic.Track(program=0))
        score.tracks[0].notes.append(symusic.Note(7 * quarter, quarter, 60, 90))
        assert Sheet(GRAMMAR, HEARD, score).score.ticks_per_quarter == expected
    far = symusic.Score(1000)
    far.tracks.append(symusic.Track(program=0))
    far.tracks[0].notes.append(symusic.Note(12_000_000, 2**31 - 1 - 12_000_000, 60, 90))
    assert Sheet(GRAMMAR, HEARD, far).score.ticks_per_quarter == 1000
    np.testing.assert_equal(every_note(Sheet(GRAMMAR, HEARD, far).score), every_note(far))


@pytest.mark.parametrize(("sharps", "key"), [(2, "D:maj"), (None, "A:maj"), (0, "A:maj"), (-3, "C:min")])
def test_a_stated_signature_decides_between_keys_that_the_pitches_confuse(sharps, key):
    """Two phrases over a bass that dwells on the dominant: by the pitches alone they would be in A."""
    score = Midi.open(shipped.folder() / "quickstart" / "ode_to_joy.mid").score.copy()
    stated = [] if sharps is None else [symusic.KeySignature(0, sharps, 0)]
    score.key_signatures = type(score.key_signatures)(stated)
    assert KEYS[Sheet(GRAMMAR, HEARD, score).key()] == key
