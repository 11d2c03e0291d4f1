"""Measure a model or what it made: likelihood, musical statistics, memorisation.

    genkit evaluate midi --model M DIR

Evaluations belong to pipelines (see `genkit.evaluation`); each is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from genkit.cli import _common

if TYPE_CHECKING:
    from genkit.evaluation import Evaluation, Report

__all__ = ["command"]


class EvaluateGroup(click.Group):
    """Lists evaluations without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from genkit.evaluation import evaluations

        return list(evaluations())

    def get_command(self, ctx: click.Context, name: str) -> click.Command:
        from genkit.cli import with_debug
        from genkit.evaluation import find

        return with_debug(_command_for(name, find(name)))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from genkit.evaluation import evaluations
        from genkit.registry import first_line

        rows = [(name, first_line(place.partition(":")[0])) for name, place in evaluations().items()]
        if rows:
            with formatter.section("Evaluations"):
                formatter.write_dl(rows)


class _Argument(click.Argument):
    """An argument that the help explains."""

    section = "Arguments"

    def __init__(self, *args: Any, description: str, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.description = description  # newer clicks print a `help` in a section of their own

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        return self.make_metavar(ctx), self.description


@click.command(
    "evaluate", cls=EvaluateGroup, epilog="`genkit evaluate NAME --help` explains what is measured, and how."
)
def command() -> None:
    """Measure a model or what it made: likelihood, musical statistics, memorisation."""


def _command_for(name: str, evaluation: type[Evaluation]) -> click.Command:
    from genkit.cli import _flags
    from genkit.cli._generate import GenerateCommand
    from genkit.registry import first_line

    @_common.json_option
    @_common.quiet_option
    def holder() -> None: ...

    common = list(reversed(holder.__click_params__))  # type: ignore[attr-defined]
    taken = {flag for option in common for flag in option.opts} | {"-h", "--help", "--debug"}
    own = {option.name: option for option in _flags.options(evaluation.Params, taken)}
    positional = [_argument(evaluation, field) for field in evaluation.arguments]
    flags = [option for key, option in own.items() if key not in {argument.name for argument in positional}]
    return GenerateCommand(
        name=name,
        params=[*positional, *flags, *common],
        callback=lambda **values: _evaluate(name, evaluation, values),
        help=evaluation.__doc__ or first_line(evaluation.__module__),
        examples=list(evaluation.examples),
    )


def _argument(evaluation: type[Evaluation], field: str) -> _Argument:
    from genkit.cli._flags import PREFIX

    info = evaluation.Params.model_fields[field]
    several = evaluation.Params.model_json_schema()["properties"][field].get("type") == "array"
    return _Argument(
        [PREFIX + field],
        metavar=field.upper() + ("..." if several else ""),
        nargs=-1 if several else 1,
        required=info.is_required(),
        description=info.description or "",
    )


def _evaluate(name: str, evaluation: type[Evaluation], values: Mapping[str, Any]) -> None:
    from genkit.cli import _flags

    params = evaluation.Params.parse(_flags.given(evaluation.Params, values))
    with _common.progress_bar(f"evaluate {name}", quiet=values["quiet"]) as progress:
        report = evaluation().run(params, progress)
    if values["as_json"]:
        _common.echo_json(report.record())
    else:
        _print(report, quiet=values["quiet"])


def _print(report: Report, *, quiet: bool) -> None:
    """Tables to stdout; what they are of, and what must be known about them, to stderr."""
    say = (lambda text: None) if quiet else _common.note
    if report.facts:
        say(", ".join(f"{_cell(value)} {key.replace('_', ' ')}" for key, value in report.facts.items()))
    for title, rows in report.tables.items():
        if rows:
            say(f"\n{title.replace('_', ' ')}")
            _common.table([*map(_title, rows[0])], [[_cell(value) for value in row.values()] for row in rows])
    for text in report.notes:
        say(text)


def _title(column: str) -> str:
    return column.replace("_", " ")


def _cell(value: Any) -> str:
    if value is None or value != value:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
