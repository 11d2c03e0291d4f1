"""Write a model in a format that other programs run: ONNX, checked against onnxruntime.

    genkit export noto-to-blob --to onnx -o blob.onnx

The path written goes to stdout, what is to be known of the file to stderr. A file that `-o` names is replaced, whole or
not at all; without `-o` a name that is free is taken in the working folder.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from genkit.cli import _common
from genkit.cli._generate import GenerateCommand
from genkit.exporting import FORMATS

if TYPE_CHECKING:
    from genkit.exporting import Exported

__all__ = ["command"]

EXAMPLES = [
    "genkit export noto-to-blob --to onnx -o blob.onnx",
    "genkit export checkpoints/horse2zebra/latest_net_G.pth   # writes latest_net_G.onnx",
    "genkit export latest_net_G.pth --opset 20 --json         # what went in and out, as JSON",
]


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Aliases, then files."""
    from genkit.exporting import aliases

    names = [name for format in FORMATS for name in aliases(format) if name.startswith(incomplete)]
    return [*map(CompletionItem, names)] or [CompletionItem(incomplete, type="file")]


@click.command(cls=GenerateCommand, examples=EXAMPLES)
@click.argument("model", shell_complete=_complete)
@click.option("--to", "format", default="onnx", show_default=True, type=click.Choice(FORMATS), help="The format.")
@click.option(
    "--output",
    "-o",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Where to write; replaced if it is there. [default: a new MODEL.onnx in the working folder]",
)
@click.option("--opset", type=int, metavar="N", help="ONNX operators of this version, 18 to 25. [default: 18]")
@click.option(
    "--check/--no-check", default=True, show_default=True, help="Compare the file's results with the network's."
)
@click.option("--pipeline", metavar="NAME", help="Whose model it is, where several pipelines could read it.")
@_common.json_option
@_common.quiet_option
def command(
    model: str,
    format: str,
    output: Path | None,
    opset: int | None,
    check: bool,
    pipeline: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write MODEL in a format that other programs run; the file is kept only if onnxruntime gives the same numbers.

    MODEL is an alias of `genkit models`, a hub id, a folder or a file. Sizes that the network leaves free are free in
    the file; the range of its values and the multiples that sizes must be of are printed, and stand in its metadata.
    """
    from genkit.exporting import export

    own = f"{_stem(model)}.{format}"
    if output is None or os.path.isdir(output):  # noqa: PTH112 - Path's raises for a name that is too long
        output = _free((output or Path()) / own)
    with _common.progress_bar(f"export {model}", quiet=quiet) as progress:
        done = export(model, output, format, pipeline=pipeline, opset=opset, check=check, progress=progress)
    if as_json:
        _common.echo_json(dataclasses.asdict(done))
        return
    _common.data(str(done.file))
    for line in () if quiet else _words(done):
        _common.note(line)


def _stem(model: str) -> str:
    """A file's name for a model: of an alias itself, of a path or hub id its last part, without a model's suffix."""
    name = Path(model.partition("@")[0]).name
    return name.removesuffix(Path(name).suffix) or "model"


def _free(path: Path) -> Path:
    """`path`, or the first of `path_2`, `path_3`, ... that is not there."""
    names = (path if n == 1 else path.with_stem(f"{path.stem}_{n}") for n in itertools.count(1))
    return next(name for name in names if not os.path.exists(name))  # noqa: PTH110 - as above


def _words(done: Exported) -> list[str]:
    """What is to be known of the file, a line each."""
    numbers = "not compared with the network's"
    if done.difference is not None:
        numbers = f"onnxruntime's numbers differ by {done.difference:.1e} at most"
    return [
        f"{done.words}: {done.bytes / 1e6:.1f} MB, opset {done.opset}; {numbers}",
        done.takes,
        *done.notes,
    ]
