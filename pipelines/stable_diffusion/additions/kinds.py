"""What every kind of addition needs: whom a file was made for, as a person would say it, and whether it has changed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.stable_diffusion.families import FAMILIES

if TYPE_CHECKING:
    from pipelines.stable_diffusion.loading import Model

__all__ = ["made_for", "own", "stamp"]

TEXT_WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
"""How wide the text is that the attention of a family's U-Net reads."""


def own(model: Model) -> str:
    """The family of a model in words."""
    return FAMILIES[model.family].words


def made_for(width: Any) -> str:
    """The family whose attention reads a text of this width, in words."""
    if width in TEXT_WIDTHS:
        return FAMILIES[TEXT_WIDTHS[width]].words
    return f"a model whose text is {width} wide" if isinstance(width, int) else "another model"


def stamp(path: Path) -> str:
    """Names a file as it is now: another one, or the same written again, has another stamp."""
    state = path.stat()
    return f"{path.resolve()} {state.st_size} {state.st_mtime_ns}"
