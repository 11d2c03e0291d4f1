"""A piano roll as a picture: octaves ruled, black keys shaded, a colour per track, loud notes stronger than soft.

Choices made here:
- Bars are ruled as the time signatures go, each from where it stands; beats too, faintly, where there is room. Rules
  that would stand closer than a few pixels are thinned out, so that a piece of any length costs the same.
- Drums have no pitch: they stand below a line of their own, a row for each drum, a mark for each stroke.
- A highlighted span (a prompt, against what was written to it) has a warmer ground.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from PIL import Image as PILImage
from PIL import ImageChops, ImageDraw

from genkit.errors import MediaError

__all__ = ["draw", "width_of"]

SIDES = (16, 16_384)  # px
WIDTHS = (1024, 4096)  # px, where none is asked for
QUARTER = 12  # px of a quarter note in such a picture, until it is as wide as it gets

_GROUND, _BLACK_KEYS, _OCTAVE = (250, 250, 252), (240, 241, 245), (208, 211, 222)
_BAR, _BEAT, _EDGE = (214, 217, 228), (233, 235, 241), (150, 154, 170)
_WARM = (255, 243, 214)  # what the ground is multiplied by, of 255
_BLACK = {1, 3, 6, 8, 10}
_DRUMS = (92, 96, 112)
_GOLDEN = 0.61803398875  # the golden ratio's step round the colour wheel keeps any number of tracks apart
_BAR_ROOM, _BEAT_ROOM = 5, 9  # px between rules, at least
_STROKE = 5  # px of a drum's mark, at most
_DRUM_SHARE = 0.3  # of the height, at most, where there is anything but drums


class _Rows(NamedTuple):
    """Where pitches stand: the lowest's row begins above `bottom`, px; each is `row` px high."""

    low: int
    high: int
    bottom: float
    row: float

    def top(self, pitch: int) -> float:
        return self.bottom - (pitch - self.low + 1) * self.row


def width_of(score: Any) -> int:
    """The width in px that shows a quarter note in QUARTER px, within WIDTHS."""
    return min(max(math.ceil(QUARTER * score.end() / max(score.ticks_per_quarter, 1)), WIDTHS[0]), WIDTHS[1])


def draw(score: Any, width: int, height: int, highlight: tuple[float, float] | None = None) -> PILImage.Image:
    """score: a symusic Score in ticks; width, height: of the picture in px; highlight: a span in quarter notes.

    Raises MediaError for a side out of SIDES.
    """
    for name, side in (("width", width), ("height", height)):
        if not SIDES[0] <= side <= SIDES[1]:
            raise MediaError(f"a roll's {name} of {side} px is out of bounds; give {SIDES[0]} to {SIDES[1]:,}")
    pitched = [(note, i) for i, track in enumerate(score.tracks) if not track.is_drum for note in track.notes]
    strokes = [note for track in score.tracks if track.is_drum for note in track.notes]
    drums = {pitch: i for i, pitch in enumerate(sorted({note.pitch for note in strokes}))}
    end = max((note.time + note.duration for track in score.tracks for note in track.notes), default=1) or 1
    share = (1.0 if not pitched else min(_DRUM_SHARE, 0.03 * len(drums))) if drums else 0.0
    edge = height * (1 - share)
    picture = PILImage.new("RGB", (width, height), _GROUND)
    pen = ImageDraw.Draw(picture)
    rows = _keys(pen, [note.pitch for note, _ in pitched], width, edge) if edge else None
    if highlight is not None:
        _warm(picture, *(x * score.ticks_per_quarter / end * width for x in highlight))
    for x, colour in _rules(score, end, width):
        pen.line((x, 0, x, height), fill=colour)
    if rows:
        _notes(pen, pitched, rows, width / end, [_colour(i) for i in range(len(score.tracks))])
    _drums(pen, strokes, _Rows(0, len(drums) - 1, height, (height - edge) / max(len(drums), 1)), drums, width / end)
    if drums and rows:
        pen.line((0, edge, width, edge), fill=_EDGE)
    return picture


def _keys(pen: ImageDraw.ImageDraw, pitches: Sequence[int], width: int, bottom: float) -> _Rows:
    """The keyboard's rows over the range of the pitches, black keys shaded."""
    low, high = min(pitches, default=60) - 2, max(pitches, default=72) + 2
    rows = _Rows(low, high, bottom, bottom / (high - low + 1))
    for pitch in range(low, high + 1):
        top = rows.top(pitch)
        if pitch % 12 in _BLACK:
            pen.rectangle((0, top, width, top + rows.row), fill=_BLACK_KEYS)
        if pitch % 12 == 0:
            pen.line((0, top + rows.row, width, top + rows.row), fill=_OCTAVE)
    return rows


def _warm(picture: PILImage.Image, left: float, right: float) -> None:
    """Warms the ground from `left` to `right`, px, and rules its end."""
    left, right = (round(min(max(x, 0), picture.width)) for x in (left, right))
    if right <= left:
        return
    box = (left, 0, right, picture.height)
    warm = ImageChops.multiply(picture.crop(box), PILImage.new("RGB", (right - left, picture.height), _WARM))
    picture.paste(warm, box)
    ImageDraw.Draw(picture).line((right, 0, right, picture.height), fill=_EDGE)


def _rules(score: Any, end: int, width: int) -> Iterator[tuple[float, tuple[int, int, int]]]:
    """Beats, then bars over them: x in px and colour. Bars begin at each time signature (4/4 before the first)."""
    spans = list(_spans(score, end))
    for start, beyond, _, beat in spans:
        if beat * width / end >= _BEAT_ROOM:
            yield from ((x, _BEAT) for x in _every(start, beyond, beat, width / end, _BEAT_ROOM))
    last = -math.inf
    for start, beyond, bar, _ in spans:
        for x in _every(start, beyond, bar, width / end, _BAR_ROOM):
            if x > 0 and x - last >= _BAR_ROOM:
                yield x, _BAR
                last = x


def _spans(score: Any, end: int) -> Iterator[tuple[int, int, float, float]]:
    """Start, end, bar and beat of each stretch of one time signature, in ticks."""
    signatures = {one.time: (one.numerator, one.denominator) for one in score.time_signatures}
    starts = sorted({0: (4, 4)} | signatures)
    held = (4, 4)
    for start, beyond in zip(starts, [*starts[1:], end], strict=True):
        held = signatures.get(start, held)
        beat = 4 * score.ticks_per_quarter / max(held[1], 1)
        if start < min(beyond, end) and held[0] > 0:
            yield start, min(beyond, end), held[0] * beat, beat


def _every(start: int, beyond: int, step: float, scale: float, room: float) -> Iterator[float]:
    """x of start, start + step, ... in px; only every second, fourth, ... where they would stand closer than `room`."""
    step *= 2 ** max(0, math.ceil(math.log2(room / (step * scale))))
    for i in range(math.ceil((beyond - start) / step)):
        yield (start + i * step) * scale


def _notes(
    pen: ImageDraw.ImageDraw, notes: Sequence[tuple[Any, int]], rows: _Rows, scale: float, colours: Sequence[Any]
) -> None:
    for note, i in notes:
        left, right, top = note.time * scale, (note.time + note.duration) * scale, rows.top(note.pitch)
        # The last pixel is left free, so that repeated notes stay apart.
        box = (left, top, max(left, right - 1.5), top + max(rows.row - 1, 1))
        pen.rectangle(box, fill=_shade(colours[i], note.velocity))


def _drums(pen: ImageDraw.ImageDraw, strokes: Sequence[Any], rows: _Rows, places: dict[int, int], scale: float) -> None:
    for note in strokes:
        left, top = note.time * scale, rows.top(places[note.pitch])
        right = left + min(max(note.duration * scale - 1.5, 2), _STROKE)
        pen.rectangle((left, top + 1, right, top + max(rows.row - 1, 1)), fill=_shade(_DRUMS, note.velocity))


def _shade(colour: Sequence[int], velocity: int) -> tuple[int, ...]:
    strength = 0.45 + 0.55 * velocity / 127
    return tuple(round(g + (c - g) * strength) for g, c in zip(_GROUND, colour, strict=True))


def _colour(index: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hls_to_rgb((0.6 + index * _GOLDEN) % 1, 0.46, 0.62)
    return round(red * 255), round(green * 255), round(blue * 255)
