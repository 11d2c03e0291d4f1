"""Sounds as pictures: how loud each frequency is at each time, one sound above the other on the same axes.

    draw({"before": dull, "after": restored})        genkit.Image

Time runs right in seconds, frequency up in kHz, evenly; darker is louder, on a scale that is the same in every picture:
0 dB is a sine at full scale, and from FLOOR down everything is ground. What is above half the rate of a sound, which it
cannot hold, is shaded.

Choices made here:
- Each column of pixels is the mean power of SHOTS spectra spread evenly over its time, whatever the length: a two-hour
  recording is drawn in the memory of a minute's.
- Windows are about 46 ms (2048 samples at 44.1 kHz), so bands are some 40 Hz wide at any rate. Channels are averaged in
  power, so that what is out of phase does not vanish.

C: channels; K: windows; N: samples of a window; F: frequencies.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont
from torch import Tensor

from genkit.errors import MediaError

if TYPE_CHECKING:
    from genkit.media.audio import Audio
    from genkit.media.image import Image

__all__ = ["FLOOR", "draw"]

FLOOR = -120.0  # dB
SHOTS = 4  # spectra for each column of pixels
WINDOW = 0.046  # seconds
SIDES = (160, 16_384)  # px

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 76, 24, 30  # px round a panel; the bottom under the last alone
_SMALLEST = 40  # px of a panel's height
_AT_ONCE = 64  # windows whose spectra are held
_GROUND, _NOTHING, _RULE, _INK, _SOFT = (250, 250, 252), (233, 235, 241), (214, 217, 228), (60, 64, 80), (92, 96, 112)
_SCALE = ((250, 250, 252), (214, 224, 243), (140, 172, 224), (74, 104, 196), (104, 48, 150), (60, 10, 60))
_STEPS = (1, 2, 5)  # of marks on an axis, times a power of ten
_BAR = 12  # px, the width of the scale of colours


def draw(sounds: Mapping[str, Audio], *, width: int = 1024, height: int | None = None) -> Image:
    """One panel for each sound, under its title ("" for none), over the longest time and the highest rate of them all.

    width, height: px of the whole picture (height by default 300 for each panel). Raises MediaError: no sounds, or a
    size out of SIDES or too small for the panels.
    """
    from genkit.media.image import Image

    height = 300 * len(sounds) if height is None else height
    _check(len(sounds), width, height)
    picture = PILImage.new("RGB", (width, height), _GROUND)
    pen = ImageDraw.Draw(picture)
    seconds = max(sound.duration for sound in sounds.values())
    top = max(sound.sample_rate for sound in sounds.values()) / 2
    inner = (height - _BOTTOM) / len(sounds)
    for number, (title, sound) in enumerate(sounds.items()):
        box = (_LEFT, round(number * inner) + _TOP, width - _RIGHT, round((number + 1) * inner))
        _panel(picture, box, sound, seconds, top)
        pen.text((box[0] + 8, box[1] - 6), title, _INK, _font(), anchor="ls")
        _frequencies(pen, box, top)
        _times(pen, box, seconds, labelled=number == len(sounds) - 1)
        _colours(picture, pen, box)
    return Image(picture)


def _check(count: int, width: int, height: int) -> None:
    if not count:
        raise MediaError("there are no sounds to draw; give one or more")
    for name, side in (("width", width), ("height", height)):
        if not SIDES[0] <= side <= SIDES[1]:
            raise MediaError(f"a spectrogram's {name} of {side} px is out of bounds; give {SIDES[0]} to {SIDES[1]:,}")
    if (height - _BOTTOM) / count < _TOP + _SMALLEST:
        raise MediaError(f"{count} spectrograms do not fit in {height} px; give a greater height")


# ------------------------------------------------------------------------------------------------------------ measuring


def levels(sound: Audio, columns: int, rows: int) -> Tensor:
    """[rows, columns] of dB, the highest frequency first; rows from 0 Hz to half the rate."""
    size = 2 ** max(4, round(math.log2(WINDOW * sound.sample_rate)))
    window = torch.hann_window(size, dtype=torch.float64).float()
    found = []
    for windows in _windows(sound, size, SHOTS * columns):
        power = torch.fft.rfft(windows * window).abs().square().mean(0)  # [K, F]
        found.append(torch.nn.functional.adaptive_avg_pool1d(power[None], rows)[0])
    power = torch.cat(found).reshape(columns, SHOTS, rows).mean(1)
    full = (float(window.sum()) / 2) ** 2  # the power of a sine at full scale
    return (10 * (power / full).clamp(1e-20).log10()).T.flip(0)


def _windows(sound: Audio, size: int, count: int) -> Iterator[Tensor]:
    """`count` windows [C, K, N] spread evenly over a sound, a few at a time, silence beyond its ends."""
    starts = (((torch.arange(count, dtype=torch.float64) + 0.5) * sound.frames / count).long()) - size // 2
    silence = torch.zeros(sound.channels, size)
    held, place, done = silence[:, :0], -size, 0  # `held` begins at sample `place`
    for block in itertools.chain([silence], sound.blocks(), [silence]):
        held = torch.cat((held, block), 1)
        ready = int(torch.searchsorted(starts, place + held.shape[1] - size, right=True))
        for first in range(done, ready, _AT_ONCE):
            some = starts[first : min(first + _AT_ONCE, ready)] - place
            yield held[:, some[:, None] + torch.arange(size)]
        done = max(done, ready)
        passed = held.shape[1] if done == count else min(int(starts[done]) - place, held.shape[1])
        held, place = held[:, passed:], place + passed


# -------------------------------------------------------------------------------------------------------------- drawing


def _panel(picture: PILImage.Image, box: tuple[int, ...], sound: Audio, seconds: float, top: float) -> None:
    """The spectrogram of one sound, in the part of the box that its time and its frequencies take."""
    left, upper, right, lower = box
    ImageDraw.Draw(picture).rectangle((left, upper, right - 1, lower - 1), fill=_NOTHING)
    columns = max(1, round((right - left) * sound.duration / seconds))
    rows = max(1, round((lower - upper) * sound.sample_rate / 2 / top))
    share = (levels(sound, columns, rows) / -FLOOR + 1).clamp(0, 1)
    picture.paste(PILImage.fromarray(_palette()[(255 * share).round().to(torch.uint8).numpy()]), (left, lower - rows))


def _frequencies(pen: ImageDraw.ImageDraw, box: tuple[int, ...], top: float) -> None:
    left, upper, _, lower = box
    for mark in _marks(top / 1000, (lower - upper) / 28):
        y = lower - 1 - mark * 1000 / top * (lower - upper - 1)
        pen.line((left - 4, y, left - 1, y), fill=_SOFT)
        pen.text((left - 7, y), f"{mark:g}", _SOFT, _font(), anchor="rm")
    pen.text((left - 7, upper - 6), "kHz", _SOFT, _font(), anchor="rs")


def _times(pen: ImageDraw.ImageDraw, box: tuple[int, ...], seconds: float, *, labelled: bool) -> None:
    left, _, right, lower = box
    for mark in _marks(seconds, (right - left) / 80):
        x = left + mark / seconds * (right - left - 1)
        pen.line((x, lower, x, lower + 3), fill=_SOFT)
        if labelled:
            pen.text((x, lower + 6), f"{mark:g}" + (" s" if not mark else ""), _SOFT, _font(), anchor="ma")


def _colours(picture: PILImage.Image, pen: ImageDraw.ImageDraw, box: tuple[int, ...]) -> None:
    """The scale of colours, right of a panel."""
    _, upper, right, lower = box
    height, left = lower - upper, right + 12
    column = _palette()[np.linspace(255, 0, height).round().astype(np.uint8)]
    picture.paste(PILImage.fromarray(np.repeat(column[:, None], _BAR, 1)), (left, upper))
    pen.rectangle((left, upper, left + _BAR - 1, lower - 1), outline=_RULE)
    for mark in _marks(-FLOOR, height / 28):
        y = upper + mark / -FLOOR * (height - 1)
        pen.text((left + _BAR + 5, y), f"{0 - mark:g}", _SOFT, _font(), anchor="lm")
    pen.text((left, upper - 6), "dB", _SOFT, _font(), anchor="ls")


def _marks(end: float, most: float) -> list[float]:
    """0, step, 2 step ... up to `end`, about `most` of them at most, the step a round number."""
    rough = end / max(most, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((power * one for one in _STEPS if power * one >= rough), 10 * power)
    return [i * step for i in range(math.floor(end / step + 1e-9) + 1)]


@functools.cache
def _palette() -> np.ndarray:
    """uint8 [256, 3], from the ground to the loudest."""
    places = np.linspace(0, len(_SCALE) - 1, 256)
    mixed = [np.interp(places, range(len(_SCALE)), [colour[i] for colour in _SCALE]) for i in range(3)]
    return np.stack(mixed, 1).round().astype(np.uint8)


@functools.cache
def _font() -> Any:
    return ImageFont.load_default(size=12)
