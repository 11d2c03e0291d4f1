"""Check recipes without running them: every job's parameters, inputs, models and output names."""

from __future__ import annotations

import click

from genkit.cli._common import data, echo_json, json_option

__all__ = ["command"]


@click.command("validate")
@click.argument("recipes", nargs=-1, required=True)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Set a value (params.seed=4).")
@json_option
def command(recipes: tuple[str, ...], overrides: tuple[str, ...], as_json: bool) -> int:
    """Check recipes without running them: every job's parameters, inputs, models and output names.

    RECIPES are files or names of recipes that come with genkit. Exit status: 0 all are right, 2 one is not.
    """
    from genkit.batch import library, plan
    from genkit.batch.recipe import load
    from genkit.errors import GenkitError

    results = []
    for name in recipes:
        try:
            jobs = sum(1 for _ in plan.stream(load(library.find(name), overrides=overrides)))
            results.append({"recipe": name, "valid": True, "jobs": jobs, "error": None})
        except GenkitError as error:
            results.append({"recipe": name, "valid": False, "jobs": 0, "error": str(error)})
    if as_json:
        echo_json(results)
    for result in [] if as_json else results:
        if result["valid"]:
            data(f"{result['recipe']}: {result['jobs']} {'job' if result['jobs'] == 1 else 'jobs'}")
        else:
            click.echo(f"genkit: {result['error']}", err=True)
    return 0 if all(result["valid"] for result in results) else 2
