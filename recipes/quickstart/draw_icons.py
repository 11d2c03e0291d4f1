"""Draws the shaded icons that the shipped recipes translate into a flat look, so that none of them is anybody's.

    python recipes/quickstart/draw_icons.py [FOLDER]

face.png     a round smiling face, lit from above
apple.png    a red apple with a leaf
button.png   a blue key with a star

Each is 128 x 128 px on white. Needs NumPy and Pillow. The same numbers every time, so they can always be drawn again.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIDE = 128
FINE = 4  # drawn at four times the size and scaled down: smooth edges
WHITE = (255, 255, 255)


def canvas() -> Image.Image:
    return Image.new("RGB", (SIDE * FINE, SIDE * FINE), WHITE)


def shade(
    light: tuple[int, int, int], dark: tuple[int, int, int], centre: tuple[float, float], reach: float
) -> Image.Image:
    """A radial gradient over the whole canvas, light at `centre` (0..1), dark at `reach` of a side from it."""
    y, x = np.mgrid[0 : SIDE * FINE, 0 : SIDE * FINE] / (SIDE * FINE)
    t = np.clip(np.hypot(x - centre[0], y - centre[1]) / reach, 0, 1)[..., None] ** 1.5
    return Image.fromarray(np.rint((1 - t) * np.array(light) + t * np.array(dark)).astype(np.uint8))


def mask(*shapes: tuple[str, list[tuple[float, float]], float]) -> Image.Image:
    """Shapes in 0..128 px as a mask: ("ellipse" | "rounded" | "polygon", corners, radius)."""
    picture = Image.new("L", (SIDE * FINE, SIDE * FINE))
    draw = ImageDraw.Draw(picture)
    for kind, corners, radius in shapes:
        points = [(x * FINE, y * FINE) for x, y in corners]
        if kind == "ellipse":
            draw.ellipse([*points[0], *points[1]], fill=255)
        elif kind == "rounded":
            draw.rounded_rectangle([*points[0], *points[1]], radius * FINE, fill=255)
        else:
            draw.polygon(points, fill=255)
    return picture


def small(picture: Image.Image) -> Image.Image:
    return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def face() -> Image.Image:
    picture = canvas()
    picture.paste(
        shade((255, 241, 118), (244, 160, 20), (0.5, 0.32), 0.72), mask=mask(("ellipse", [(5, 5), (123, 123)], 0))
    )
    dark = shade((110, 66, 24), (70, 36, 12), (0.5, 0.3), 0.5)
    picture.paste(dark, mask=mask(("ellipse", [(36, 42), (50, 62)], 0), ("ellipse", [(78, 42), (92, 62)], 0)))
    mouth = mask(("ellipse", [(30, 52), (98, 106)], 0))
    ImageDraw.Draw(mouth).rectangle([0, 0, SIDE * FINE, 80 * FINE], fill=0)
    picture.paste(dark, mask=mouth)
    picture.paste(Image.new("RGB", picture.size, WHITE), mask=mask(("rounded", [(38, 80), (90, 87)], 3)))
    return small(picture)


def apple() -> Image.Image:
    picture = canvas()
    picture.paste(shade((150, 100, 60), (90, 50, 24), (0.5, 0.1), 0.3), mask=mask(("rounded", [(61, 8), (68, 42)], 3)))
    body = mask(("ellipse", [(12, 28), (76, 120)], 0), ("ellipse", [(52, 28), (116, 120)], 0))
    picture.paste(shade((255, 112, 92), (170, 10, 20), (0.36, 0.42), 0.62), mask=body)
    leaf = mask(("polygon", [(68, 30), (80, 12), (108, 8), (98, 26), (82, 33)], 0))
    picture.paste(shade((160, 214, 92), (56, 128, 40), (0.62, 0.1), 0.3), mask=leaf)
    picture.paste(Image.new("RGB", picture.size, (255, 190, 180)), mask=mask(("ellipse", [(26, 44), (42, 62)], 0)))
    return small(picture)


def button() -> Image.Image:
    picture = canvas()
    picture.paste(
        shade((70, 110, 170), (30, 60, 110), (0.4, 0.3), 0.9), mask=mask(("rounded", [(6, 6), (122, 122)], 14))
    )
    picture.paste(
        shade((140, 190, 240), (70, 130, 200), (0.35, 0.25), 0.9), mask=mask(("rounded", [(6, 6), (116, 114)], 14))
    )
    angles = np.arange(10) * np.pi / 5 - np.pi / 2
    radii = np.where(np.arange(10) % 2, 16, 40)
    star = [(61 + r * np.cos(a), 62 + r * np.sin(a)) for r, a in zip(radii, angles, strict=True)]
    picture.paste(shade(WHITE, (214, 226, 240), (0.4, 0.3), 0.7), mask=mask(("polygon", star, 0)))
    return small(picture)


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for draw in (face, apple, button):
        draw().save(folder / f"{draw.__name__}.png", optimize=True)


if __name__ == "__main__":
    main()
