"""The command line: `genkit COMMAND` and `genkit PIPELINE`, each imported only when it is asked for.

A command is a file of this folder with a click command named `command`; the first line of its docstring sums it up.

Data goes to stdout, everything else to stderr. Every failure is one line and an exit status: those of `genkit.errors`,
and 1 for a fault of genkit's own, 2 for a wrong flag, 130 and 143 for an interruption.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import errno
import importlib
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
from click.shell_completion import CompletionItem

from genkit import registry
from genkit._version import __version__
from genkit.errors import GenkitError

__all__ = ["cli", "main"]

FOLDER = Path(__file__).parent
DEBUG = "debug"


def commands() -> dict[str, str]:
    """The commands of this folder: name -> module. A file `list_.py` is the command `list`."""
    stems = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))
    return {stem.rstrip("_").replace("_", "-"): f"genkit.cli.{stem}" for stem in stems}


class LazyGroup(click.Group):
    """Lists commands and pipelines without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*commands(), *registry.pipelines()]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        module = commands().get(name)
        if module is not None:
            return with_debug(importlib.import_module(module).command)
        if name not in registry.pipelines():
            return None
        from genkit.cli._generate import command_for

        return with_debug(command_for(name))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name in self.list_commands(ctx) or name.startswith("-"):
            return super().resolve_command(ctx, args)
        if name.endswith((".yaml", ".yml")):
            raise click.UsageError(f"to run a recipe: genkit run {name}", ctx)
        close = difflib.get_close_matches(name, self.list_commands(ctx), 1)
        hint = f"did you mean {close[0]!r}?" if close else "`genkit --help` lists what there is"
        raise click.UsageError(f"no command or pipeline is called {name[:80]!r}: {hint}", ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = {
            "Pipelines": [(name, registry.summary(name)) for name in registry.pipelines()],
            "Commands": [(name, _summary(module)) for name, module in commands().items()],
        }
        for title, section in rows.items():
            if section:
                with formatter.section(title):
                    formatter.write_dl(section)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        summaries = {name: registry.summary(name) for name in registry.pipelines()}
        summaries |= {name: _summary(module) for name, module in commands().items()}
        found = [CompletionItem(name, help=text) for name, text in summaries.items() if name.startswith(incomplete)]
        return found or click.Command.shell_complete(self, ctx, incomplete)


def _summary(module: str) -> str:
    """The first line of a command's docstring, read from its source."""
    source = (FOLDER / f"{module.rpartition('.')[2]}.py").read_text("utf-8")
    doc = ast.get_docstring(ast.parse(source))
    return doc.splitlines()[0] if doc else ""


def _debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and ctx.obj is not None:  # the state that `main` handed over; contexts inherit it
        ctx.obj[DEBUG] = True
        warnings.simplefilter("default")


def _debug_option() -> click.Option:
    return click.Option(
        ["--debug"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_debug,
        help="Show the traceback of an error.",
    )


def with_debug(command: click.Command) -> click.Command:
    """Gives a command the flag, unless it has one of that name for itself (`genkit train --debug`)."""
    if not any(param.name == "debug" for param in command.params):
        command.params.append(_debug_option())
    return command


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    params=[_debug_option()],
    epilog="`genkit PIPELINE --help` shows a pipeline's parameters, `genkit run RECIPE` makes a whole batch.",
)
@click.version_option(__version__, prog_name="genkit")
def cli() -> None:
    """Makes pictures, sound and MIDI: by a pipeline's own command, or in batches by a recipe."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status; the console script `genkit`."""
    state = {DEBUG: bool(os.environ.get("GENKIT_DEBUG"))}
    with _terminable(), warnings.catch_warnings():
        if not sys.warnoptions and not state[DEBUG]:
            warnings.simplefilter("ignore")  # a library's deprecations are not the reader's business
        try:
            result = cli.main(arguments, prog_name="genkit", standalone_mode=False, obj=state)
        except SystemExit:
            raise
        except BaseException as error:
            if state[DEBUG]:
                traceback.print_exc()
            return _report(error)
    return result if isinstance(result, int) else 0


def _report(error: BaseException) -> int:
    """One line on stderr for whatever ended the command, and its exit status."""
    if isinstance(error, GenkitError):
        return _say(str(error), error.exit_status)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return 2
    if isinstance(error, click.UsageError):
        where = error.ctx.command_path if error.ctx else "genkit"
        return _say(f"{_plain(error.format_message())} (see `{where} --help`)", 2)
    if isinstance(error, click.ClickException):
        return _say(error.format_message(), error.exit_code)
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return _say("stopped", 130)
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        return _closed_pipe()
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _say("no space left on the disk; free some and run the same command again", 4)
    if isinstance(error, OSError) and error.filename is not None:
        return _say(f"{error.filename}: {error.strerror}", 1)
    if isinstance(error, MemoryError):
        return _say("out of memory; make the work smaller", 1)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    what = f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"
    return _say(f"a fault in genkit: {what}; `genkit --debug ...` shows where from", 1)


def _say(message: str, status: int) -> int:
    line = " ".join(message.split())
    print(f"genkit: {line}", file=sys.stderr)  # noqa: T201 - the one place where a failure is printed
    return status


def _plain(message: str) -> str:
    """Click's message as ours are: without its full stop."""
    return message[:-1] if message.endswith(".") else message


def _closed_pipe() -> int:
    """The reader of a pipe (`genkit list | head`) left: nothing more can be said, not even at exit."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - lives to the end of the process
    return 1


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """While it lasts SIGTERM unwinds the stack like Ctrl-C does, so that no temporary file is left behind."""

    def stop(number: int, frame: Any) -> NoReturn:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
