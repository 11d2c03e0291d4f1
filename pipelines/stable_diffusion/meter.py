"""Progress over everything that a batch of requests takes, told in sampling steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from genkit.pipeline import Progress

__all__ = ["Meter"]


class Meter:
    """total: steps in all. Requests of one shape are a stretch of them, which their pictures go through in parts; where
    memory is too small for a part it begins again, and the count waits for it."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.total = progress, total
        self.start, self.steps, self.pictures, self.ready, self.last = 0, 0, 1, 0, 1

    def begin(self, steps: int, pictures: int) -> None:
        """The next stretch."""
        self.start, self.steps, self.pictures, self.ready = self.start + self.steps, steps, pictures, 0

    def tell(self, pictures: int, share: float, preview: Callable[[], Any] | None, note: str = "") -> None:
        """share: of their work that so many pictures have behind them. Raises what the callback raises."""
        done = self.start + self.steps * (self.ready + pictures * share) / self.pictures
        self.last = min(self.total, max(self.last, round(done)))
        self.progress(self.last, self.total, preview=preview, note=note)

    def finished(self, pictures: int) -> None:
        self.ready += pictures
