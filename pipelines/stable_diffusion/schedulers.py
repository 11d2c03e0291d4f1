"""Samplers by name: diffusers' classes, their short names, and the names A1111 and ComfyUI give them.

A name is a sampler and, after it, how its steps are spaced: "dpm++ 2m karras", "DPM++ 2M SDE Karras",
"euler_ancestral", "EulerDiscreteScheduler". Spelling is lenient (case, spaces, "-", "_", "dpmpp"), meaning is not: a
spacing that a sampler does not have, or a sampler that a model was not trained for, is refused.

What belongs to the model stays the model's: betas, what its network predicts, zero terminal SNR, shift. Only what the
name says is changed. A1111's names are read as the table in diffusers' documentation has them ("Schedulers",
k-diffusion), except for DPM++ SDE, which is the class ported from k-diffusion (it needs torchsde). Imports no torch
before `make`.
"""

from __future__ import annotations

import difflib
import inspect
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from genkit.errors import InputError, ModelError

__all__ = ["SCHEDULERS", "SPACINGS", "check_name", "fits", "make"]


@dataclass(frozen=True)
class Sampler:
    """A sampler's class for each kind of model ("" where there is none), and what tells it from others of its class."""

    name: str
    betas: str
    flow: str = ""
    edm: str = ""
    also: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def of(self, kind: str) -> str:
        return {"betas": self.betas, "flow": self.flow, "edm": self.edm}[kind]


def _multistep(algorithm: str, order: int = 2, solver: str = "midpoint") -> dict[str, Any]:
    return {"algorithm_type": algorithm, "solver_order": order, "solver_type": solver}


ODE, SDE = "dpmsolver++", "sde-dpmsolver++"

_SAMPLERS = (
    Sampler("euler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler"),
    Sampler("euler a", "EulerAncestralDiscreteScheduler", also=("euler ancestral",)),
    Sampler("heun", "HeunDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"),
    Sampler("lms", "LMSDiscreteScheduler"),
    Sampler("dpm2", "KDPM2DiscreteScheduler"),
    Sampler("dpm2 a", "KDPM2AncestralDiscreteScheduler", also=("dpm2 ancestral",)),
    Sampler("dpm++ 2m", "DPMSolverMultistepScheduler", "", "EDMDPMSolverMultistepScheduler", (), _multistep(ODE)),
    Sampler("dpm++ 2m sde", "DPMSolverMultistepScheduler", settings=_multistep(SDE)),
    Sampler("dpm++ 2m sde heun", "DPMSolverMultistepScheduler", settings=_multistep(SDE, solver="heun")),
    Sampler("dpm++ 3m sde", "DPMSolverMultistepScheduler", settings=_multistep(SDE, order=3)),
    Sampler("dpm++ 2s", "DPMSolverSinglestepScheduler", settings=_multistep(ODE) | {"lower_order_final": True}),
    Sampler("dpm++ sde", "DPMSolverSDEScheduler"),
    Sampler("unipc", "UniPCMultistepScheduler", settings={"solver_order": 2, "solver_type": "bh2"}),
    Sampler("deis", "DEISMultistepScheduler", settings=_multistep("deis", solver="logrho")),
    Sampler("ddim", "DDIMScheduler"),
    Sampler("ddpm", "DDPMScheduler"),
    Sampler("plms", "PNDMScheduler", also=("pndm",), settings={"skip_prk_steps": True}),
    Sampler("lcm", "LCMScheduler", "FlowMatchLCMScheduler"),
    Sampler("tcd", "TCDScheduler"),
    Sampler("sa solver", "SASolverScheduler"),
)

_SIGMAS = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas", "beta": "use_beta_sigmas"}
_STEPS = {"sgm uniform": "trailing", "simple": "trailing", "normal": "linspace", "uniform": "linspace"}
_NEEDS = {"DPMSolverSDEScheduler": "torchsde", "LMSDiscreteScheduler": "scipy"}

SCHEDULERS: tuple[str, ...] = tuple(sampler.name for sampler in _SAMPLERS)
"""The short names. diffusers' class names are known as well."""
SPACINGS: tuple[str, ...] = (*_SIGMAS, "sgm uniform", "simple", "normal")
"""What may follow a name, where the sampler has it."""

KINDS = {"betas": "diffusion", "flow": "flow matching", "edm": "EDM's preconditioning"}


def _key(name: str) -> str:
    """What two spellings of a name share."""
    name = re.sub(r"^(k|sample)[\s_-]", "", name.strip().lower())
    return re.sub(r"[^a-z0-9+]", "", name).replace("dpmpp", "dpm++").removesuffix("scheduler")


def _table() -> dict[str, Sampler]:
    # A class by its own name is taken as the model's config says, without the settings of a short name.
    found = {}
    for sampler in _SAMPLERS:
        for cls in filter(None, map(sampler.of, KINDS)):
            kinds = {kind: cls for kind in KINDS if sampler.of(kind) == cls}
            found[_key(cls)] = Sampler(cls, kinds.get("betas", ""), kinds.get("flow", ""), kinds.get("edm", ""))
    return found | {_key(name): sampler for sampler in _SAMPLERS for name in (sampler.name, *sampler.also)}


_BY_KEY = _table()


def _find(name: str) -> tuple[Sampler, str]:
    """The sampler and the spacing, "" for the model's own. Raises InputError."""
    key = _key(name)
    for spacing in ("automatic", *_SIGMAS, *_STEPS, ""):
        sampler = _BY_KEY.get(key.removesuffix(_key(spacing))) if key.endswith(_key(spacing)) else None
        if sampler:
            return sampler, "" if spacing == "automatic" else spacing
    names = [f"{sampler} {spacing}".strip() for sampler in SCHEDULERS for spacing in ("", *SPACINGS)]
    close = difflib.get_close_matches(name.lower()[:60].replace("_", " "), names, 1, 0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(SCHEDULERS)}"
    raise InputError(f"scheduler {name[:60]!r} is not known: {hint} (`genkit stable-diffusion --help` lists them)")


def check_name(name: str) -> str:
    """The name, if it is one: for parameters. Raises ValueError."""
    try:
        _find(name)
    except InputError as error:
        raise ValueError(str(error).partition(" is not known: ")[2]) from None  # the name is told with the parameter
    return name


def make(name: str | None, config: Mapping[str, Any], *, family: str = "", seeds: Sequence[int] = ()) -> Any:
    """A new scheduler of diffusers' for a model.

    name: None for the model's own; config: of the model's scheduler, which is left as it is; family: "flux" has needs
    of its own; seeds: of the pictures of the batch, for DPM++ SDE, whose noise comes from no generator that it is
    handed.
    Raises InputError, ModelError.
    """
    own = str(config.get("_class_name", ""))
    if name is None:
        cls, changes = _class(own), {}
    else:
        sampler, spacing = _find(name)
        kind = _kind(config)
        cls = _class(_suited(name, sampler, kind, config, family))
        changes = _changes(name, sampler if kind == "betas" else None, spacing, cls, config)
    known = _settings(cls)
    if "noise_sampler_seed" in known and seeds:
        changes["noise_sampler_seed"] = list(seeds)
        # torchsde warns where the ends of its interval differ by rounding.
        warnings.filterwarnings("ignore", "Should have t[ab]", UserWarning)
    if name is not None and "clip_sample" in known:
        # diffusers' default suits pixels in -1..1; latents go beyond.
        changes["clip_sample"] = bool(config.get("clip_sample", False))
    try:
        return cls.from_config(config, **changes)
    except ImportError:
        raise _missing(name or own, "scipy") from None
    except (ValueError, TypeError, NotImplementedError) as error:
        problem = str(error).split("\n")[0][:200]
        raise ModelError(f"the model's scheduler config does not suit {name or own}: {problem}") from None


def fits(scheduler: Any, steps: int) -> None:
    """Raises InputError where a scheduler cannot make so many steps."""
    most = scheduler.config.get("original_inference_steps")  # the distilled ones leap over steps of a longer schedule
    if most is not None and steps > most:
        name = type(scheduler).__name__
        raise InputError(
            f"num_inference_steps {steps} is too many for {name}: it takes {most} at most, and 4 to 8 suit it"
        )


def _kind(config: Mapping[str, Any]) -> str:
    """What the model was trained for."""
    own = str(config.get("_class_name", ""))
    flow = own.startswith("FlowMatch") or config.get("use_flow_sigmas") or "base_image_seq_len" in config
    return "flow" if flow else "edm" if own.startswith("EDM") else "betas"


def _suited(name: str, sampler: Sampler, kind: str, config: Mapping[str, Any], family: str) -> str:
    """The sampler's class for a model. Raises InputError."""

    def possible(one: Sampler) -> bool:
        # Heun's class takes neither a shift by the picture's size nor the sigmas that Flux hands it.
        fixed = family == "flux" or bool(config.get("use_dynamic_shifting"))
        return bool(one.of(kind)) and not (one.of(kind) == "FlowMatchHeunDiscreteScheduler" and fixed)

    if not possible(sampler):
        rest = ", ".join(one.name for one in _SAMPLERS if possible(one))
        raise InputError(
            f"scheduler {name[:60]!r} is not for this model, which was trained for {KINDS[kind]}; take {rest}"
        )
    return sampler.of(kind)


def _class(name: str) -> Any:
    import diffusers

    cls = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if cls is None:
        raise ModelError(f"the model's scheduler {name[:60]!r} is no class of diffusers'; name one, such as 'euler'")
    if name in _NEEDS and getattr(cls, "_backends", None):  # diffusers' stand-in for what cannot be imported
        raise _missing(name, _NEEDS[name])
    return cls


def _missing(name: str, package: str) -> InputError:
    return InputError(f"scheduler {name[:60]!r} needs {package}: pip install genkit-media[samplers]")


def _changes(name: str, sampler: Sampler | None, spacing: str, cls: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a name changes in the config. Raises InputError for what the class cannot do."""
    known = _settings(cls)
    changes = dict(sampler.settings) if sampler else {}
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in known:
        rest = _having("rescale_betas_zero_snr")
        raise InputError(f"scheduler {name[:60]!r} cannot begin at zero SNR, as this model does; take {rest}")
    if not spacing:
        return changes
    setting = _SIGMAS.get(spacing, "timestep_spacing")
    if setting not in known:
        raise InputError(f"scheduler {name[:60]!r}: no {spacing} spacing there; {_having(setting)} have it")
    sigmas = {key: key == setting for key in _SIGMAS.values() if key in known}
    return changes | sigmas | ({} if spacing in _SIGMAS else {"timestep_spacing": _STEPS[spacing]})


def _having(setting: str) -> str:
    """The samplers whose class has a setting, in words."""
    import diffusers

    classes = {sampler.name: getattr(diffusers, sampler.betas) for sampler in _SAMPLERS}
    return ", ".join(name for name, cls in classes.items() if setting in _settings(cls))


def _settings(cls: Any) -> Iterable[str]:
    return inspect.signature(cls.__init__).parameters.keys()
