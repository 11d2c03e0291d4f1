"""Bar lines that MidiTok would misplace, put where the file has them by time signatures that it knows.

MidiTok drops a signature it has no token for (28/4, 5/16), and moves a change that comes within a bar (a pickup of one
beat, a bar cut short) to the next bar line; either way all bars behind it are shifted against the music. Here such a
bar becomes one or more bars of known signatures that add up to it: 28/4 is seven bars of 4/4, 5/16 is 3/16 and 1/8, and
a 4/4 that ends after a beat is a 1/4. What remains MidiTok's: a piece of a bar shorter than an eighth, or not a whole
number of sixteenths, cannot be said, and the change behind it comes late.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

from genkit.errors import MediaError

__all__ = ["MAX_BARS", "Signature", "barred"]

MAX_BARS = 20_000  # eleven hours of 4/4 at 120; a line has at least two tokens for each


class Signature(NamedTuple):
    """A time signature from a time on, in ticks."""

    time: int
    numerator: int
    denominator: int

    @property
    def sixteenths(self) -> Fraction:
        """The length of its bar."""
        return Fraction(16 * self.numerator, self.denominator)


def barred(
    signatures: Iterable[Signature], end: int, quarter: int, known: Collection[tuple[int, int]]
) -> list[Signature]:
    """Signatures out of `known`, the first at 0, each change on a bar line of the one before where that can be.

    end: of the piece; quarter: ticks of a quarter. Before the first signature it is 4/4, as MIDI has it.

    Raises MediaError: more than MAX_BARS bars.
    """
    given = _in_order(signatures, end)
    bars = sum(
        (b.time - a.time) * 4 / (quarter * a.sixteenths) for a, b in zip(given, [*given[1:], _at(end)], strict=True)
    )
    if bars > MAX_BARS:
        raise MediaError(f"the piece has {int(bars):,} bars; at most {MAX_BARS:,} are read: cut it")
    made: list[Signature] = []
    for signature, following in zip(given, [*given[1:], None], strict=True):
        length = signature.sixteenths * quarter / 4
        stop = following.time if following else end
        whole, rest = divmod(stop - signature.time, length)
        bar = _parts(signature.sixteenths, signature.denominator, known)
        if bar is None:
            continue
        if following is None:
            whole, rest = whole + 1, Fraction(0)  # the last bar may be cut short
        time = signature.time
        for _ in range(int(whole) if len(bar) > 1 else min(int(whole), 1)):
            time = _append(made, bar, time, quarter)
        if rest:
            time = int(signature.time + whole * length)
            _append(made, _parts(rest * 4 / quarter, signature.denominator, known) or bar[:1], time, quarter)
    return made or [Signature(0, 4, 4)]


def _at(time: int) -> Signature:
    return Signature(time, 4, 4)


def _in_order(signatures: Iterable[Signature], end: int) -> list[Signature]:
    """Sorted, the last of each time, without what is none or comes after the end; the first at 0."""
    by_time = {s.time: s for s in sorted(signatures, key=lambda s: s.time) if s.numerator > 0 and s.denominator > 0}
    return list({0: _at(0), **{time: s for time, s in by_time.items() if 0 <= time < max(end, 1)}}.values())


def _append(made: list[Signature], parts: Sequence[tuple[int, int]], time: int, quarter: int) -> int:
    """Adds bars from a time on, naming a signature only where it changes. Returns where they end."""
    for numerator, denominator in parts:
        if not made or made[-1][1:] != (numerator, denominator):
            made.append(Signature(time, numerator, denominator))
        time += quarter * 4 * numerator // denominator
    return time


def _parts(sixteenths: Fraction, denominator: int, known: Collection[tuple[int, int]]) -> list[tuple[int, int]] | None:
    """Known signatures whose bars add up to a length: one, up to eight equal ones, or a long one and the rest."""
    if sixteenths.denominator != 1 or sixteenths < 1:
        return None
    length = int(sixteenths)
    single = _single(length, denominator, known)
    if single:
        return [single]
    sizes = [size for size in range(16, 1, -1) if _single(size, denominator, known)]
    for size in sizes:
        if length % size == 0 and length // size <= 8:
            return [_single(size, denominator, known)] * (length // size)  # type: ignore[list-item]
    for size in sizes:
        rest = _parts(Fraction(length - size), denominator, known) if size < length else None
        if rest:
            return [_single(size, denominator, known), *rest]  # type: ignore[list-item]
    return None


def _single(length: int, denominator: int, known: Collection[tuple[int, int]]) -> tuple[int, int] | None:
    """A known signature of so many sixteenths, best of the given denominator."""
    for d in (denominator, 4, 8, 16, 2):
        if length * d % 16 == 0 and (length * d // 16, d) in known:
            return length * d // 16, d
    return None
