"""Piano rolls: rules follow the metre, drums stand apart, a span stands out, and no piece is too long to draw."""

from __future__ import annotations

import time

import numpy as np
import pytest
import symusic

from genkit.errors import MediaError
from genkit.media import _roll
from genkit.media.midi import Midi


def score(quarters: int, *signatures: tuple[int, int, int], drums: bool = False, tpq: int = 480) -> symusic.Score:
    """A note a quarter; signatures: (quarter, numerator, denominator)."""
    made = symusic.Score(tpq)
    for drum in (False, True) if drums else (False,):
        track = symusic.Track(program=0, is_drum=drum, name="")
        for i in range(quarters):
            track.notes.append(symusic.Note(tpq * i, tpq // 2, 42 if drum else 60 + i % 12, 100))
        made.tracks.append(track)
    for at, numerator, denominator in signatures:
        made.time_signatures.append(symusic.TimeSignature(tpq * at, numerator, denominator))
    return made


def pixels(one: symusic.Score, **options) -> np.ndarray:
    return np.asarray(Midi(one).roll(**options).pil, int)


def rules(one: symusic.Score, width: int, colour: tuple[int, int, int]) -> list[float]:
    """The x of rules of a colour, in quarters."""
    end = 20 * one.ticks_per_quarter
    return [x / width * 20 for x, drawn in _roll._rules(one, end, width) if drawn == colour]


def test_bars_follow_every_change_of_the_metre() -> None:
    one = score(20, (0, 3, 4), (6, 4, 4), (14, 6, 8))
    assert rules(one, 800, _roll._BAR) == [3, 6, 10, 14, 17]
    assert rules(score(20), 800, _roll._BAR) == [4, 8, 12, 16], "4/4 where nothing is said"
    assert rules(score(20, (2, 3, 4)), 800, _roll._BAR) == [2, 5, 8, 11, 14, 17], "from where the first one stands"


def test_beats_are_ruled_where_there_is_room() -> None:
    one = score(20, (0, 4, 4), (8, 6, 8))
    beats = rules(one, 800, _roll._BEAT)
    assert [x for x in beats if x < 8] == list(range(8))
    assert [x for x in beats if x >= 8] == list(np.arange(8, 20, 0.5)), "of six eighths, each"
    assert rules(one, 120, _roll._BEAT) == []
    assert rules(one, 120, _roll._BAR) == [4, 8, 11, 14, 17]


def test_the_rules_are_drawn_and_the_picture_is_as_asked() -> None:
    picture = pixels(score(20, (0, 3, 4), (6, 4, 4)), width=800, height=100)
    assert picture.shape == (100, 800, 3)
    columns = [x for x in range(5, 800) if (picture[:, x] == _roll._BAR).all(1).mean() > 0.5]
    assert columns == [int(800 * quarter / 19.5) for quarter in (3, 6, 10, 14, 18)], "the last note ends at 19.5"


def test_drums_stand_below_a_line_of_their_own() -> None:
    grey = (pixels(score(8, drums=True), width=400, height=200).max(2) < 150).any(1)
    assert grey[150:].any()
    coloured = pixels(score(8, drums=True), width=400, height=200)
    coloured = (coloured.max(2) - coloured.min(2) > 60).any(1)
    assert coloured.any()
    assert np.flatnonzero(coloured).max() < np.flatnonzero(grey).min() <= 200
    alone = score(8, drums=True)
    alone.tracks.pop(0)
    assert (pixels(alone, width=400, height=200).max(2) < 150).any(), "a piece for drums alone is drawn too"


def test_a_highlighted_span_has_a_warmer_ground() -> None:
    picture = pixels(score(8), width=400, height=100, highlight=(0, 4))
    warmth = np.median(picture[..., 0] - picture[..., 2], axis=0)
    end = int(400 * 4 / 7.5)  # the last note ends at 7.5 quarters
    assert (warmth[:end] > 15).mean() > 0.9, "but for the rules"
    assert (warmth[end + 2 :] <= 0).all()
    plain = pixels(score(8), width=400, height=100)
    assert np.array_equal(pixels(score(8), width=400, height=100, highlight=(100, 200)), plain), "a span beyond the end"


@pytest.mark.parametrize("signature", [(4, 4), (1, 128), (255, 1), (1, 2**31 - 1), (0, 4), (4, 0)])
def test_a_billion_ticks_cost_no_more_than_a_few(signature: tuple[int, int]) -> None:
    one = symusic.Score(1)
    one.tracks.append(symusic.Track())
    one.tracks[0].notes.append(symusic.Note(0, 2_000_000_000, 60, 90))
    try:
        one.time_signatures.append(symusic.TimeSignature(0, *signature))
    except (TypeError, ValueError):
        pytest.skip("symusic holds no such signature")
    start = time.process_time()
    assert Midi(one).roll().size == (4096, 384)
    assert len(list(_roll._rules(one, 2_000_000_000, 4096))) < 4096 / _roll._BAR_ROOM + 2
    assert time.process_time() - start < 2


def test_a_hundred_thousand_signatures_are_no_wash() -> None:
    one = score(4)
    for i in range(100_000):
        one.time_signatures.append(symusic.TimeSignature(i, 1 + i % 7, 8))
    assert len(list(_roll._rules(one, 100_000, 1024))) <= 1024 / _roll._BAR_ROOM + 1


def test_the_width_is_the_pieces_own_within_bounds() -> None:
    assert [Midi(score(n)).roll().size[0] for n in (1, 200, 2000)] == [1024, 2394, 4096]
    for size in ({"width": 10**9}, {"width": 3}, {"height": 10**9}):
        with pytest.raises(MediaError, match=r"px is out of bounds"):
            Midi(score(4)).roll(**size)
