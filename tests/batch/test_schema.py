"""The JSON Schema agrees with the planner: checked by an implementation that is not ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from genkit import shipped, yaml
from genkit.batch import plan, recipe
from genkit.batch.schema import recipe_schema
from genkit.errors import RecipeError

RIGHT = [
    "pipeline: test-noise",
    "pipeline: test-noise\nparams: {width: 5, strength: 0.5, seed: 1}",
    "pipeline: test-noise\nparams: {width: '{size}'}\nmatrix: {size: [4, 5], seed: [1, 2]}",
    "pipeline: test-noise\nzip: {width: [4, 5], look: [a, b]}\noutput: '{look}.png'",
    "pipeline: test-noise\nrows: [{width: 4, look: a}]\noutput: '{look}.png'",
    "pipeline: test-noise\nmatrix: {width: [4]}\ninclude: [{height: 5}]\nexclude: [{width: 5}]",
    "name: x\ndescription: y\nmax_jobs: 5\nstages: [{name: a, pipeline: test-noise}, {name: b, pipeline: test-noise, "
    "files: {content: {stage: a, take: 1}}}]",
    "stages: [{pipeline: test-tone, params: {pitch: 100}}, {pipeline: test-tune}]",
    "pipeline: test-tune\nrender: png",
    "pipeline: test-tone\nrender: [png]",
    "pipeline: test-tune\nrender: [wav, 'rolls/{stem}.png', musicxml]",
    "stages: [{name: a, pipeline: test-tune, render: [wav]}, {name: b, pipeline: test-tone, "
    "files: {source: {stage: a, take: wav}}}]",
]
WRONG = [
    "name: x",
    "pipeline: other",
    "pipeline: test-noise\nprompt: x",
    "pipeline: test-noise\nparams: {pitch: 3}",
    "pipeline: test-noise\nparams: {width: 0}",
    "pipeline: test-noise\nparams: {width: many}",
    "pipeline: test-noise\nparams: {strength: 2}",
    "pipeline: test-noise\nmatrix: {width: 3}",
    "pipeline: test-noise\nmatrix: {width: []}",
    "pipeline: test-noise\nmatrix: {width: [0]}",
    "pipeline: test-noise\nmatrix: {'a b': [0]}",
    "pipeline: test-noise\nrows: [1]",
    "pipeline: test-noise\nfiles: {content: {stag: a}}",
    "pipeline: test-noise\nmax_jobs: 0",
    "stages: []",
    "pipeline: test-noise\nrender: [png]",
    "pipeline: test-noise\nsoundfont: a.sf2",
    "pipeline: test-tone\nrender: [wav]",
    "pipeline: test-tone\nrender: [png]\nsoundfont: a.sf2",
    "pipeline: test-tune\nrender: []",
    "pipeline: test-tune\nrender: [jpg]",
    "pipeline: test-tune\nrender: [wav, wav]",
    "pipeline: test-tune\nrender: ['{stem}']",
    "stages: [{name: a}]",
    "stages: [{pipeline: test-noise, params: {pitch: 3}}]",
    "stages: [{pipeline: test-noise}]\nparams: {}",
    "[]",
]


@pytest.fixture
def valid(noise_pipeline: str):
    schema = recipe_schema()
    jsonschema.Draft7Validator.check_schema(schema)
    validator = jsonschema.Draft7Validator(schema)
    return lambda value: validator.is_valid(value)


@pytest.mark.parametrize("text", RIGHT)
def test_what_plans_is_valid(valid, tmp_path: Path, text: str) -> None:
    assert plan.make(recipe.parse(text, root=tmp_path)).jobs
    assert valid(yaml.parse(text).value)


@pytest.mark.parametrize("text", WRONG)
def test_what_does_not_plan_is_not_valid(valid, tmp_path: Path, text: str) -> None:
    with pytest.raises(RecipeError):
        plan.make(recipe.parse(text, root=tmp_path))
    assert not valid(yaml.parse(text).value)


@pytest.mark.parametrize("name", shipped.recipes())
def test_shipped_recipes_are_valid(valid, name: str) -> None:
    assert valid(yaml.read(shipped.recipes()[name]).value)


def test_every_reference_leads_somewhere(noise_pipeline: str) -> None:
    schema = recipe_schema()

    def references(value: Any) -> list[str]:
        if isinstance(value, list):
            return [r for item in value for r in references(item)]
        if not isinstance(value, dict):
            return []
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [r for item in value.values() for r in references(item)]

    assert references(schema)
    for reference in references(schema):
        target: Any = schema
        for step in reference.removeprefix("#/").split("/"):
            target = target[step]
