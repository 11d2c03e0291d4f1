"""How far a restoration is, in milliseconds of sound over all recordings, and how long it will still take."""

from __future__ import annotations

import time

from genkit.pipeline import Progress
from pipelines.audio_super_resolution.chunks import clock

__all__ = ["Meter"]

LISTENING = 0.05  # what a second of listening counts, beside a second of restoring


class Meter:
    """restored, listened: seconds of sound that are to be, as far as their headers tell."""

    def __init__(self, progress: Progress, restored: float, listened: float) -> None:
        self._progress = progress
        self._total = max(1, round(1000 * (restored + LISTENING * listened)))
        self._listened, self._restored, self._all = 0.0, 0.0, restored
        self._begun: float | None = None

    def listened(self, seconds: float) -> None:
        """So much more was listened to. Raises what the progress raises."""
        self._listened += seconds
        self._tell("finding the cutoff")

    def restored(self, seconds: float) -> None:
        """So much more was restored. Raises what the progress raises."""
        now = time.monotonic()
        first, self._begun = self._begun is None, self._begun or now
        self._restored += seconds
        left = (now - self._begun) * max(0.0, self._all - self._restored) / self._restored
        self._tell("restoring" if first else f"restoring, {clock(left)} left")

    def _tell(self, note: str) -> None:
        done = round(1000 * (self._restored + LISTENING * self._listened))
        self._progress(min(self._total, max(1, done)), self._total, note=note)
