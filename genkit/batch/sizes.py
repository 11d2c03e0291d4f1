"""What jobs will probably take of the disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from genkit import registry
from genkit.batch.job import Job
from genkit.media import rendering

__all__ = ["Sizes", "in_words"]

TYPICAL = {"image": 2 << 20, "audio": 6 << 20, "midi": 16 << 10, "roll": 32 << 10}
TYPICAL |= {"notation": 256 << 10, "spectrogram": 512 << 10}
"""Bytes of a file of each kind, as long as none has been made."""


class Sizes:
    """The bytes that jobs need: by what jobs of their stage took, else by their kind."""

    def __init__(self) -> None:
        self._made: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()

    def learn(self, stage: str, size: int) -> None:
        """A job of a stage took so many bytes."""
        self._made[stage] += 1
        self._bytes[stage] += size

    def of(self, jobs: Iterable[Job]) -> int:
        return sum(map(self._of, jobs))

    def _of(self, job: Job) -> int:
        if self._made[job.stage]:
            return self._bytes[job.stage] // self._made[job.stage]
        produces = registry.get(job.pipeline).produces
        kinds = [produces, *(_rendered(name, produces) for name in job.renders)]
        return sum(TYPICAL.get(kind, 0) for kind in kinds)


def _rendered(name: str, of: str) -> str:
    kind = rendering.kind_of(name, of)
    return {"midi": "roll", "audio": "spectrogram"}[of] if kind == "image" else kind


def in_words(count: float) -> str:
    """ "3 MB"."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit != "GB" else f"{count:.1f} GB"
        count /= 1000
    return f"{count:.1f} TB"
