"""The recipes that come with genkit: in the wheel `genkit/_recipes`, in a checkout `recipes/` beside `genkit/`."""

from __future__ import annotations

from pathlib import Path

__all__ = ["folder", "recipes"]


def folder() -> Path | None:
    """Where they are, or None in an installation that lost them."""
    here = Path(__file__).parent
    places = (here / "_recipes", here.parent / "recipes")
    return next((place for place in places if place.is_dir()), None)


def recipes() -> dict[str, Path]:
    """Every shipped recipe, sorted: "quickstart", "style_transfer/styles", "train/style_transfer/fast"."""
    root = folder()
    if root is None:
        return {}
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob("*.yaml"))}
