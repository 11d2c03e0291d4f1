"""Draws swirls.jpg, the style picture of the quickstart: brush strokes along a flow of eddies under a night sky.

    python recipes/quickstart/draw_style.py [FILE]

Needs NumPy and Pillow. The same numbers every time, so the picture can always be drawn again.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIDE = 640
FINE = 2  # drawn at twice the size and scaled down: smooth edges
NIGHT = np.array([(18, 32, 84), (26, 60, 140), (44, 98, 176), (92, 148, 204), (150, 190, 214)], float)
LIGHT = np.array([(250, 214, 96), (244, 176, 60), (255, 238, 170), (226, 140, 60)], float)
EARTH = np.array([(20, 40, 38), (34, 66, 52), (16, 22, 40), (60, 84, 58)], float)
EDDIES = np.array([(0.28, 0.30, 0.16), (0.62, 0.42, 0.20), (0.85, 0.16, 0.10), (0.12, 0.62, 0.10)])  # x, y, radius
LAMPS = np.array([(0.85, 0.16, 0.085), (0.28, 0.30, 0.05), (0.55, 0.12, 0.04), (0.08, 0.12, 0.04), (0.62, 0.42, 0.06)])


def flow(x: float, y: float) -> tuple[float, float]:
    """Direction of the strokes at a place, both in 0..1: a drift to the right, turned round by the eddies."""
    dx, dy = 1.0, 0.25 * np.sin(5 * x + 2 * y)
    for ex, ey, radius in EDDIES:
        rx, ry = x - ex, y - ey
        pull = 4 * np.exp(-(rx * rx + ry * ry) / (2 * radius * radius))
        dx, dy = dx - pull * ry / radius, dy + pull * rx / radius
    length = np.hypot(dx, dy) + 1e-9
    return dx / length, dy / length


def colour(x: float, y: float, random: np.random.Generator) -> tuple[int, ...]:
    """Light by the lamps, earth below the hills, night elsewhere, each varied a little."""
    glow = max(float(np.exp(-(((x - lx) ** 2 + (y - ly) ** 2) / (2 * r * r)))) for lx, ly, r in LAMPS)
    if y > 0.80 + 0.05 * np.sin(7 * x + 1):
        base = EARTH[random.integers(len(EARTH))]
    elif random.random() < 1.3 * glow:
        base = LIGHT[random.integers(len(LIGHT))]
    else:
        height = np.clip(1 - y + 0.25 * random.standard_normal(), 0.001, 1)
        base = NIGHT[int((1 - height) * len(NIGHT))]
    return tuple(int(v) for v in np.clip(base + 14 * random.standard_normal(3), 0, 255))


def draw() -> Image.Image:
    """The picture, SIDE x SIDE: coarse strokes first, finer ones over them."""
    random = np.random.default_rng(7)
    size = SIDE * FINE
    picture = Image.new("RGB", (size, size), (26, 60, 140))
    pen = ImageDraw.Draw(picture)
    for count, length, width in ((1500, 40, 18), (5000, 30, 10), (9000, 22, 6)):
        for x, y in random.random((count, 2)):
            hue = colour(x, y, random)
            path = [(x * size, y * size)]
            for _ in range(length // 4):
                dx, dy = flow(x, y)
                x, y = x + 3.2 * dx / SIDE, y + 3.2 * dy / SIDE
                path.append((x * size, y * size))
            pen.line(path, fill=hue, width=width, joint="curve")
    return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("swirls.jpg")
    draw().save(target, quality=90)
