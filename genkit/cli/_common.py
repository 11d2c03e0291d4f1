"""What commands share: data to stdout, words to stderr, one progress bar, the flags every run takes."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from genkit.errors import GenkitError

if TYPE_CHECKING:
    from genkit.pipeline import Progress

__all__ = [
    "data",
    "echo_json",
    "json_option",
    "note",
    "one_line",
    "progress_bar",
    "quiet_option",
    "runtime_options",
    "span",
    "table",
]

LINE_EVERY = 5.0  # seconds between lines of progress where no bar can be drawn


def data(text: str) -> None:
    """A line of data, on stdout."""
    click.echo(text)


def echo_json(value: Any) -> None:
    """A value as JSON, on stdout."""
    text = json.dumps(value, ensure_ascii=False, indent=2, default=str)
    if text.encode("utf-8", "replace").decode() != text:  # a file's name may be any bytes
        text = json.dumps(value, indent=2, default=str)
    click.echo(text)


def one_line(text: object) -> str:
    """A value out of a file, safe to print: a terminal obeys control signs."""
    return str(GenkitError(str(text)))


def note(text: str) -> None:
    """A line for the reader, on stderr."""
    click.echo(text, err=True)


def table(titles: list[str], rows: list[list[str]]) -> None:
    """Aligned columns on stdout; in a pipe tab-separated and without titles, for `cut` and `awk`."""
    if not sys.stdout.isatty():
        for row in rows:
            data("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(*titles, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        drawn.add_row(*map(Text, row))
    Console().print(drawn)


def span(seconds: float) -> str:
    """ "3 min": about how long."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
quiet_option = click.option("--quiet", "-q", is_flag=True, help="No progress and no notes, only errors.")


def runtime_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --device, --dtype and --deterministic: what `Runtime.pick` takes."""
    for option in (
        click.option("--deterministic", is_flag=True, help="The same bits on every run, where that costs speed."),
        click.option(
            "--dtype", metavar="TYPE", help="float32, bfloat16 or float16. [default: what the device does well]"
        ),
        click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps or xpu. [default: the best there is]"),
    ):
        function = option(function)
    return function


@contextlib.contextmanager
def progress_bar(description: str, *, quiet: bool = False) -> Iterator[Progress]:
    """Yields a Progress that draws a bar on stderr; where stderr is no terminal, a line every few seconds."""
    if quiet:
        from genkit.pipeline import silent

        yield silent
    elif sys.stderr.isatty():
        with _bar(description) as progress:
            yield progress
    else:
        yield _lines(description)


@contextlib.contextmanager
def _bar(description: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(escape(description), total=None, note="")

        def progress(step: int, total: int, *, preview: Callable[[], Any] | None = None, note: str = "") -> None:
            bar.update(task, completed=step, total=total, note=escape(note))

        yield progress


def _lines(description: str) -> Progress:
    last = time.monotonic()

    def progress(step: int, total: int, *, preview: Callable[[], Any] | None = None, note: str = "") -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_EVERY:
            last = time.monotonic()
            click.echo(f"{description}: {step} of {total}" + (f" ({note})" if note else ""), err=True)

    return progress
