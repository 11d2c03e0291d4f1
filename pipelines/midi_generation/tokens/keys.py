"""The key of a piece, by its pitch classes (Krumhansl & Kessler 1982: profiles; Temperley 1999 on their use)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["KEYS", "estimate", "of_signature", "scale", "transposed"]

NAMES = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
KEYS = (*(f"{name}:maj" for name in NAMES), *(f"{name}:min" for name in NAMES))
"""The 24 keys: majors from C up by semitones, then minors."""

_MAJOR = np.array([6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88])
_MINOR = np.array([6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17])
_PROFILES = np.stack([np.roll(profile, root) for profile in (_MAJOR, _MINOR) for root in range(12)])
_CENTRED = _PROFILES - _PROFILES.mean(1, keepdims=True)
_UNIT = _CENTRED / np.linalg.norm(_CENTRED, axis=1, keepdims=True)


def estimate(
    pitches: Sequence[int] | np.ndarray,
    weights: Sequence[float] | np.ndarray | None = None,
    among: Sequence[int] = range(24),
) -> int | None:
    """The key (index into KEYS) whose profile correlates best with the pitch classes; None without notes.

    pitches: MIDI numbers; weights: of each, usually its duration (default: all equal); among: the keys in question.
    """
    counts = np.bincount(np.asarray(pitches, np.int64) % 12, weights, 12) if len(pitches) else np.zeros(12)
    centred = counts - counts.mean()
    norm = np.linalg.norm(centred)
    return among[int((_UNIT[list(among)] @ centred).argmax())] if norm > 0 else None


def of_signature(sharps: int) -> tuple[int, int]:
    """The major key and the minor key with so many sharps (flats count as negative)."""
    major = 7 * sharps % 12
    return major, 12 + (major + 9) % 12


def transposed(key: int, semitones: int) -> int:
    """The key so many semitones higher."""
    return key // 12 * 12 + (key + semitones) % 12


def scale(key: int) -> tuple[int, ...]:
    """The pitch classes of a key: the major scale, or the natural minor with its raised sixth and seventh."""
    steps = (0, 2, 4, 5, 7, 9, 11) if key < 12 else (0, 2, 3, 5, 7, 8, 9, 10, 11)
    return tuple(sorted((key + step) % 12 for step in steps))
