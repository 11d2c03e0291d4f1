"""A piano roll as a picture: octaves ruled, black keys shaded, a colour per track, loud notes stronger than soft."""

from __future__ import annotations

import colorsys
from typing import Any

from PIL import Image as PILImage
from PIL import ImageDraw

__all__ = ["draw"]

_GROUND, _BLACK_KEYS, _OCTAVE, _BAR = (250, 250, 252), (240, 241, 245), (208, 211, 222), (228, 230, 238)
_BLACK = {1, 3, 6, 8, 10}
_DRUMS = (110, 114, 128)
_GOLDEN = 0.61803398875  # the golden ratio's step round the colour wheel keeps any number of tracks apart
_MAX_BARS = 200  # rules closer than that would be a grey wash


def draw(score: Any, width: int, height: int) -> PILImage.Image:
    """score: a symusic Score in ticks; width, height: of the picture in px."""
    notes = [(note, i) for i, track in enumerate(score.tracks) for note in track.notes]
    low = min((note.pitch for note, _ in notes), default=60) - 2
    high = max((note.pitch for note, _ in notes), default=72) + 2
    end = max((note.time + note.duration for note, _ in notes), default=1) or 1
    picture = PILImage.new("RGB", (width, height), _GROUND)
    pen = ImageDraw.Draw(picture)
    row = height / (high - low + 1)

    def top(pitch: float) -> float:
        return height - (pitch - low + 1) * row

    for pitch in range(low, high + 1):
        if pitch % 12 in _BLACK:
            pen.rectangle((0, top(pitch), width, top(pitch) + row), fill=_BLACK_KEYS)
        if pitch % 12 == 0:
            pen.line((0, top(pitch) + row, width, top(pitch) + row), fill=_OCTAVE)
    _bars(pen, score, end, width, height)
    colours = [_colour(i, track.is_drum) for i, track in enumerate(score.tracks)]
    for note, i in notes:
        left, right = note.time / end * width, (note.time + note.duration) / end * width
        strength = 0.45 + 0.55 * note.velocity / 127
        fill = tuple(round(g + (c - g) * strength) for g, c in zip(_GROUND, colours[i], strict=True))
        # The last pixel is left free, so that repeated notes stay apart.
        pen.rectangle((left, top(note.pitch), max(left, right - 1.5), top(note.pitch) + max(row - 1, 1)), fill=fill)
    return picture


def _bars(pen: ImageDraw.ImageDraw, score: Any, end: int, width: int, height: int) -> None:
    """A rule at each bar of the first time signature (4/4 where there is none)."""
    signature = score.time_signatures[0] if len(score.time_signatures) else None
    beats = 4 * signature.numerator / signature.denominator if signature else 4.0
    bar = beats * score.ticks_per_quarter
    if bar <= 0 or end / bar > _MAX_BARS:
        return
    for i in range(1, int(end / bar) + 1):
        x = i * bar / end * width
        pen.line((x, 0, x, height), fill=_BAR)


def _colour(index: int, drums: bool) -> tuple[int, int, int]:
    if drums:
        return _DRUMS
    red, green, blue = colorsys.hls_to_rgb((0.6 + index * _GOLDEN) % 1, 0.46, 0.62)
    return round(red * 255), round(green * 255), round(blue * 255)
