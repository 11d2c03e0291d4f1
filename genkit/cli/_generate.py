"""A pipeline's own command, made from its Params.

    genkit style-transfer --content photo.jpg --style night.jpg --seed 7 -o out.png

    genkit midi-generation --bars 8 -o tune.mid --render tune.wav --render tune.png

The paths written go to stdout, one a line. A file that `-o` or `--render` names is replaced, whole or not at all;
without `-o` a name that is free is taken in the working folder, and nothing is replaced.
"""

from __future__ import annotations

import itertools
import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from genkit import registry
from genkit.cli import _common, _flags
from genkit.errors import GenkitError

if TYPE_CHECKING:
    from genkit.pipeline import Output, Params, Pipeline

__all__ = ["command_for"]

SUFFIXES = {"image": ".png", "audio": ".wav", "midi": ".mid"}
COMMON = "Output and device"


class GenerateCommand(click.Command):
    """Prints its options by section, and examples that can be copied."""

    def __init__(self, *, examples: list[str], **settings: Any) -> None:
        super().__init__(**settings)
        self.examples = examples

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                sections[_title(getattr(param, "section", COMMON))].append(record)
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Examples"):
            for example in self.examples:  # written as they are: a wrapped line could not be copied
                formatter.write(f"{'':{formatter.current_indent}}{example}\n")


def _title(section: str) -> str:
    return "Parameters" if section in ("", "main") else section[:1].upper() + section[1:]


def command_for(name: str) -> click.Command:
    """The command of the pipeline registered as `name`."""
    pipeline = registry.get(name)
    common = _common_options(name, pipeline)
    taken = {flag for option in common for flag in (*option.opts, *option.secondary_opts)} | {"-h", "--help", "--debug"}
    own = _flags.options(pipeline.Params, taken)
    for option in own:
        clash = taken & {*option.opts, *option.secondary_opts}
        if clash:
            raise GenkitError(f"pipeline {name!r} has a parameter called as the common flag {min(clash)}; rename it")
    return GenerateCommand(
        name=name,
        params=[*own, *common],
        callback=lambda **values: _generate(name, pipeline, values),
        help=registry.summary(name),
        examples=list(pipeline.examples) or [_example(name, pipeline)],
    )


def _common_options(name: str, pipeline: type[Pipeline]) -> list[click.Option]:
    suffix = SUFFIXES.get(pipeline.produces, "")
    aliases = ", ".join(pipeline.models)
    models = f"An alias ({aliases}), a hub id, a folder or a file." if aliases else "A hub id, a folder or a file."
    default = f" [default: {pipeline.default_model}]" if pipeline.default_model else ""

    @click.option("--model", "-m", metavar="MODEL", help=models + default)
    @click.option(
        "--output",
        "-o",
        metavar="FILE",
        help=f"Where to write; replaced if it is there. [default: a new {name}-SEED{suffix} in the working folder]",
    )
    @_render_options(pipeline)
    @_common.runtime_options
    @click.option("--show-recipe", is_flag=True, help="Print the recipe that does the same by `genkit run`, and stop.")
    @_common.json_option
    @_common.quiet_option
    def holder() -> None: ...

    return list(reversed(holder.__click_params__))


def _render_options(pipeline: type[Pipeline]) -> Callable[[Any], Any]:
    """--render and --soundfont for a pipeline that makes music, --render for one that makes a sound."""
    whats = {
        "midi": "Also write its sound (.wav .flac .ogg .mp3), piano roll (.png) or notation (.musicxml); repeatable.",
        "audio": "Also write its spectrogram (.png), under that of the sound that went in.",
    }

    def add(function: Any) -> Any:
        if pipeline.produces not in whats:
            return function
        what = whats[pipeline.produces]
        if pipeline.produces == "audio":
            return click.option("--render", "renders", metavar="FILE", multiple=True, help=what)(function)
        soundfont = "An .sf2 or .sf3 file that the sound is played with. [default: General MIDI]"
        function = click.option("--soundfont", metavar="FILE", help=soundfont)(function)
        return click.option("--render", "renders", metavar="FILE", multiple=True, help=what)(function)

    return add


def _example(name: str, pipeline: type[Pipeline]) -> str:
    """A line that works once its files are there: the required parameters."""
    words = [name]
    files = pipeline.Params.file_fields()
    for field, info in pipeline.Params.model_fields.items():
        if info.is_required():
            kind = files.get(field)
            value = f"{field}{ {'image': '.jpg', 'audio': '.wav', 'midi': '.mid'}.get(kind, '') }" if kind else "..."
            words += ["--" + field.replace("_", "-"), value]
    return " ".join(["genkit", *words, "--seed", "7", "-o", "out" + SUFFIXES.get(pipeline.produces, "")])


def _generate(name: str, pipeline: type[Pipeline], values: Mapping[str, Any]) -> None:
    from genkit.media import rendering

    params = pipeline.Params.parse(_flags.given(pipeline.Params, values)).resolved()
    if values["show_recipe"]:
        _common.data(_recipe(name, params, values))
        return
    target, is_default = _target(name, pipeline, params, values["output"])
    renders, soundfont = values.get("renders") or (), values.get("soundfont")
    if renders or soundfont:
        rendering.check(renders, soundfont, pipeline.produces)
    quiet = values["quiet"]
    loaded = registry.load(
        name,
        model=values["model"],
        device=values["device"],
        dtype=values["dtype"],
        deterministic=values["deterministic"],
    )
    with _common.progress_bar(name, quiet=quiet) as progress:
        output = loaded.generate([params], progress)[0]
    paths = output.save(_free(output, target) if is_default else target)
    try:
        paths += output.render(*renders, soundfont=soundfont) if renders else []
    finally:  # the piece is there and is told even if a rendering of it fails
        _tell(pipeline, output, paths, values)


def _target(name: str, pipeline: type[Pipeline], params: Params, output: str | None) -> tuple[Path, bool]:
    """The path to write, and whether its name is ours; asked before anything is computed whether it can be written."""
    from genkit.media.files import check_target

    own = f"{name}-{params.seed}{SUFFIXES.get(pipeline.produces, '')}"
    if output is None:
        return check_target(own, pipeline.produces), True
    if output.endswith("/") or os.path.isdir(output):  # noqa: PTH112 - Path's raises for a name that is too long
        return check_target(Path(output) / own, pipeline.produces), True
    return check_target(output, pipeline.produces), False


def _free(output: Output, path: Path) -> Path:
    """`path`, or the first of `path_2`, `path_3`, ... under which nothing would be replaced."""
    names = (path if n == 1 else path.with_stem(f"{path.stem}_{n}") for n in itertools.count(1))
    return next(name for name in names if not any(file.exists() for file in output.paths(name)))


def _remarks(output: Output) -> dict[str, Any]:
    remarks = {"found": output.found, "notes": output.notes, "degraded": output.degraded}
    return {name: value for name, value in remarks.items() if value}


def _tell(pipeline: type[Pipeline], output: Output, paths: list[Path], values: Mapping[str, Any]) -> None:
    if values["as_json"]:
        _common.echo_json(
            {"files": [str(path) for path in paths], "seeds": output.seeds, "info": output.info, **_remarks(output)}
        )
        return
    for path in paths:
        _common.data(str(path))
    remarks = dict.fromkeys([*output.notes, *output.degraded.split("; ")])  # tiles are in both
    for text in filter(None, remarks if not values["quiet"] else ()):
        _common.note(text)
    drawn = values[_flags.PREFIX + "seed"] is None and pipeline.Params.model_fields["seed"].default is None
    if drawn and not values["quiet"]:
        _common.note(f"seed {output.seeds[0]} (drawn; --seed {output.seeds[0]} makes it again)")


def _recipe(name: str, params: Params, values: Mapping[str, Any]) -> str:
    """The recipe of one job. Braces are doubled, since a recipe's texts are templates."""
    import yaml

    written = params.model_dump(mode="json", exclude_unset=True, exclude_none=True) | {"seed": params.seed}
    recipe = {"pipeline": name, "model": values["model"], "params": _escaped(written)}
    if values["output"]:
        recipe["output"] = _escaped(Path(values["output"]).name)
    if values.get("renders"):
        recipe["render"] = [_escaped(Path(path).name) for path in values["renders"]]
        recipe["soundfont"] = values.get("soundfont") and _escaped(values["soundfont"])
    stated = {key: value for key, value in recipe.items() if value is not None}
    return yaml.safe_dump(stated, sort_keys=False, allow_unicode=True, width=110).rstrip("\n")


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("{", "{{").replace("}", "}}")
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return {key: _escaped(item) for key, item in value.items()} if isinstance(value, dict) else value
