"""Train a model by a recipe; stop it whenever you like and go on with --resume."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import click

from genkit.cli._common import data, echo_json, json_option, note, progress_bar, quiet_option

__all__ = ["command"]


def _list(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from genkit import shipped
    from genkit.training.recipe import trainings

    data("Training tasks:")
    for name in trainings():
        data(f"  {name}")
    data("Training recipes that come with genkit:")
    for name in shipped.recipes():
        if name.startswith("train/"):
            data(f"  {name.removeprefix('train/')}")
    ctx.exit()


@click.command("train")
@click.argument("recipe")
@click.option("--list", is_flag=True, is_eager=True, expose_value=False, callback=_list, help="Show what there is.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Set a value of the recipe (data=DIR, steps=1000)."
)
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder. [default: runs/NAME]")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint.")
@click.option("--restart", is_flag=True, help="Throw away the run in the folder and begin again.")
@click.option("--export", "export_only", is_flag=True, help="Train nothing: export the newest checkpoint.")
@click.option("--debug", is_flag=True, help="The recipe's small size, to see that it works (in runs/NAME-debug).")
@click.option("--strict", is_flag=True, help="Stop at an unreadable data file instead of leaving it out.")
@click.option(
    "--max-minutes", type=click.FloatRange(min=0), help="Stop after so long, with a checkpoint and an export."
)
@click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps or xpu. [default: the best there is]")
@quiet_option
@json_option
def command(
    recipe: str,
    overrides: tuple[str, ...],
    out: Path | None,
    resume: bool,
    restart: bool,
    export_only: bool,
    debug: bool,
    strict: bool,
    max_minutes: float | None,
    device: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train a model by a recipe; stop it whenever you like and go on with --resume.

    RECIPE is a file, or the name of one that comes with genkit (--list). Checkpoints, metrics.jsonl, TensorBoard files,
    samples and the exported model are left in the run's folder; where the export is, is printed at the end.

    On several GPUs: accelerate launch --multi_gpu -m genkit train RECIPE
    """
    if resume and restart:
        raise click.UsageError("--resume goes on with a run and --restart throws it away; give one of them")
    from genkit.training.loading import load

    training = load(recipe, overrides=[*overrides, *(["strict=true"] if strict else [])], debug=debug)
    name = training.recipe.name + ("-debug" if debug else "")
    folder = out or Path("runs") / name
    from genkit.training.trainer import Result, Trainer

    quiet = quiet or os.environ.get("RANK", "0") != "0"  # of several processes one speaks
    with progress_bar(name, quiet=quiet) as progress:
        trainer = Trainer(
            training.task,
            training.recipe,
            folder,
            config=training.config,
            device=device,
            progress=progress,
            say=(lambda text: None) if quiet else note,
        )
        if export_only:
            exported = trainer.export()
            result = Result(trainer.step, trainer.step >= training.recipe.steps, exported=exported)
        else:
            # A debug run in its usual place is never worth keeping.
            restart = restart or (debug and not out and not resume)
            result = trainer.train(resume=resume, restart=restart, max_minutes=max_minutes)
        trainer.close()
    if result.exported is None:  # of several processes one writes
        return
    if as_json:
        echo_json(dataclasses.asdict(result))
    else:
        data(str(result.exported))
