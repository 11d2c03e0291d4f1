"""What a job made, as HTML and as pictures: thumbnails, players, piano rolls, or why there is nothing.

Thumbnails are inside the page up to MAX_THUMBNAILS; beyond them, and for files that are kept elsewhere, the browser
takes the files themselves, as they come into view. No browser draws a piece, so there may be more rolls.
"""

from __future__ import annotations

import base64
import io
import os
from collections import Counter
from collections.abc import Mapping
from html import escape
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import quote

from genkit import registry
from genkit.batch.job import Job
from genkit.batch.journal import Done, Failed, Made, State
from genkit.errors import GenkitError
from genkit.media.rendering import kind_of

if TYPE_CHECKING:
    from PIL import Image as PILImage

__all__ = ["STANDINGS", "Results", "link"]

THUMBNAIL, SMALL = 320, 160
"""Longer side of a thumbnail, px: of few, and of many."""
FEW = 200
MAX_THUMBNAILS, MAX_ROLLS = 500, 1000
"""Inside the page, to keep its size bounded: some 20 KB each, 6 KB if small, a roll 2 KB."""
STANDINGS = ("made", "degraded", "failed", "quarantined", "to do")
"""Degraded: made, but with less memory than usual; quarantined: it kills its process, and is left alone."""
SHOWN = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""What every browser shows."""


class Results:
    """What lies in an output folder of a plan's jobs."""

    def __init__(self, out: Path, state: State) -> None:
        self.out, self.state = out, state
        self.thumbnails: Counter[str] = Counter()  # by kind
        self.pipelines: dict[str, tuple[str, Mapping[str, str]]] = {}
        self.side = THUMBNAIL if sum(len(done.files) for done in state.done.values()) <= FEW else SMALL

    def done(self, job: Job) -> Done | None:
        done = self.state.done.get(job.output)
        return done if done and done.job == job.id and not self.failed(job) else None

    def failed(self, job: Job) -> Failed | None:
        """Since it was last done: a file that was to be made again may be there, but it is not what was asked for."""
        failed = self.state.failed.get(job.output)
        return failed if failed and failed.job == job.id else None

    def produces(self, job: Job) -> str:
        """The kind of media."""
        return self._pipeline(job)[0]

    def file_fields(self, job: Job) -> Mapping[str, str]:
        return self._pipeline(job)[1]

    def _pipeline(self, job: Job) -> tuple[str, Mapping[str, str]]:
        if job.pipeline not in self.pipelines:
            kind = registry.get(job.pipeline)
            self.pipelines[job.pipeline] = kind.produces, kind.Params.file_fields()
        return self.pipelines[job.pipeline]

    def standing(self, job: Job) -> str:
        """How a job stands, one of STANDINGS."""
        if done := self.done(job):
            return "degraded" if done.degraded else "made"
        failed = self.failed(job)
        return "to do" if failed is None else "quarantined" if failed.quarantined else "failed"

    def html(self, job: Job) -> str:
        done = self.done(job)
        if done is None:
            return self._hole(job)
        kind = self.produces(job)
        rendered = [made for made in done.files if made.path in job.renders]
        files = [made for made in done.files if made not in rendered]
        if kind == "audio":
            pictures = "".join(self._picture(made, "image") for made in rendered)
            shown = f'<div class="media spectrogram">{pictures}</div>' if pictures else ""
            players, before = "".join(map(_player, files)), self._before(job)
            return shown + (_titled("before", before) + _titled("after", players) if before else players)
        pictures = "".join(self._picture(made, kind) for made in files)
        extra = " roll" if kind == "midi" else " many" if len(files) > 1 else ""
        return f'<div class="media{extra}">{pictures}</div>{"".join(map(_rendering, rendered))}'

    def _hole(self, job: Job) -> str:
        if (failed := self.failed(job)) is None:
            return '<div class="none">not made yet</div>'
        error = escape(failed.error)
        return f'<div class="none bad" title="{error}"><b>{self.standing(job)}</b><span>{error}</span></div>'

    def _before(self, job: Job) -> str:
        """A player of the sound that the job's was made from; empty if that is none or several."""
        sounds = [name for name, kind in self.file_fields(job).items() if kind == "audio"]
        value = job.params.get(sounds[0]) if len(sounds) == 1 else None
        if not isinstance(value, str):
            return ""
        take = job.takes.get(sounds[0])
        if take is None:
            try:
                path = Path(os.path.relpath(value, self.out)).as_posix()
            except ValueError:  # on another drive
                return ""
            if not (self.out / path).exists():  # moved away since
                return ""
        elif (made := self.state.done.get(take.output)) and take.number <= len(made.files):
            path = made.files[take.number - 1].path
        else:
            return ""
        return _player_of(path)

    def _picture(self, made: Made, kind: str) -> str:
        self.thumbnails[kind] += 1
        name = escape(PurePosixPath(made.path).name)
        address, size = "", ""
        few = self.thumbnails[kind] <= (MAX_ROLLS if kind == "midi" else MAX_THUMBNAILS)
        if few and (self.out / made.path).exists():
            address, size = _thumbnail(self.out / made.path, kind, self.side)
        elif PurePosixPath(made.path).suffix.lower() in SHOWN:
            address = link(made.path)
        inside = f'<img loading="lazy" alt="{name}"{size} src="{address}">' if address else _none(name)
        return f'<a href="{link(made.path)}">{inside}</a>'

    def pictures(self, job: Job) -> list[PILImage.Image] | str:
        """To be looked at: its pictures, the roll of its piece, the picture that its sound was rendered to; else a word
        for why there is none."""
        done = self.done(job)
        if done is None:
            return self.standing(job) if self.failed(job) else "not made yet"
        kind = self.produces(job)
        paths = [made.path for made in done.files if (made.path in job.renders) == (kind == "audio")]
        found = [_opened(self.out / path, "midi" if kind == "midi" else "image") for path in paths]
        return [picture for picture in found if picture] or "no picture"


def _none(name: str) -> str:
    return f'<div class="none">{name}</div>'


def _player(made: Made) -> str:
    return _player_of(made.path)


def _titled(title: str, players: str) -> str:
    return f'<div class="titled">{title}{players}</div>'


def _player_of(path: str) -> str:
    name = escape(PurePosixPath(path).name)
    return f'<audio controls preload="none" src="{link(path)}" aria-label="{name}"></audio>'


def _rendering(made: Made) -> str:
    """A player for a sound; a link for the others, since the piece itself is shown as its roll."""
    if kind_of(made.path) == "audio":
        return _player(made)
    name = escape(PurePosixPath(made.path).name)
    return f'<a class="rendering" href="{link(made.path)}">{name}</a>'


def _opened(path: Path, kind: str, side: int = THUMBNAIL) -> PILImage.Image | None:
    """A picture of a picture, or of a piece in the size of a thumbnail; None if the file does not open."""
    from genkit.media.image import Image
    from genkit.media.midi import Midi

    try:
        if kind == "midi":
            return Midi.open(path).roll(width=side * 3 // 2, height=side * 9 // 16).pil
        return Image.open(path, background=None).pil.copy()
    except GenkitError:
        return None


def _thumbnail(path: Path, kind: str, side: int) -> tuple[str, str]:
    """A small picture as a data address, and its size as attributes; empty if the file does not open."""
    picture = _opened(path, kind, side)
    if picture is None:
        return "", ""
    picture.thumbnail((side * 3 // 2, side))
    clear = picture.mode in ("RGBA", "LA")
    buffer = io.BytesIO()
    if clear or kind == "midi":
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.convert("RGB").save(buffer, "JPEG", quality=82)
    suffix = "png" if clear or kind == "midi" else "jpeg"
    size = f' width="{picture.width}" height="{picture.height}"'
    return f"data:image/{suffix};base64,{base64.b64encode(buffer.getvalue()).decode()}", size


def link(path: str) -> str:
    """A path from the output folder down, as an address."""
    # "./" keeps a name like "a:b.png" from being read as an address with a scheme.
    return "./" + escape(quote(path), quote=True)
