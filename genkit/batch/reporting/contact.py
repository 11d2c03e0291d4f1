"""The contact sheet: every labelled grid of a batch in one PNG, to be looked at or sent without a browser.

Sheets stand one below the other, each with its columns named above it and its rows beside it. Pictures keep their own
size up to a bound that shrinks with their number, so that the whole stays within MAX_PIXELS; more than MAX_PICTURES
are left to the report. The labels are in Pillow's own face, so the picture is the same on every machine (its Latin
letters are all it has: other scripts are for the report). A PNG that was not drawn here is never written over.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from genkit.batch.reporting.grid import Grid, Sheet
from genkit.media.files import atomic_write

__all__ = ["NAME", "write"]

NAME = "grid.png"
MARK = "genkit contact sheet"
MAX_PICTURES = 500
MAX_PIXELS = 25_000_000
MAX_SIDE = 512
"""Longer side of a picture on the sheet, px."""
HOLE = (112, 72)
"""Size of the place of what was not made, px."""
GAP = 8
BESIDE = 200
"""The widest label of a row, px."""
INK, SOFT, PAPER, EMPTY = "#1d1d1f", "#6b6a66", "#ffffff", "#efede7"

Pictures = Callable[[int], "list[Image.Image] | str"]
"""The pictures of the job at a place in the plan, or the word that stands for them: "failed"."""


def write(folder: Path, title: str, grids: Mapping[str, Grid], pictures: Pictures) -> Path | None:
    """Draws the grids, by the names of their stages, into the folder's grid.png and returns its path; None if there is
    nothing to draw, or too much, or somebody else's file in its place. A sheet of an earlier recipe is taken away."""
    path = folder / NAME
    sheets = [sheet for grid in grids.values() for sheet in grid.sheets]
    jobs = sum(len(cell) for sheet in sheets for cell in sheet.cells.values())
    slots = sum(len(sheet.rows) * len(sheet.columns) for sheet in sheets)
    if path.exists() and not _ours(path):
        return None
    if not jobs or max(jobs, slots // 2) > MAX_PICTURES:
        path.unlink(missing_ok=True)
        return None
    side = min(MAX_SIDE, math.isqrt(MAX_PIXELS // (2 * max(jobs, slots))))
    blocks = [_text(title, 24, 4000)]
    for name, grid in grids.items():
        blocks += [_text(name, 20, 4000)] if len(grids) > 1 else []
        fixed = ", ".join(f"{key} {label}".strip() for key, label in grid.fixed)
        blocks += [_text(fixed, 16, 4000, SOFT)] if fixed else []
        blocks += [_table(grid, sheet, pictures, side) for sheet in grid.sheets]
    return atomic_write(path, _encoded(_stacked(blocks)))


def _ours(path: Path) -> bool:
    try:
        with Image.open(path) as picture:
            return picture.info.get("Software") == MARK
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def _encoded(picture: Image.Image) -> bytes:
    note = PngImagePlugin.PngInfo()
    note.add_text("Software", MARK)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=note)
    return buffer.getvalue()


def _table(grid: Grid, sheet: Sheet, pictures: Pictures, side: int) -> Image.Image:
    """One sheet: its title, a line of column labels, and a line for each row."""
    size = max(13, min(20, side // 14))
    cells = {spot: _cell([pictures(job) for job in jobs], side, size) for spot, jobs in sheet.cells.items()}
    widths = [max((c.width for (_, x), c in cells.items() if x == column), default=side) for column in sheet.columns]
    size = max(13, min(size, max(widths) // 9))  # a column's name is to fit over small pictures, too
    heads = [
        _text(_named(grid.x.name, grid.x.labels[key]), size, width)
        for key, width in zip(sheet.columns, widths, strict=True)
    ]
    sides = {key: _text(_named(grid.y.name, grid.y.labels[key]), size, BESIDE) for key in sheet.rows if grid.y}
    left = max((label.width for label in sides.values()), default=0)
    rows = ([sides.get(row), *(cells.get((row, key)) for key in sheet.columns)] for row in sheet.rows)
    lines = [_line(parts, [left, *widths]) for parts in ([None, *heads], *rows)]
    title = ", ".join(_named(name, label) for name, label in sheet.title)
    return _stacked([*([_text(title, size + 3, sum(widths) + left)] if title else []), *lines], border=0)


def _named(name: str, label: str) -> str:
    return f"{name}: {label}" if name else label


def _cell(found: Sequence[list[Image.Image] | str], side: int, size: int) -> Image.Image:
    """What the jobs of one place made, side by side and below each other; the word for it if that is nothing."""
    pictures = [picture for one in found if not isinstance(one, str) for picture in one]
    if not pictures:
        word = next((one for one in found if isinstance(one, str)), "")
        empty = Image.new("RGB", HOLE, EMPTY)
        label = _text(word, size, empty.width - 12, SOFT, EMPTY)
        empty.paste(label, ((empty.width - label.width) // 2, (empty.height - label.height) // 2))
        return empty
    across = math.isqrt(len(pictures) - 1) + 1
    for picture in pictures:
        picture.thumbnail((side // across, side // across))
    width, height = (max(picture.size[i] for picture in pictures) for i in (0, 1))
    down = -(-len(pictures) // across)
    cell = Image.new("RGB", (max(96, across * (width + 2) - 2), down * (height + 2) - 2), PAPER)
    for number, picture in enumerate(pictures):
        clear = picture.getchannel("A") if picture.mode == "RGBA" else None
        cell.paste(picture, (number % across * (width + 2), number // across * (height + 2)), clear)
    return cell


def _line(parts: Sequence[Image.Image | None], widths: Sequence[int]) -> Image.Image:
    height = max((part.height for part in parts if part), default=1)
    line = Image.new("RGB", (sum(widths) + GAP * (len(widths) - 1), height), PAPER)
    at = 0
    for part, width in zip(parts, widths, strict=True):
        if part is not None:
            line.paste(part, (at, (height - part.height) // 2 if at == 0 else 0))  # a row's name halfway down
        at += width + GAP
    return line


def _stacked(parts: Sequence[Image.Image], border: int = 2 * GAP) -> Image.Image:
    width = max(part.width for part in parts) + 2 * border
    height = sum(part.height + GAP for part in parts) - GAP + 2 * border
    whole = Image.new("RGB", (width, height), PAPER)
    at = border
    for part in parts:
        whole.paste(part, (border, at))
        at += part.height + GAP
    return whole


def _text(text: str, size: int, width: int, ink: str = INK, paper: str = PAPER, most: int = 4) -> Image.Image:
    """A text broken into at most `most` lines of `width` px."""
    font = ImageFont.load_default(size)
    lines = _broken(text, lambda words: font.getlength(words) <= width, most)
    high = round(1.3 * size)
    long = max((math.ceil(font.getlength(line)) for line in lines), default=1)
    picture = Image.new("RGB", (min(max(long, 1), width), high * max(len(lines), 1)), paper)
    draw = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        draw.text((0, number * high), line, fill=ink, font=font)
    return picture


def _broken(text: str, fits: Callable[[str], bool], most: int) -> list[str]:
    """Lines that fit; words too long for one are cut, after a `_` if they have one, and what is left over ends in three
    dots."""
    lines: list[str] = []
    rest = " ".join(text.split())[:1000]
    while rest and len(lines) < most:
        end = len(rest)
        while end > 1 and not fits(rest[:end]):
            space = max(rest.rfind(" ", 0, end), rest.rfind("_", 0, end - 1) + 1)
            end = space if space > 0 else end - 1
        lines.append(rest[:end])
        rest = rest[end:].lstrip()
    if rest:
        last = lines[-1]
        while len(last) > 1 and not fits(last + "..."):
            last = last[:-1]
        lines[-1] = last + "..."
    return lines
