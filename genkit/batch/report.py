"""The report of a batch: one HTML file with a small picture of everything, the sounds to play, and what failed.

It stands alone: styles and thumbnails are inside, nothing is loaded from elsewhere, and every text from a recipe or a
file is escaped. Files are linked by relative path, so the folder can be moved or zipped; a recording that a sound was
made from is played from where it lies.

One script of its own (`report.js`, allowed by its hash, where no other may run) turns pages, filters and searches; it
copies what is in the page and reads no markup from texts. Without it the first 400 jobs are shown, and of the others
the names of their files, folded up in parts (`genkit.batch.reporting.sections`). A stage whose jobs vary in two things
or more is laid out as labelled grids (`genkit.batch.reporting.grid`); any other is a gallery. Parameters that a stage's
jobs share are listed once.

The plan's jobs are read twice, to count and to write, and never held all at once.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

from genkit._version import __version__
from genkit.batch.job import Job
from genkit.batch.journal import Failed, read
from genkit.batch.plan import Plan
from genkit.batch.reporting import contact
from genkit.batch.reporting.results import STANDINGS, Results, link
from genkit.batch.reporting.sections import Section, Tally, Writer, facts, listed
from genkit.media.files import atomic_write

__all__ = ["NAME", "render", "write"]

NAME = "report.html"
FAILURES = 100
"""Listed at the top, of those that failed and of those in quarantine."""
SPREAD = 10
"""More failures than this are folded up."""
_POLICY = (
    "script-src 'sha256-{}'; object-src 'none'; connect-src 'none'; frame-src 'none'; form-action 'none'; "
    "base-uri 'none'"
)
_TITLES = {"failed": "Failed", "quarantined": "Quarantined: not tried again until genkit retry releases them"}


def write(plan: Plan, out: str | Path) -> Path:
    """Writes the report of what is in the output folder, and its grids as one picture; returns the report's path."""
    out = Path(out)
    page = _Page(plan, out)
    grids = {section.stage.name: section.grid for section in page.sections if section.grid}
    page.sheet = contact.write(out, plan.outline.name, grids, lambda place: page.results.pictures(plan.jobs[place]))

    def content(path: Path) -> None:
        with path.open("wb") as file:
            file.writelines(piece.encode("utf-8", "replace") for piece in page.pieces())

    return atomic_write(out / NAME, content)


def render(plan: Plan, out: Path) -> str:
    """The report as HTML."""
    return "".join(_Page(plan, out).pieces())


class _Page:
    """What a first reading of the plan tells. failures: the first of each kind, as HTML; sheet: the grids as one
    picture, if it was drawn."""

    def __init__(self, plan: Plan, out: Path) -> None:
        self.plan = plan
        self.results = Results(out, read(out))
        self.tally = Tally()
        self.failures: dict[str, list[str]] = {name: [] for name in _TITLES}
        self.sheet: Path | None = None
        sections: dict[str, Section] = {}
        stages = {stage.name: stage for stage in plan.outline.stages}
        for place, job in enumerate(plan.jobs):
            if job.stage not in sections:
                sections[job.stage] = Section(stages[job.stage], place)
            sections[job.stage].take(place, job, self.results)
            self._take(job)
        self.sections = list(sections.values())
        for section in self.sections:
            section.lay_out()

    def _take(self, job: Job) -> None:
        standing, failed = self.results.standing(job), self.results.failed(job)
        self.tally.take(standing, self.results.done(job) or failed)
        if failed and len(self.failures[standing]) < FAILURES:
            self.failures[standing].append(_failure(job, failed))

    def pieces(self) -> Iterator[str]:
        """The page, piece by piece."""
        outline = self.plan.outline
        style, script = (Path(__file__).with_name(f"report.{kind}").read_text("utf-8") for kind in ("css", "js"))
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        description = f"<p>{escape(outline.description)}</p>" if outline.description else ""
        sheet = f'<p><a href="{link(self.sheet.name)}">The grid as one picture</a></p>' if self.sheet else ""
        yield (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY.format(digest)}">'
            f"<title>{escape(outline.name)}</title><style>{style}</style></head>\n<body><main>"
            f"<header><h1>{escape(outline.name)}</h1>{description}{self.tally.html()}{sheet}</header>\n"
        )
        yield from map(self._failed, _TITLES)
        yield self._tools()
        writer = Writer(self.plan, self.results)
        for section in self.sections:
            yield from writer.section(section, alone=len(self.sections) == 1)
        yield (
            f"{_PAGER}<footer>genkit {escape(__version__)}. Every file carries how it was made: genkit inspect FILE "
            f"shows it, genkit rerun FILE makes it again.</footer></main><script>{script}</script></body></html>\n"
        )

    def _failed(self, standing: str) -> str:
        items, count = self.failures[standing], self.tally.standing[standing]
        if not items:
            return ""
        more = f"<li>and {count - len(items):,} more, told in their places below</li>" if count > len(items) else ""
        unfolded = " open" if count <= SPREAD else ""
        return (
            f'<details class="failures"{unfolded}><summary><h2>{_TITLES[standing]}</h2></summary>'
            f"<ul>{''.join(items)}{more}</ul></details>"
        )

    def _tools(self) -> str:
        """What the script filters by; hidden until it runs."""
        counts = self.tally.standing
        states = {"": f"all ({counts.total():,})"} | {n: f"{n} ({counts[n]:,})" for n in STANDINGS if counts[n]}
        stages = {section.stage.name: section.stage.name for section in self.sections}
        stage = _choice("Stage", "stage", {"": "all", **stages}) if len(stages) > 1 else ""
        return (
            '<div id="tools" role="search" hidden><label>Search '
            '<input id="find" type="search" placeholder="names, labels, parameters" autocomplete="off"></label>'
            f'{_choice("Show", "state", states)}{stage}<span id="shown" role="status"></span></div>\n'
        )


_PAGER = (
    '<nav id="pager" aria-label="Pages" hidden>'
    '<button type="button" value="first">First</button>'
    '<button type="button" value="previous" title="or the left arrow key">Previous</button>'
    '<label><span>Page </span><input id="page" type="number" min="1" value="1" aria-label="Page"></label>'
    '<span>of <span id="pages"></span></span>'
    '<button type="button" value="next" title="or the right arrow key">Next</button>'
    '<button type="button" value="last">Last</button></nav>\n'
)


def _choice(title: str, name: str, options: Mapping[str, str]) -> str:
    items = "".join(f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in options.items())
    return f'<label>{title} <select id="{name}">{items}</select></label>'


def _failure(job: Job, failed: Failed) -> str:
    tries = f" (tried {failed.attempt} times)" if failed.attempt > 1 else ""
    return f"<li><b>{escape(job.output)}</b>: {escape(failed.error)}{tries}{listed('parameters', facts(job))}</li>"
