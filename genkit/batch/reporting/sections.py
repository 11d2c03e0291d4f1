"""The sections of a report: how a stage's jobs stand, and what each made, as labelled grids or as a gallery.

Jobs are read from the plan as they are written, part by part, so a section holds no more of them than a part. The parts
of the first LIVE jobs are an ordinary piece of the page. Further ones lie in it as templates, which cost a browser next
to nothing until the page's script takes them out; where no script runs, the names of their files stand for them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path, PurePosixPath
from typing import Any

from genkit.batch.job import Job
from genkit.batch.journal import Done, Failed
from genkit.batch.plan import Plan
from genkit.batch.planning.outline import StageOutline
from genkit.batch.planning.template import shown
from genkit.batch.reporting.grid import Grid, Key, Scale, Sheet, layout
from genkit.batch.reporting.results import STANDINGS, Results, link

__all__ = ["Section", "Tally", "Writer", "facts", "listed"]

LIVE = 400
"""Jobs whose parts are no templates: ten thousand sound players take a browser three seconds."""
PART = 200
"""Jobs in a part of a gallery, and at least about so many in a part of a grid."""
BAND = 5
"""Rows in a part of a grid, at least."""


@dataclass
class Tally:
    """How jobs stand, and what they took. again: tried more than once."""

    standing: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    bytes: int = 0
    again: int = 0

    def take(self, standing: str, entry: Done | Failed | None) -> None:
        self.standing[standing] += 1
        self.again += entry is not None and entry.attempt > 1
        if isinstance(entry, Done):
            self.seconds += entry.seconds
            self.bytes += sum(made.bytes for made in entry.files)

    def html(self) -> str:
        made, total = self.standing["made"] + self.standing["degraded"], self.standing.total()
        parts = [f'<span class="good"><b>{made:,}</b> of {total:,} made</span>']
        for name in STANDINGS[1:]:
            css = ' class="bad"' if name in ("failed", "quarantined") else ""
            parts += [f"<span{css}><b>{count:,}</b> {name}</span>"] if (count := self.standing[name]) else []
        parts += [f"<span><b>{self.again:,}</b> tried more than once</span>"] if self.again else []
        each = f", {duration(self.seconds / made)} each" if made > 1 else ""
        parts += [f"<span>{duration(self.seconds)}{each}</span><span>{self.bytes / 1e6:,.1f} MB</span>"]
        return f'<div class="counts">{"".join(parts)}</div>'


@dataclass
class Section:
    """What one reading of a stage's jobs tells. first: the place of its first job in the plan; models: that they use;
    same: the facts that all of them share."""

    stage: StageOutline
    first: int
    tally: Tally = field(default_factory=Tally)
    models: set[str | None] = field(default_factory=set)
    same: dict[str, Any] = field(default_factory=dict)
    variables: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    grid: Grid | None = None

    def take(self, place: int, job: Job, results: Results) -> None:
        found = facts(job)
        first = not self.variables
        self.same = found if first else {key: value for key, value in self.same.items() if found.get(key) == value}
        self.variables[place] = job.variables
        self.models.add(job.model)
        self.tally.take(results.standing(job), results.done(job) or results.failed(job))

    def lay_out(self) -> None:
        """Once all are taken."""
        self.grid = layout(self.stage, self.variables)
        self.variables = {}
        if len(self) == 1:
            self.same = {}

    def __len__(self) -> int:
        return self.tally.standing.total()


class Writer:
    """Writes sections as HTML, one after the other. live: jobs written so far."""

    def __init__(self, plan: Plan, results: Results) -> None:
        self.jobs, self.results = plan.jobs, results
        self.live = 0
        self.same: Mapping[str, Any] = {}  # what the section at hand lists once

    def section(self, section: Section, *, alone: bool) -> Iterator[str]:
        """alone: there is no other."""
        stage, grid, self.same = section.stage, section.grid, section.same
        (model,) = section.models if len(section.models) == 1 else (None,)
        named = f", {escape(Path(model).name)}" if model else ""
        about = f"{escape(stage.pipeline)}{named}, {len(section):,} {'job' if len(section) == 1 else 'jobs'}"
        name = escape(stage.pipeline if alone else stage.name)
        yield f'<section class="stage" data-name="{name}"><h2>{name}</h2><p class="soft">{about}</p>'
        yield "" if alone else section.tally.html()
        yield f"<div>{listed('parameters of all', self.same)}</div>" if self.same else ""
        yield '<div class="results">'
        if grid is not None:
            yield from self._grid(grid)
        yield from self._gallery(range(section.first, section.first + len(section)) if grid is None else grid.rest)
        yield "</div></section>\n"

    def _gallery(self, places: Sequence[int]) -> Iterator[str]:
        for start in range(0, len(places), PART):
            jobs = [self.jobs[place] for place in places[start : start + PART]]
            title = f"{jobs[0].index:,} to {jobs[-1].index:,}" if len(places) > PART else ""
            yield self._part(title, f'<div class="gallery">{"".join(map(self._card, jobs))}</div>', jobs)

    def _part(self, title: str, content: str, jobs: Collection[Job]) -> str:
        """A part with its heading."""
        part = f'<div class="part">{content}</div>'
        if title:
            part = f'<details class="part" open><summary>{escape(title)}</summary>{content}</details>'
        live, self.live = self.live < LIVE, self.live + len(jobs)
        if live:
            return part
        names = "".join(map(self._line, jobs))
        listing = f'<details class="part"><summary>{escape(title) or "files"}</summary><ul>{names}</ul></details>'
        return f"<template>{part}</template><noscript>{listing}</noscript>"

    def _line(self, job: Job) -> str:
        if (done := self.results.done(job)) is not None:
            return f"<li>{self._link(job, done)}</li>"
        return f"<li>{escape(job.output)}: {self.results.standing(job)}</li>"

    def _link(self, job: Job, done: Done) -> str:
        return f'<a class="name" href="{link(done.files[0].path)}">{escape(job.output)}</a>'

    def _card(self, job: Job) -> str:
        done = self.results.done(job)
        name = self._link(job, done) if done else f'<span class="name">{escape(job.output)}</span>'
        labels = _labels(job, self.results.file_fields(job))
        chips = "".join(f'<span class="chip"><i>{escape(k)}</i> {escape(v)}</span>' for k, v in labels.items())
        text = f'<div class="chips">{chips}{self._how(job)}</div>{self._parameters(job)}'
        return (
            f'<article class="card job"{self._state(job)}>{self.results.html(job)}'
            f'<div class="text">{name}{text}</div></article>'
        )

    def _state(self, job: Job) -> str:
        standing = self.results.standing(job)
        return f' data-state="{standing}"' if standing != "made" else ""

    def _how(self, job: Job) -> str:
        """Chips that say how a job went: its time, its tries, what was given up."""
        done = self.results.done(job)
        entry = done or self.results.failed(job)
        chips = [f'<span class="chip soft">{duration(done.seconds)}</span>'] if done else []
        chips += [f'<span class="chip soft">{entry.attempt} tries</span>'] if entry and entry.attempt > 1 else []
        if done and done.degraded:
            chips.append(f'<span class="chip warn">degraded: {escape(done.degraded)}</span>')
        return "".join(chips)

    def _parameters(self, job: Job) -> str:
        told = {key for key, value in job.variables.items() if job.params.get(key) == value}  # they label it
        return listed("parameters", {k: v for k, v in facts(job).items() if k not in self.same and k not in told})

    def _grid(self, grid: Grid) -> Iterator[str]:
        fixed = ", ".join(f"<i>{escape(name)}</i> {escape(label)}" for name, label in grid.fixed)
        if fixed:
            yield f'<p class="fixed">{fixed}</p>'
        for sheet in grid.sheets:
            high = max(BAND, PART // len(sheet.columns))
            bands = [sheet.rows[start : start + high] for start in range(0, len(sheet.rows), high)]
            for band in bands:
                title = ", ".join(f"{name} {label}".strip() for name, label in sheet.title)
                if len(bands) > 1 and grid.y:
                    ends = f"{_brief(grid.y.labels[band[0]])} to {_brief(grid.y.labels[band[-1]])}"
                    title += f"{', ' if title else ''}{grid.y.name} {ends}"
                spots = ((row, column) for row in band for column in sheet.columns)
                places = (place for spot in spots for place in sheet.cells.get(spot, ()))
                jobs = {place: self.jobs[place] for place in places}
                yield self._part(title, self._table(grid, sheet, band, jobs), jobs.values())

    def _table(self, grid: Grid, sheet: Sheet, rows: Sequence[Key], jobs: Mapping[int, Job]) -> str:
        heads = "".join(_head(grid.x, key, "col") for key in sheet.columns)
        lines = [f"<tr>{'<td></td>' if grid.y else ''}{heads}</tr>"]
        for row in rows:
            side = _head(grid.y, row, "row") if grid.y else ""
            cells = (sheet.cells.get((row, column), ()) for column in sheet.columns)
            filled = ("".join(self._cell(jobs[place]) for place in cell) for cell in cells)
            lines.append(f"<tr>{side}{''.join(f'<td>{cell}</td>' for cell in filled)}</tr>")
        kind = self.results.produces(next(iter(jobs.values())))
        return f'<div class="scroll"><table class="grid {escape(kind)}">{"".join(lines)}</table></div>'

    def _cell(self, job: Job) -> str:
        """A job under its labels. Its title tells the pointer, and the search, which it is."""
        done = self.results.done(job)
        took = f", {duration(done.seconds)}" if done else ""
        labels = " ".join(_labels(job, self.results.file_fields(job)).values())
        how = f'<div class="chips">{self._how(job)}</div>' if done and done.degraded else ""
        return (
            f'<div class="job" title="{escape(f"{job.output}: {labels}{took}")}"{self._state(job)}>'
            f"{self.results.html(job)}{how}{self._parameters(job)}</div>"
        )


def _head(scale: Scale, key: Key, scope: str) -> str:
    name, label = escape(scale.name).replace("_", "_<wbr>"), escape(scale.labels[key])
    return f'<th scope="{scope}" title="{label}"><i>{name}</i><span>{label}</span></th>'


def _brief(text: str) -> str:
    return text if len(text) <= 40 else text[:39] + "…"


def _labels(job: Job, files: Mapping[str, str]) -> dict[str, str]:
    """The variables as read: a file by its name."""
    return {
        key: PurePosixPath(shown(value)).stem if key in files and isinstance(value, str) else shown(value)
        for key, value in job.variables.items()
    }


def facts(job: Job) -> dict[str, Any]:
    """The model and every parameter."""
    found = {**({"model": job.model} if job.model else {}), **job.params}
    return found | {name: take.output for name, take in job.takes.items()}


def listed(title: str, found: Mapping[str, Any]) -> str:
    items = "".join(f"<dt>{escape(key)}</dt><dd>{escape(shown(value))}</dd>" for key, value in found.items())
    return f"<details><summary>{title}</summary><dl>{items}</dl></details>" if items else ""


def duration(seconds: float) -> str:
    """ "3.2 s", "12 min", "1 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
