"""Samplers by name: what a name means, what it leaves to the model, and what it is refused for."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from genkit.errors import InputError, ModelError
from pipelines.stable_diffusion import schedulers

OWN = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "num_train_timesteps": 500,
    "prediction_type": "v_prediction",
    "skip_prk_steps": True,
    "steps_offset": 1,
    "clip_sample": False,
}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "use_dynamic_shifting": False}

A1111 = {
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "LMS": ("LMSDiscreteScheduler", {}),
    "LMS Karras": ("LMSDiscreteScheduler", {"use_karras_sigmas": True}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "DPM2": ("KDPM2DiscreteScheduler", {}),
    "DPM2 a Karras": ("KDPM2AncestralDiscreteScheduler", {"use_karras_sigmas": True}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "DPM++ 2M Exponential": ("DPMSolverMultistepScheduler", {"use_exponential_sigmas": True}),
    "DPM++ 2M SGM Uniform": ("DPMSolverMultistepScheduler", {"timestep_spacing": "trailing"}),
    "DPM++ 2M SDE Karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    ),
    "DPM++ 2M SDE Heun": ("DPMSolverMultistepScheduler", {"solver_type": "heun"}),
    "DPM++ 3M SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}),
    "DPM++ SDE": ("DPMSolverSDEScheduler", {}),
    "DPM++ SDE Karras": ("DPMSolverSDEScheduler", {"use_karras_sigmas": True}),
    "DDIM": ("DDIMScheduler", {}),
    "PLMS": ("PNDMScheduler", {"skip_prk_steps": True}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "DEIS": ("DEISMultistepScheduler", {"algorithm_type": "deis"}),
    "LCM": ("LCMScheduler", {}),
    "TCD": ("TCDScheduler", {}),
}


@pytest.mark.parametrize("name", A1111)
def test_a1111s_names_mean_what_the_documentation_of_diffusers_says(name: str) -> None:
    cls, settings = A1111[name]
    made = schedulers.make(name, OWN)
    assert type(made).__name__ == cls
    assert {key: made.config[key] for key in settings} == settings


@pytest.mark.parametrize(
    "spellings",
    [
        ("dpm++ 2m karras", "DPM++ 2M Karras", "dpmpp_2m_karras", "dpm++-2m-karras"),
        ("euler a", "euler-a", "euler_ancestral", "k_euler_a", "Euler Ancestral"),
        ("dpm2 a", "dpm_2_ancestral", "DPM2 a", "dpm2_a"),
        ("unipc", "uni_pc", "UniPC Automatic"),
        ("euler", "Euler", "sample_euler"),
    ],
)
def test_spelling_is_lenient(spellings: tuple[str, ...]) -> None:
    made = [schedulers.make(name, OWN) for name in spellings]
    assert all(type(one) is type(made[0]) and one.config == made[0].config for one in made)


@pytest.mark.parametrize("name", schedulers.SCHEDULERS)
def test_what_belongs_to_the_model_stays(name: str) -> None:
    before = dict(OWN)
    made = schedulers.make(name, OWN)
    kept = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "prediction_type")
    assert {key: made.config[key] for key in kept} == {key: OWN[key] for key in kept}
    assert not made.config.get("clip_sample", False)
    assert before == OWN
    assert schedulers.make(name, OWN) is not made


@pytest.mark.parametrize("name", schedulers.SCHEDULERS)
def test_every_class_goes_by_its_own_name(name: str) -> None:
    cls = type(schedulers.make(name, OWN))
    by_class = schedulers.make(cls.__name__, OWN)
    assert type(by_class) is cls
    unnamed = {key for key in OWN if key in by_class.config and not key.startswith("_")}
    assert {key: by_class.config[key] for key in unnamed} == {key: OWN[key] for key in unnamed}


def test_a_name_overrides_what_the_model_was_saved_with() -> None:
    config = {
        "_class_name": "DPMSolverMultistepScheduler",
        "algorithm_type": "sde-dpmsolver++",
        "solver_order": 3,
        "use_beta_sigmas": True,
    }
    plain = schedulers.make("dpm++ 2m karras", config)
    assert (plain.config.algorithm_type, plain.config.solver_order) == ("dpmsolver++", 2)
    assert (plain.config.use_karras_sigmas, plain.config.use_beta_sigmas) == (True, False)
    assert schedulers.make("deis", config).config.algorithm_type == "deis"
    trailing = schedulers.make("euler sgm uniform", config)
    assert (trailing.config.timestep_spacing, trailing.config.use_beta_sigmas) == ("trailing", False)


def test_latents_are_not_clipped_where_the_config_is_silent() -> None:
    silent = {"_class_name": "EulerDiscreteScheduler"}
    assert diffusers.DDIMScheduler().config.clip_sample  # diffusers' default, made for pixels
    assert not schedulers.make("ddim", silent).config.clip_sample
    assert not schedulers.make("ddpm", silent).config.clip_sample


def test_none_is_the_models_own() -> None:
    made = schedulers.make(None, OWN)
    assert isinstance(made, diffusers.PNDMScheduler)
    assert made.config.beta_end == OWN["beta_end"]


def test_zero_terminal_snr_is_kept_or_refused() -> None:
    config = {**OWN, "_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True}
    for name in schedulers.SCHEDULERS:
        cls = type(schedulers.make(name, OWN))
        if "rescale_betas_zero_snr" in inspect.signature(cls.__init__).parameters:
            assert schedulers.make(name, config).alphas_cumprod[-1] < 1e-6
        else:
            with pytest.raises(InputError, match=r"cannot begin at zero SNR.*euler.*ddim"):
                schedulers.make(name, config)


@pytest.mark.parametrize("name", ["euler a", "dpm++ 2m sde", "dpm++ sde", "ddim karras"])
def test_flow_matching_models_take_flow_matching_samplers(name: str) -> None:
    with pytest.raises(InputError, match="trained for flow matching; take euler, heun, lcm"):
        schedulers.make(name, FLOW)


def test_flow_matching_samplers_keep_the_models_shift() -> None:
    for name in ("euler", "Heun", "lcm", "FlowMatchEulerDiscreteScheduler", "euler karras"):
        assert schedulers.make(name, FLOW).config.shift == 3.0
    assert schedulers.make("euler karras", FLOW).config.use_karras_sigmas
    with pytest.raises(InputError, match="take euler, lcm"):
        schedulers.make("heun", {**FLOW, "use_dynamic_shifting": True})
    with pytest.raises(InputError, match="take euler, lcm"):
        schedulers.make("heun", FLOW, family="flux")
    with pytest.raises(InputError, match="trained for diffusion"):
        schedulers.make("FlowMatchLCMScheduler", OWN)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("dpm++ 2mm", "did you mean 'dpm\\+\\+ 2m'"),
        ("eular", "did you mean 'euler'"),
        ("euler_carras", "did you mean 'euler karras'"),
        ("", "known are euler, euler a"),
        ("x" * 100_000, "known are"),
        ("karras", "is not known"),
        ("PNDMPipeline", "is not known"),
        ("ddim karras", "no karras spacing there; euler, heun, lms"),
        ("dpm++ 2s simple", "no simple spacing there; euler, euler a"),
    ],
)
def test_what_is_no_scheduler_is_one_line(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        schedulers.make(name, OWN)
    assert len(str(caught.value)) < 400


def test_a_name_can_be_checked_without_torch() -> None:
    assert schedulers.check_name("Euler a") == "Euler a"
    with pytest.raises(ValueError, match=r"^did you mean 'euler a'.*genkit stable-diffusion --help"):
        schedulers.check_name("euler b")


def test_a_request_with_an_unknown_scheduler_is_one_line() -> None:
    from pipelines.stable_diffusion.pipeline import Params

    with pytest.raises(InputError, match=r"^scheduler 'euler b' is not valid: did you mean 'euler a'"):
        Params.parse({"prompt": "a fox", "scheduler": "euler b"})


@pytest.mark.parametrize(
    "config", [{}, {"_class_name": "Evil"}, {"_class_name": "NoSuchScheduler"}, {"_class_name": "UNet2DModel"}]
)
def test_a_model_without_a_scheduler_is_one_line(config: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="no class of diffusers'"):
        schedulers.make(None, config)


def test_a_config_that_makes_no_sense_is_one_line() -> None:
    with pytest.raises(ModelError, match="config does not suit ddim"):
        schedulers.make("ddim", {**OWN, "beta_schedule": "wild"})


@pytest.mark.parametrize(("name", "package"), [("dpm++ sde", "torchsde"), ("LMS", "scipy")])
def test_a_missing_package_is_named(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.utils import dummy_torch_and_scipy_objects, dummy_torch_and_torchsde_objects

    place = dummy_torch_and_torchsde_objects if package == "torchsde" else dummy_torch_and_scipy_objects
    cls = type(schedulers.make(name, OWN)).__name__
    monkeypatch.setattr(diffusers, cls, getattr(place, cls))  # what diffusers itself puts there without the package
    with pytest.raises(InputError, match=rf"needs {package}: pip install genkit-media\[samplers\]"):
        schedulers.make(name, OWN)


def test_distilled_samplers_have_a_most() -> None:
    schedulers.fits(schedulers.make("lcm", OWN), 50)
    schedulers.fits(schedulers.make("ddim", OWN), 400)
    with pytest.raises(InputError, match="num_inference_steps 51 is too many for LCMScheduler: it takes 50"):
        schedulers.fits(schedulers.make("lcm", OWN), 51)


@pytest.mark.parametrize("name", schedulers.SCHEDULERS)
def test_a_picture_does_not_depend_on_its_batch(name: str, sd: Path) -> None:
    """By every sampler, those that draw noise of their own on the way included."""
    pipe = _pipe(str(sd))

    def latents(seeds: list[int]) -> torch.Tensor:
        pipe.scheduler = schedulers.make(name, OWN, seeds=seeds)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipe(
            "a red fox",
            num_images_per_prompt=len(seeds),
            generator=generators,
            num_inference_steps=4,
            guidance_scale=1.0,
            output_type="latent",
        ).images

    together, alone = latents([5, 6]), torch.cat([latents([5]), latents([6])])
    assert together.isfinite().all()
    assert (together - alone).abs().max() < 1e-5 * alone.abs().max()


PIPES: dict[str, Any] = {}


def _pipe(folder: str) -> Any:
    if folder not in PIPES:
        PIPES[folder] = diffusers.StableDiffusionPipeline.from_pretrained(folder)
        PIPES[folder].set_progress_bar_config(disable=True)
    return PIPES[folder]
