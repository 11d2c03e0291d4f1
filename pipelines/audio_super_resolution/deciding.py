"""What is to be done with a recording: at which rate, by which model, from which frequency on. Plain rules, no samples.

    result at      restored at      by default with
    16000 Hz       16000 Hz         speech-16k
    44100 Hz       44100 Hz         piano-44k
    48000 Hz       44100 Hz         piano-44k

Without a rate given it is the lowest of these that is not below the recording's own and leaves room to restore: the
recording's cutoff lies below 0.98 of half the rate that it is restored at. Where none does there is nothing to restore,
and the recording is passed on at its own rate or the next one up. Nothing is ever lost unsaid: a rate that cannot hold
what is there is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from genkit.errors import InputError
from pipelines.audio_super_resolution.bandwidth import Bandwidth

__all__ = ["Decision", "Recorded", "decide", "rates_of"]

FULL = 0.98  # share of half the rate above which `bands.keep_band` adds nothing
LOST = 1.02  # how far above half the new rate a cutoff may be found without anything being lost

DEFAULT_RATES = {16000: 16000, 44100: 44100, 48000: 44100}
"""Rate of the result -> rate that it is restored at."""


@dataclass(frozen=True)
class Recorded:
    """What is known of a recording. name: for messages; rate: Hz; top: Hz up to which it has sound, 0 for silence;
    found: None where the cutoff was given."""

    name: str
    rate: int
    top: float
    found: Bandwidth | None

    def __str__(self) -> str:
        return "silent" if not self.top else str(self.found) if self.found else f"cutoff given: {self.top:,.0f} Hz"


@dataclass(frozen=True)
class Decision:
    """rate: Hz of the result; working: Hz that it is restored at; restores: False where the recording is passed on;
    notes: what the reader should know."""

    rate: int
    working: int
    restores: bool
    notes: list[str] = field(default_factory=list)


def rates_of(working: int) -> dict[int, int]:
    """The rates of results that a model for `working` Hz makes: its own, and of 44.1 and 48 kHz the other."""
    neighbour = {44100: 48000, 48000: 44100}.get(working)
    return {working: working, **({neighbour: working} if neighbour else {})}


def decide(recorded: Recorded, asked: int | None, rates: Mapping[int, int], model: str) -> Decision:
    """asked: Hz, if a rate was given; rates: of results -> restored at, that there are models for; model: as named.

    Raises InputError: no model for the rate, or a rate that cannot hold what is there.
    """
    if asked is not None and asked not in rates:
        made = " and ".join(str(rate) for rate in sorted(rates))
        raise InputError(f"model {model!r} makes sounds of {made} Hz, not of {asked}; leave out one of the two")
    rate = asked or _default(recorded, rates)
    if recorded.top > LOST * rate / 2:
        raise InputError(_lost(recorded, rate, rates))
    working = rates[rate]
    if recorded.top < FULL * working / 2 and recorded.top:
        return Decision(rate, working, True)
    if not recorded.top:
        return Decision(rate, working, False, [f"{recorded.name} is silent, and stays so"])
    room = sorted(r for r in rates if recorded.top < FULL * rates[r] / 2 and r > rate)
    other = f"--sample-rate {room[0]} has room for more; " if room else ""
    note = (
        f"{recorded.name} has sound up to {recorded.top:,.0f} Hz already ({recorded}): nothing to restore at {rate} "
        f"Hz, it is passed on as it is; {other}--cutoff HZ restores from there on"
    )
    return Decision(rate, working, False, [note])


def _default(recorded: Recorded, rates: Mapping[int, int]) -> int:
    """The lowest rate from the recording's own up with room to restore; else the lowest that loses nothing."""
    ascending = sorted(rates)
    enough = [rate for rate in ascending if rate >= recorded.rate]
    if recorded.top:
        for rate in enough or ascending[-1:]:
            if recorded.top < FULL * rates[rate] / 2:
                return rate
    return (enough or ascending[-1:])[0]


def _lost(recorded: Recorded, rate: int, rates: Mapping[int, int]) -> str:
    held = [r for r in sorted(rates) if recorded.top <= LOST * r / 2]
    remedy = f"--sample-rate {held[0]} holds it" if held else "no rate that can be made holds it"
    return (
        f"{recorded.name} has sound up to {recorded.top:,.0f} Hz, and {rate} Hz cannot hold what is above "
        f"{rate // 2:,} Hz; {remedy}, or --cutoff HZ has what is above it made anew"
    )
