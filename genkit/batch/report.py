"""The report of a batch: one HTML file with a small picture of everything, the sounds to play, and what failed.

It stands alone: styles and thumbnails are inside, nothing is loaded from elsewhere, no script runs, and every text from
a recipe or a file is escaped. Files are linked by relative path, so the folder can be moved or zipped;
a recording that a sound was made from is played from where it lies.

A stage whose jobs vary in two things or more is laid out as a labelled grid of the last two, one grid for each
combination of the others; any other stage is a gallery.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from genkit import registry
from genkit._version import __version__
from genkit.batch.job import Job
from genkit.batch.journal import Done, Failed, Made, State, read
from genkit.batch.plan import Plan
from genkit.batch.template import shown
from genkit.errors import GenkitError
from genkit.media.files import atomic_write
from genkit.media.rendering import kind_of

__all__ = ["NAME", "render", "write"]

NAME = "report.html"
THUMBNAIL = 320
"""Longer side of a thumbnail, px."""
MAX_THUMBNAILS = 2000
"""Files beyond these are linked without a picture, to keep the page's size bounded (some 20 KB each)."""
MAX_COLUMNS = 12
_POLICY = "script-src 'none'; object-src 'none'; base-uri 'none'"


def write(plan: Plan, out: str | Path) -> Path:
    """Writes the report of what is in the output folder; returns its path."""
    return atomic_write(Path(out) / NAME, render(plan, Path(out)).encode("utf-8", "replace"))


def render(plan: Plan, out: Path) -> str:
    """The report as HTML."""
    page = _Page(out, read(out))
    stages = [(name, list(jobs)) for name, jobs in groupby(plan.jobs, key=lambda job: job.stage)]
    body = "".join(page.stage(name, jobs, alone=len(stages) == 1) for name, jobs in stages)
    recipe = plan.recipe
    style = Path(__file__).with_name("report.css").read_text("utf-8")
    description = f"<p>{escape(recipe.description)}</p>" if recipe.description else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(recipe.name)}</title><style>{style}</style></head>\n<body><main>"
        f"<header><h1>{escape(recipe.name)}</h1>{description}{page.counts(plan.jobs)}</header>\n"
        f"{page.failures(plan.jobs)}{body}"
        f"<footer>genkit {escape(__version__)}. Every file carries how it was made: genkit inspect FILE shows it, "
        "genkit rerun FILE makes it again.</footer></main></body></html>\n"
    )


class _Page:
    def __init__(self, out: Path, state: State) -> None:
        self.out, self.state = out, state
        self.thumbnails = 0

    def done(self, job: Job) -> Done | None:
        done = self.state.done.get(job.output)
        return done if done and done.job == job.id else None

    def failed(self, job: Job) -> Failed | None:
        failed = self.state.failed.get(job.output)
        return failed if failed and failed.job == job.id else None

    def counts(self, jobs: Sequence[Job]) -> str:
        done = [entry for job in jobs if (entry := self.done(job))]
        failed = sum(1 for job in jobs if self.failed(job))
        left = len(jobs) - len(done) - failed
        parts = [f'<span class="good"><b>{len(done)}</b> of {len(jobs)} made</span>']
        parts += [f'<span class="bad"><b>{failed}</b> failed</span>'] if failed else []
        parts += [f"<span><b>{left}</b> to do</span>"] if left > 0 else []
        size = sum(made.bytes for entry in done for made in entry.files)
        parts += [f"<span>{_duration(sum(entry.seconds for entry in done))}</span><span>{size / 1e6:.1f} MB</span>"]
        return f'<div class="counts">{"".join(parts)}</div>'

    def failures(self, jobs: Sequence[Job]) -> str:
        items = [
            f"<li><b>{escape(job.output)}</b>: {escape(failed.error)}"
            f"{f' (tried {failed.attempt} times)' if failed.attempt > 1 else ''}{_parameters(job)}</li>"
            for job in jobs
            if (failed := self.failed(job))
        ]
        return f'<section class="failures"><h2>Failed</h2><ul>{"".join(items)}</ul></section>' if items else ""

    def stage(self, name: str, jobs: Sequence[Job], *, alone: bool) -> str:
        first = jobs[0]
        model = f", {escape(Path(first.model).name)}" if first.model and len({job.model for job in jobs}) == 1 else ""
        title = first.pipeline if alone else name
        about = f"{escape(first.pipeline)}{model}, {len(jobs)} {'job' if len(jobs) == 1 else 'jobs'}"
        content = self._grids(jobs) or f'<div class="gallery">{"".join(map(self._card, jobs))}</div>'
        return f'<section><h2>{escape(title)}</h2><p class="soft">{about}</p>{content}</section>\n'

    def _card(self, job: Job) -> str:
        done = self.done(job)
        link = _link(done.files[0].path) if done else ""
        name = f'<a class="name" href="{link}">{escape(job.output)}</a>' if done else escape(job.output)
        chips = "".join(f'<span class="chip"><i>{escape(k)}</i> {escape(v)}</span>' for k, v in _labels(job).items())
        seconds = f'<span class="chip soft">{_duration(done.seconds)}</span>' if done else ""
        text = f'<div class="chips">{chips}{seconds}</div>{_parameters(job)}'
        return f'<article class="card">{self._media(job)}<div class="text">{name}{text}</div></article>'

    def _media(self, job: Job) -> str:
        done = self.done(job)
        if done is None:
            return f'<div class="none">{"failed" if self.failed(job) else "not made yet"}</div>'
        kind = registry.get(job.pipeline).produces
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

    def _before(self, job: Job) -> str:
        """A player of the sound that the job's was made from; empty if that is none or several."""
        sounds = [name for name, kind in registry.get(job.pipeline).Params.file_fields().items() if kind == "audio"]
        value = job.params.get(sounds[0]) if len(sounds) == 1 else None
        if not isinstance(value, str):
            return ""
        take = job.takes.get(sounds[0])
        if take is None:
            try:
                path = Path(os.path.relpath(value, self.out)).as_posix()
            except ValueError:  # on another drive
                return ""
        elif (made := self.state.done.get(take.output)) and take.number <= len(made.files):
            path = made.files[take.number - 1].path
        else:
            return ""
        return _player_of(path)

    def _picture(self, made: Made, kind: str) -> str:
        self.thumbnails += 1
        address = _thumbnail(self.out / made.path, kind) if self.thumbnails <= MAX_THUMBNAILS else ""
        name = escape(PurePosixPath(made.path).name)
        inside = f'<img loading="lazy" alt="{name}" src="{address}">' if address else f'<div class="none">{name}</div>'
        return f'<a href="{_link(made.path)}">{inside}</a>'

    def _grids(self, jobs: Sequence[Job]) -> str:
        """Grids of the last two variables that vary; empty if the jobs do not fill any."""
        labels = [_labels(job) for job in jobs]
        if any(set(label) != set(labels[0]) for label in labels):
            return ""
        varying = [name for name in labels[0] if len({label[name] for label in labels}) > 1]
        if len(varying) < 2:
            return ""
        *outer, row, column = varying
        columns = list(dict.fromkeys(label[column] for label in labels))
        if len(columns) > MAX_COLUMNS and len({label[row] for label in labels}) <= MAX_COLUMNS:
            row, column = column, row
            columns = list(dict.fromkeys(label[column] for label in labels))
        groups: dict[tuple[str, ...], dict[tuple[str, str], Job]] = {}
        for job, label in zip(jobs, labels, strict=True):
            cells = groups.setdefault(tuple(label[name] for name in outer), {})
            cells[label[row], label[column]] = job
        filled = sum(len(cells) for cells in groups.values())
        if filled < len(jobs) or len(columns) > MAX_COLUMNS or len(groups) * len(columns) > filled:
            return ""  # things of one label, or more gaps than cells
        return "".join(
            self._grid(dict(zip(outer, key, strict=True)), row, column, cells) for key, cells in groups.items()
        )

    def _grid(self, outer: Mapping[str, str], row: str, column: str, cells: Mapping[tuple[str, str], Job]) -> str:
        rows, columns = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
        title = f"<h3>{', '.join(f'{escape(k)} {escape(v)}' for k, v in outer.items())}</h3>" if outer else ""
        head = "".join(f"<th><i>{escape(column)}</i>{escape(value)}</th>" for value in columns)
        lines = []
        for value in rows:
            tds = "".join(f"<td>{self._cell(cells.get((value, other)))}</td>" for other in columns)
            lines.append(f"<tr><th><i>{escape(row)}</i>{escape(value)}</th>{tds}</tr>")
        table = f'<table class="grid"><tr><th></th>{head}</tr>{"".join(lines)}</table>'
        return f'{title}<div class="scroll">{table}</div>'

    def _cell(self, job: Job | None) -> str:
        return f"{self._media(job)}{_parameters(job)}" if job else ""


def _player(made: Made) -> str:
    return _player_of(made.path)


def _titled(title: str, players: str) -> str:
    return f'<div class="titled">{title}{players}</div>'


def _player_of(path: str) -> str:
    return f'<audio controls preload="none" src="{_link(path)}"></audio>'


def _rendering(made: Made) -> str:
    """A player for a sound; a link for the others, since the piece itself is shown as its roll."""
    if kind_of(made.path) == "audio":
        return _player(made)
    name = escape(PurePosixPath(made.path).name)
    return f'<a class="rendering" href="{_link(made.path)}">{name}</a>'


def _labels(job: Job) -> dict[str, str]:
    """The variables as read: a file by its name."""
    kinds = registry.get(job.pipeline).Params.file_fields()
    return {
        key: PurePosixPath(shown(value)).stem if key in kinds and isinstance(value, str) else shown(value)
        for key, value in job.variables.items()
    }


def _parameters(job: Job) -> str:
    rows: Iterable[tuple[str, Any]] = [*({"model": job.model} if job.model else {}).items(), *job.params.items()]
    if job.takes:
        taken = {name: take.output for name, take in job.takes.items()}
        rows = [(key, taken.get(key, value)) for key, value in rows]
    items = "".join(f"<dt>{escape(key)}</dt><dd>{escape(shown(value))}</dd>" for key, value in rows)
    return f"<details><summary>parameters</summary><dl>{items}</dl></details>"


def _thumbnail(path: Path, kind: str) -> str:
    """A small picture of a picture or a piece as a data address; empty if the file does not open."""
    from genkit.media.image import Image
    from genkit.media.midi import Midi

    try:
        if kind == "midi":
            picture = Midi.open(path).roll(width=480, height=180).pil
        else:
            picture = Image.open(path, background=None).pil.copy()
    except GenkitError:
        return ""
    picture.thumbnail((480, THUMBNAIL))
    clear = picture.mode in ("RGBA", "LA")
    buffer = io.BytesIO()
    if clear or kind == "midi":
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.convert("RGB").save(buffer, "JPEG", quality=82)
    suffix = "png" if clear or kind == "midi" else "jpeg"
    return f"data:image/{suffix};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _link(path: str) -> str:
    # "./" keeps a name like "a:b.png" from being read as an address with a scheme.
    return "./" + escape(quote(path), quote=True)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
