"""The networks, one architecture a file.

`UNet` and `Spectral` give a recording at its new rate its missing treble, and are used the same way:

    restore(samples)    [B, T] float32, already at the new rate -> [B, T]; any length from one sample
    multiple            a chunk of a recording begins at a multiple of this many samples
    context             samples on each side of a chunk that its own depend on: a multiple of `multiple`

So a chunk computed with `context` samples more on each side (fewer only where the recording begins or ends), and these
thrown away, equals that stretch of the whole recording computed in one piece.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

__all__ = ["check_bounds"]


def check_bounds(config: Any) -> None:
    """Raises ValueError where a value of a Config is of the wrong type or not within its class's BOUNDS."""
    for field in fields(config):
        value, (least, most) = getattr(config, field.name), config.BOUNDS[field.name]
        kind = (int, float) if field.type == "float" else int
        if isinstance(value, bool) or not isinstance(value, kind):
            raise ValueError(f"{field.name} {value!r} is no {field.type}"[:120])
        if not least <= value <= most:
            raise ValueError(f"{field.name} {value!r} is not from {least} to {most}"[:120])
