"""The report of a batch: one HTML file with a small picture of everything, the sounds to play, and what failed.

It stands alone: styles and thumbnails are inside, nothing is loaded from elsewhere, no script runs, and every text from
a recipe or a file is escaped. Files are linked by relative path, so the folder can be moved or zipped;
a recording that a sound was made from is played from where it lies.

A stage whose jobs vary in two things or more is laid out as labelled grids (`genkit.batch.grid`); any other stage is a
gallery. Much of either is folded up in parts, and parameters that a stage's jobs share are listed once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path, PurePosixPath

from genkit import registry
from genkit._version import __version__
from genkit.batch import contact
from genkit.batch.grid import Grid, Key, Scale, Sheet, layout
from genkit.batch.job import Job
from genkit.batch.journal import read
from genkit.batch.plan import Plan
from genkit.batch.results import Results, link
from genkit.batch.template import shown
from genkit.media.files import atomic_write

__all__ = ["NAME", "render", "write"]

NAME = "report.html"
OPEN = 400
"""Jobs that are spread out when the page opens; further parts are folded up."""
PART = 200
"""Jobs in a part of a gallery, and at least about so many in a part of a grid."""
TELLING = 1000
"""Jobs of a stage that list their own parameters: ten thousand such lists take a browser a minute to open."""
FAILURES = 100
"""Listed at the top."""
_POLICY = "script-src 'none'; object-src 'none'; base-uri 'none'"


def write(plan: Plan, out: str | Path) -> Path:
    """Writes the report of what is in the output folder, and its grids as one picture; returns the report's path."""
    out = Path(out)
    page = _Page(plan, out)
    grids = {name: grid for name, grid in page.grids.items() if grid}
    page.sheet = contact.write(out, plan.recipe.name, grids, page.results.pictures)
    return atomic_write(out / NAME, _render(plan, page).encode("utf-8", "replace"))


def render(plan: Plan, out: Path) -> str:
    """The report as HTML."""
    return _render(plan, _Page(plan, out))


def _render(plan: Plan, page: _Page) -> str:
    body = "".join(page.stage(name, jobs) for name, jobs in page.stages.items())
    recipe = plan.recipe
    style = Path(__file__).with_name("report.css").read_text("utf-8")
    description = f"<p>{escape(recipe.description)}</p>" if recipe.description else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(recipe.name)}</title><style>{style}</style></head>\n<body><main>"
        f"<header><h1>{escape(recipe.name)}</h1>{description}{page.counts(plan.jobs)}{page.picture()}</header>\n"
        f"{page.failures(plan.jobs)}{body}"
        f"<footer>genkit {escape(__version__)}. Every file carries how it was made: genkit inspect FILE shows it, "
        "genkit rerun FILE makes it again.</footer></main></body></html>\n"
    )


class _Page:
    """sheet: the grids as one picture, if it was drawn."""

    def __init__(self, plan: Plan, out: Path) -> None:
        self.results = Results(out, read(out), plan.jobs)
        self.stages = {name: list(jobs) for name, jobs in groupby(plan.jobs, key=lambda job: job.stage)}
        kinds = {stage.name: stage for stage in plan.recipe.stages}
        self.grids = {name: layout(kinds[name], jobs) for name, jobs in self.stages.items()}
        self.sheet: Path | None = None
        self.shared: dict[str, str] = {}  # parameters that the stage at hand lists once
        self.spread = 0

    def counts(self, jobs: Sequence[Job]) -> str:
        done = [entry for job in jobs if (entry := self.results.done(job))]
        failed = sum(1 for job in jobs if self.results.failed(job))
        left = len(jobs) - len(done) - failed
        parts = [f'<span class="good"><b>{len(done)}</b> of {len(jobs)} made</span>']
        parts += [f'<span class="bad"><b>{failed}</b> failed</span>'] if failed else []
        parts += [f"<span><b>{left}</b> to do</span>"] if left > 0 else []
        size = sum(made.bytes for entry in done for made in entry.files)
        parts += [f"<span>{_duration(sum(entry.seconds for entry in done))}</span><span>{size / 1e6:.1f} MB</span>"]
        return f'<div class="counts">{"".join(parts)}</div>'

    def failures(self, jobs: Sequence[Job]) -> str:
        failed = [(job, entry) for job in jobs if (entry := self.results.failed(job))]
        items = [
            f"<li><b>{escape(job.output)}</b>: {escape(entry.error)}"
            f"{f' (tried {entry.attempt} times)' if entry.attempt > 1 else ''}{_listed('parameters', _facts(job))}</li>"
            for job, entry in failed[:FAILURES]
        ]
        if len(failed) > FAILURES:
            items.append(f"<li>and {len(failed) - FAILURES:,} more, told in their places below</li>")
        return f'<section class="failures"><h2>Failed</h2><ul>{"".join(items)}</ul></section>' if items else ""

    def picture(self) -> str:
        return f'<p><a href="{link(self.sheet.name)}">The grid as one picture</a></p>' if self.sheet else ""

    def stage(self, name: str, jobs: Sequence[Job]) -> str:
        first = jobs[0]
        model = f", {escape(Path(first.model).name)}" if first.model and len({job.model for job in jobs}) == 1 else ""
        title = first.pipeline if len(self.stages) == 1 else name
        count = f"{len(jobs):,} {'job' if len(jobs) == 1 else 'jobs'}"
        about = f"{escape(first.pipeline)}{model}, {count}"
        self.shared = _shared(jobs)
        same = f"<div>{_listed('parameters of all', self.shared)}</div>" if self.shared else ""
        grid = self.grids[name]
        content = (self._grid(grid) if grid else "") + self._gallery(grid.rest if grid else jobs)
        return f'<section><h2>{escape(title)}</h2><p class="soft">{about}</p>{same}{content}</section>\n'

    def _gallery(self, jobs: Sequence[Job]) -> str:
        parts = [jobs[start : start + PART] for start in range(0, len(jobs), PART)]
        cards = [f'<div class="gallery">{"".join(map(self._card, part))}</div>' for part in parts]
        if len(parts) < 2:
            return "".join(cards)
        titles = (f"{part[0].index:,} to {part[-1].index:,}" for part in parts)
        return "".join(
            self._part(title, card, len(part)) for title, card, part in zip(titles, cards, parts, strict=True)
        )

    def _part(self, title: str, content: str, jobs: int) -> str:
        """A part with its heading, folded up once enough is shown."""
        unfolded = " open" if self.spread < OPEN else ""
        self.spread += jobs
        return f'<details class="part"{unfolded}><summary>{escape(title)}</summary>{content}</details>'

    def _card(self, job: Job) -> str:
        done = self.results.done(job)
        name = escape(job.output)
        if done:
            name = f'<a class="name" href="{link(done.files[0].path)}">{name}</a>'
        chips = "".join(f'<span class="chip"><i>{escape(k)}</i> {escape(v)}</span>' for k, v in _labels(job).items())
        seconds = f'<span class="chip soft">{_duration(done.seconds)}</span>' if done else ""
        text = f'<div class="chips">{chips}{seconds}</div>{self._parameters(job)}'
        return f'<article class="card">{self.results.html(job)}<div class="text">{name}{text}</div></article>'

    def _parameters(self, job: Job) -> str:
        if len(self.stages[job.stage]) > TELLING:
            return ""
        return _listed("parameters", {key: value for key, value in _facts(job).items() if key not in self.shared})

    def _grid(self, grid: Grid) -> str:
        fixed = ", ".join(f"<i>{escape(name)}</i> {escape(label)}" for name, label in grid.fixed)
        parts = []
        for sheet in grid.sheets:
            high = max(5, PART // len(sheet.columns))
            bands = [sheet.rows[start : start + high] for start in range(0, len(sheet.rows), high)]
            for band in bands:
                title = ", ".join(f"{name} {label}".strip() for name, label in sheet.title)
                if len(bands) > 1 and grid.y:
                    ends = f"{_brief(grid.y.labels[band[0]])} to {_brief(grid.y.labels[band[-1]])}"
                    title += f"{', ' if title else ''}{grid.y.name} {ends}"
                table = self._table(grid, sheet, band)
                parts.append(self._part(title, table, len(band) * len(sheet.columns)) if title else table)
        return (f'<p class="fixed">{fixed}</p>' if fixed else "") + "".join(parts)

    def _table(self, grid: Grid, sheet: Sheet, rows: Sequence[Key]) -> str:
        lines = [
            f"<tr>{'<td></td>' if grid.y else ''}{''.join(_head(grid.x, key, 'col') for key in sheet.columns)}</tr>"
        ]
        for row in rows:
            side = _head(grid.y, row, "row") if grid.y else ""
            cells = (sheet.cells.get((row, column), ()) for column in sheet.columns)
            lines.append(f"<tr>{side}{''.join(f'<td>{self._cell(jobs)}</td>' for jobs in cells)}</tr>")
        kind = registry.get(next(iter(sheet.cells.values()))[0].pipeline).produces
        return f'<div class="scroll"><table class="grid {escape(kind)}">{"".join(lines)}</table></div>'

    def _cell(self, jobs: Sequence[Job]) -> str:
        return "".join(f"{self.results.html(job)}{self._parameters(job)}" for job in jobs)


def _head(scale: Scale, key: Key, scope: str) -> str:
    name, label = escape(scale.name).replace("_", "_<wbr>"), escape(scale.labels[key])
    return f'<th scope="{scope}" title="{label}"><i>{name}</i><span>{label}</span></th>'


def _brief(text: str) -> str:
    return text if len(text) <= 40 else text[:39] + "…"


def _labels(job: Job) -> dict[str, str]:
    """The variables as read: a file by its name."""
    kinds = registry.get(job.pipeline).Params.file_fields()
    return {
        key: PurePosixPath(shown(value)).stem if key in kinds and isinstance(value, str) else shown(value)
        for key, value in job.variables.items()
    }


def _facts(job: Job) -> dict[str, str]:
    """The model and every parameter as read."""
    facts = {**({"model": job.model} if job.model else {}), **job.params}
    facts |= {name: take.output for name, take in job.takes.items()}
    return {key: shown(value) for key, value in facts.items()}


def _shared(jobs: Sequence[Job]) -> dict[str, str]:
    """What is the same for all of several jobs."""
    shared = _facts(jobs[0]) if len(jobs) > 1 else {}
    for job in jobs[1:]:
        facts = _facts(job)
        shared = {key: value for key, value in shared.items() if facts.get(key) == value}
    return shared


def _listed(title: str, facts: Mapping[str, str]) -> str:
    items = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts.items())
    return f"<details><summary>{title}</summary><dl>{items}</dl></details>" if items else ""


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
