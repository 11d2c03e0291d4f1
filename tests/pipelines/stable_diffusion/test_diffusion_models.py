"""The models that go by an alias: each has defaults that its family and the sampler list know."""

from __future__ import annotations

import re

import pytest

from pipelines.stable_diffusion import schedulers
from pipelines.stable_diffusion.families import FAMILIES
from pipelines.stable_diffusion.models import DEFAULT, DEFAULTS, MODELS, alias_of
from pipelines.stable_diffusion.pipeline import Params


def test_every_alias_has_defaults_and_every_default_an_alias():
    assert MODELS.keys() - DEFAULTS.keys() == {"emoji"}  # whose folder states its own
    assert DEFAULTS.keys() <= MODELS.keys()
    assert DEFAULT in MODELS
    assert len(MODELS) > 12


@pytest.mark.parametrize("alias", DEFAULTS)
def test_defaults_are_values_that_a_request_may_state(alias):
    own = DEFAULTS[alias]
    params = Params.parse(
        {
            "prompt": "x",
            "width": own.width,
            "height": own.height,
            "num_inference_steps": own.num_inference_steps,
            "guidance_scale": own.guidance_scale,
            "scheduler": own.scheduler,
            "negative_prompt": own.negative_prompt,
        }
    )
    assert params.width == own.width
    assert own.width % 16 == own.height % 16 == 0
    if own.scheduler:
        config = {"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear", "steps_offset": 1}
        assert schedulers.make(own.scheduler, config) is not None


@pytest.mark.parametrize("alias", MODELS)
def test_every_alias_says_what_it_is(alias):
    model = MODELS[alias]
    assert re.fullmatch(r"shipped:[\w./]+|[\w.-]+/[\w.-]+", model.ref)
    assert re.match(r"[\d.]+ [GM]B", model.size)
    assert model.summary
    assert model.licence
    assert model.needs or model.ref.startswith("shipped:")


def test_a_hub_id_has_the_defaults_of_its_alias():
    assert alias_of("sdxl") == "sdxl"
    assert alias_of("stabilityai/sdxl-turbo") == "sdxl-turbo"
    assert alias_of("hub:stabilityai/sdxl-turbo@main") == "sdxl-turbo"
    assert alias_of("stabilityai/another") is None


def test_the_command_lists_them(run):
    done = run("models", "stable-diffusion", "--json")
    assert done.status == 0
    assert all(f'"{alias}"' in done.out for alias in MODELS)


def test_every_class_that_a_family_names_is_diffusers():
    import diffusers

    for family in FAMILIES.values():
        for control in (False, True):
            for name in family.pipelines(control=control).values():
                assert hasattr(diffusers, name), name
