"""Parameters by the names that people know them by from elsewhere: read everywhere, recorded nowhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import click
import jsonschema
import pytest
import yaml
from pydantic import Field

import genkit.pipeline
from genkit import registry
from genkit.batch import plan, recipe, schema
from genkit.cli._generate import command_for
from genkit.errors import GenkitError, InputError, RecipeError
from genkit.fields import ImageFile, Number, Steps
from genkit.media.image import Image
from genkit.pipeline import Output


class Params(genkit.pipeline.Params):
    aliases: ClassVar[Mapping[str, str]] = {
        "steps": "num_inference_steps",
        "n_iter": "num_images_per_prompt",
        "batch_size": "num_images_per_prompt",
        "init": "image",
    }

    num_inference_steps: Annotated[int, Steps(1, 100)] = Field(20, description="Steps.")
    num_images_per_prompt: Annotated[int, Number(1, 8)] = Field(1, description="How many.")
    image: ImageFile | None = Field(None, description="A picture.")


class Grey(genkit.pipeline.Pipeline):
    """Grey pictures, as dark as their steps."""

    name = "test-grey"
    Params = Params

    def run(self, batch: Any, progress: Any) -> list[Output]:
        import torch

        return [
            Output(images=[Image.from_tensor(torch.full((3, 4, 4), params.num_inference_steps / 100))])
            for params in batch
        ]


@pytest.fixture(autouse=True)
def grey(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipeline above, registered."""
    names, get = registry.pipelines, registry.get
    monkeypatch.setattr(registry, "pipelines", lambda: [*names(), Grey.name])
    monkeypatch.setattr(registry, "get", lambda name: Grey if name == Grey.name else get(name))
    monkeypatch.setattr(registry, "summary", lambda name: "Grey pictures.")


def planned(text: str, *overrides: str, root: Path | str = ".") -> list[Any]:
    read = recipe.parse(f"pipeline: test-grey\n{text}", root=root, overrides=overrides)
    return list(plan.make(read).jobs)


def test_a_parameter_goes_by_its_alias_and_is_recorded_by_its_name() -> None:
    params = Params.parse({"steps": "30", "n_iter": 2, "seed": 1})
    assert params == Params.parse({"num_inference_steps": 30, "num_images_per_prompt": 2, "seed": 1})
    assert params.record() == {"seed": 1, "num_inference_steps": 30, "num_images_per_prompt": 2}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"steps": 3, "num_inference_steps": 3}, "steps and num_inference_steps are both given, and both mean num_inf"),
        ({"n_iter": 2, "batch_size": 2}, "n_iter and batch_size are both given, and both mean num_images_per_prompt"),
        ({"steps": 0}, "num_inference_steps 0 is out of range: it must be 1 to 100"),
        ({"stepps": 3}, "unknown parameter 'stepps': did you mean 'steps'"),
        ({"num_inference_stps": 3}, "did you mean 'num_inference_steps'"),
    ],
)
def test_what_is_wrong_is_one_line(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Params.parse(values)


def test_keywords() -> None:
    from genkit.runtime import Runtime

    torch = pytest.importorskip("torch")
    output = Grey(None, Runtime(torch.device("cpu")))(steps=50, seed=1)
    assert output.provenance is not None
    assert output.provenance.params["num_inference_steps"] == 50
    assert "steps" not in output.provenance.params


def typed(*words: str) -> dict[str, Any]:
    """The parameters that a command line comes to."""
    from genkit.cli import _flags

    command = command_for(Grey.name)
    with command.make_context("test-grey", [*words]) as context:
        return _flags.given(Params, context.params)


def test_flags() -> None:
    assert Params.parse(typed("--steps", "7", "--batch-size", "2")).record() == {
        "num_inference_steps": 7,
        "num_images_per_prompt": 2,
    }
    for twice in (("--steps", "7", "--num-inference-steps", "7"), ("--n-iter", "2", "--batch-size", "2")):
        with pytest.raises(InputError, match="are both given, and both mean"):
            Params.parse(typed(*twice))
    with pytest.raises(click.exceptions.NoSuchOption):
        typed("--stepz", "3")


def test_help_tells_of_other_names_once() -> None:
    command = command_for(Grey.name)
    text = " ".join(command.get_help(click.Context(command)).split())
    assert "also --steps]" in text
    assert "also --n-iter, --batch-size]" in text
    assert text.count("--steps") == 1


def test_a_recipe_takes_them_wherever_parameters_stand() -> None:
    own = "params: {num_inference_steps: 9, seed: 1}\nmatrix: {num_images_per_prompt: [1, 2]}\n"
    other = "params: {steps: 9, seed: 1}\nmatrix: {n_iter: [1, 2]}\n"
    jobs = planned(other)
    assert [job.params for job in jobs] == [
        {"seed": 1, "num_inference_steps": 9, "num_images_per_prompt": n} for n in (1, 2)
    ]
    assert [(job.id, job.output) for job in jobs] == [(job.id, job.output) for job in planned(own)]


@pytest.mark.parametrize(
    "text",
    [
        "matrix: {steps: [10, 20]}",
        "zip: {steps: [10, 20], n_iter: [1, 1]}",
        "rows: [{steps: 10}, {steps: 20}]",
        "rows: steps.csv",
        "params: {steps: 5}\nrows: [{num_inference_steps: 10}, {steps: 20}]",
        "include: [{steps: 10}, {steps: 20}]",
        "matrix: {steps: [10, 20, 30]}\nexclude: [{steps: 30}]",
        "matrix: {num_inference_steps: [10, 20, 30]}\nexclude: [{steps: 30}]",
        "params: {steps: '{n}'}\nmatrix: {n: [10, 20]}",
    ],
)
@pytest.mark.parametrize("output", ["{steps}.png", "{num_inference_steps}.png", "{steps:02d}.png"])
def test_tables_and_templates(text: str, output: str, tmp_path: Path) -> None:
    (tmp_path / "steps.csv").write_text("steps\n10\n20\n")
    jobs = planned(f"{text}\noutput: '{output}'\n", root=tmp_path)
    assert [job.params["num_inference_steps"] for job in jobs] == [10, 20]
    assert [job.output for job in jobs] == ["10.png", "20.png"]


def test_files_by_another_name(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.from_tensor(pytest.importorskip("torch").zeros(3, 4, 4)).save(tmp_path / name)
    jobs = planned("files: {init: '*.png'}\noutput: '{init.stem}-{image.stem}.png'\n", root=tmp_path)
    assert [job.output for job in jobs] == ["a-a.png", "b-b.png"]
    assert all(set(job.inputs) == {"image"} for job in jobs)


def test_a_later_stage_knows_them() -> None:
    stages = {
        "stages": [
            {"name": "first", "pipeline": "test-grey", "matrix": {"steps": [3, 4]}, "output": "{steps}.png"},
            {
                "name": "second",
                "pipeline": "test-grey",
                "files": {"init": {"stage": "first"}},
                "output": "{first.steps}-{steps}.png",
            },
        ]
    }
    jobs = list(plan.make(recipe.parse(yaml.safe_dump(stages, sort_keys=False))).jobs)
    assert [job.output for job in jobs if job.stage == "second"] == ["3-20.png", "4-20.png"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("params: {steps: 1, num_inference_steps: 1}", "recipe:2:.*steps and num_inference_steps are both given"),
        ("matrix: {steps: [1], num_inference_steps: [1]}", "recipe:2:.*are both given"),
        ("rows: [{steps: 1, num_inference_steps: 1}]", "are both given"),
        ("params: {steps: 1}\nmatrix: {num_inference_steps: [1]}", "is set both here and under params"),
        ("params: {steps: 999}", r"recipe:2:10: .*num_inference_steps 999 is out of range"),
        ("matrix: {n_iter: [1], steps: [999]}", r"recipe:2:23: .*num_inference_steps 999 is out of range"),
        ("steps: 4", "'steps' is a parameter; write it under params"),
        ("params: {stepz: 4}", "unknown parameter 'stepz': did you mean 'steps'"),
    ],
)
def test_a_recipe_that_is_wrong_says_where(text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        planned(text)


def test_what_is_set_on_the_command_line_wins_by_any_name() -> None:
    assert planned("params: {num_inference_steps: 5}", "params.steps=7")[0].params["num_inference_steps"] == 7
    assert planned("params: {steps: 5}", "params.num_inference_steps=7")[0].params["num_inference_steps"] == 7
    assert planned("params: {steps: 5}", "params.steps=null")[0].params["num_inference_steps"] == 20
    assert planned("params: {n_iter: 5}", "params.batch_size=2")[0].params["num_images_per_prompt"] == 2


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("params: {steps: 5}\nmatrix: {n_iter: [1, 2]}\nrows: [{batch_size: 1}]", True),
        ("params: {steps: '{n}'}\nmatrix: {n: [1]}", True),
        ("params: {steps: many}", False),
        ("matrix: {steps: [0]}", False),
        ("params: {stepz: 5}", False),
    ],
)
def test_editors_know_them(text: str, fits: bool) -> None:
    form = json.loads(json.dumps(schema.recipe_schema()))
    value = yaml.safe_load(f"pipeline: test-grey\n{text}")
    assert jsonschema.Draft7Validator(form).is_valid(value) is fits


def test_every_alias_of_every_pipeline_means_a_parameter_that_is_there() -> None:
    for name in registry.pipelines():
        try:
            kind = registry.get(name)
        except GenkitError:
            continue
        assert set(kind.Params.aliases.values()) <= set(kind.Params.model_fields)
        assert not set(kind.Params.aliases) & set(kind.Params.model_fields)


def test_stable_diffusion_knows_a1111s_names() -> None:
    kind = registry.get("stable-diffusion")
    theirs = {"steps": 12, "cfg_scale": 6, "sampler": "Euler a", "n_iter": 3}
    ours = {"num_inference_steps": 12, "guidance_scale": 6, "scheduler": "Euler a", "num_images_per_prompt": 3}
    params = kind.Params.parse({"prompt": "a fox", **theirs})
    assert params == kind.Params.parse({"prompt": "a fox", **ours})
    assert {"denoising_strength", "batch_size"} <= set(kind.Params.aliases)
