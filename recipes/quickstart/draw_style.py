"""Draws the style pictures and masks of the shipped recipes, so that none of them is anybody's.

    python recipes/quickstart/draw_style.py [FOLDER]

swirls.jpg   brush strokes along a flow of eddies under a night sky
mosaic.jpg   small stones in warm colours, laid along arcs
etching.jpg  ink hatched over warm paper, denser where it is dark
figure.png, ground.png   masks of astronaut.jpg: the figure, and what is around her

Needs NumPy and Pillow. The same numbers every time, so the pictures can always be drawn again.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

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


def swirls() -> Image.Image:
    """Brush strokes, SIDE x SIDE: coarse strokes first, finer ones over them."""
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


def mosaic() -> Image.Image:
    """Stones on grey mortar: rings of quadrilaterals about a corner, sunrise colours by distance, each varied."""
    random = np.random.default_rng(11)
    size = SIDE * FINE
    warm = np.array([(250, 226, 150), (240, 168, 60), (214, 84, 44), (150, 36, 52), (60, 30, 84), (24, 70, 110)], float)
    picture = Image.new("RGB", (size, size), (96, 92, 86))
    pen = ImageDraw.Draw(picture)
    step = 34
    for ring, radius in enumerate(range(step, int(size * 1.5), step)):
        count = max(6, int(radius * np.pi / 2 / step))
        for stone in range(count + 1):
            ends = (np.array([stone + 0.08, stone + 0.92]) + 0.5 * (ring % 2)) / count * np.pi / 2
            radii = (radius + 3, radius + step - 3)
            corners = [
                (r * np.cos(a), size - r * np.sin(a))
                for r, a in zip((*radii, *radii[::-1]), ends.repeat(2), strict=True)
            ]
            wobble = random.normal(0, 2, (4, 2))
            place = np.clip(radius / size * 4 + random.normal(0, 0.5), 0, len(warm) - 1)
            hue = np.clip(warm[round(place)] + 22 * random.standard_normal(3), 0, 255)
            pen.polygon(
                [(x + dx, y + dy) for (x, y), (dx, dy) in zip(corners, wobble, strict=True)], fill=tuple(map(int, hue))
            )
    return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def etching() -> Image.Image:
    """Hatching: short strokes along two directions, as likely as the place is dark (hills under a clouded sky)."""
    random = np.random.default_rng(13)
    size = SIDE * FINE
    picture = Image.new("RGB", (size, size), (238, 226, 200))
    pen = ImageDraw.Draw(picture)
    for x, y in random.random((26000, 2)):
        hill = 0.62 + 0.10 * np.sin(6 * x) + 0.05 * np.sin(17 * x + 2)
        cloud = 0.5 + 0.5 * np.sin(9 * x + 4 * np.sin(5 * y)) * np.cos(8 * y)
        dark = 0.35 + 0.6 * (y - hill) / 0.4 if y > hill else 0.45 * cloud
        if random.random() > dark:
            continue
        angle = (
            (0.9 if random.random() < 0.6 else -0.7)
            + 0.15 * random.standard_normal()
            + (0.6 * np.cos(6 * x) if y > hill else 0)
        )
        reach = random.uniform(10, 34)
        dx, dy = reach * np.cos(angle), reach * np.sin(angle)
        ink = tuple(int(v) for v in np.clip(np.array((44, 34, 40)) + 12 * random.standard_normal(3), 0, 255))
        pen.line(
            [(x * size - dx, y * size - dy), (x * size + dx, y * size + dy)], fill=ink, width=int(random.integers(2, 5))
        )
    return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def figure() -> Image.Image:
    """White where the astronaut is, in a 512 x 512 photo; soft at the edge."""
    mask = Image.new("L", (512, 512))
    pen = ImageDraw.Draw(mask)
    pen.ellipse((150, 0, 300, 215), fill=255)
    pen.polygon([(170, 180), (285, 180), (420, 250), (470, 511), (0, 511), (20, 300), (90, 240)], fill=255)
    return mask.filter(ImageFilter.GaussianBlur(6))


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for draw in (swirls, mosaic, etching):
        draw().save(folder / f"{draw.__name__}.jpg", quality=85)
    figure().save(folder / "figure.png")
    ImageOps.invert(figure()).save(folder / "ground.png")
