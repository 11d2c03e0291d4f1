"""From an alias, a hub id, a folder of diffusers' or a single file to a model that is ready to paint.

A folder is read part by part rather than through diffusers' `from_pretrained`: each part in one dtype whatever its file
has, from safetensors and nothing else, without the safety checker and without code of the model's own, and a part that
lacks weights is an error instead of random numbers. What comes out is diffusers' own pipeline with the same weights.

On a CPU that computes in bfloat16 the denoiser runs in it (`Runtime.relaxed`), unless a dtype was asked for. Everything
around it, schedulers included, stays in float32: `relaxed` casts at the denoiser's door.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genkit import weights
from genkit.errors import ModelError
from genkit.runtime import Runtime
from pipelines.stable_diffusion import folders, memory, models, quick, singlefile
from pipelines.stable_diffusion.describing import defaults_of, identify, in_words
from pipelines.stable_diffusion.families import FAMILIES
from pipelines.stable_diffusion.models import DEFAULTS, MODELS, Defaults

__all__ = ["Model", "load_model"]

MODES = {"text": ("text", "image", "inpaint"), "inpainting": ("inpaint",), "refining": ("image", "inpaint")}
"""What each kind of model does."""
PLACES = ("timestep", "time_ids", "txt_ids", "img_ids")
"""Inputs of denoisers that are numbers to be told apart."""


@dataclass
class Model:
    """A loaded model: diffusers' pipeline, and what genkit needs to know of it."""

    pipe: Any
    """diffusers' text-to-image pipeline; of a model for inpainting its inpainting one. Progress bar and safety checker
    off."""
    family: str
    """"sd1", "sd2", "sdxl", "sd3" or "flux"."""
    kind: str
    """"text"; "inpainting" where the denoiser takes the mask and the masked picture too; "refining" for SDXL's refiner,
    which takes a picture."""
    defaults: Defaults
    path: Path
    runtime: Runtime
    scheduler_config: Mapping[str, Any]
    """As the model brought it; makers of schedulers copy it."""
    notes: list[str] = field(default_factory=list)
    """What the reader should know: how it was fitted into memory."""
    placement: memory.Placement = "whole"
    _variants: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def denoiser(self) -> nn.Module:
        """The U-Net or the transformer."""
        return getattr(self.pipe, FAMILIES[self.family].denoiser)

    @property
    def multiple(self) -> int:
        """px; both sides of a picture must be multiples of it."""
        return self.pipe.vae_scale_factor * FAMILIES[self.family].patch

    @property
    def upcasts(self) -> bool:
        """Whether the VAE overflows in its dtype, as SDXL's does in float16: it is to decode in float32."""
        return self.pipe.vae.dtype == torch.float16 and bool(self.pipe.vae.config.get("force_upcast"))

    @property
    def words(self) -> str:
        """What it is, in one line."""
        return in_words(self.family, self.kind, self.defaults)

    def variant(self, mode: str, controlnet: Any = None) -> Any:
        """diffusers' pipeline for "text", "image" or "inpaint", around the same components: no second copy of anything.

        controlnet: a ControlNet of diffusers', or a list of them, that goes beside. Raises ModelError for what the
        model cannot do.
        """
        if mode not in MODES[self.kind]:
            wants = "image and mask_image" if self.kind == "inpainting" else "image"
            raise ModelError(f"{self.path} is a model for {self.kind}: give {wants}, or name another model")
        name = _class_name(self.family, self.kind, mode, control=controlnet is not None)
        if controlnet is not None:
            return self._around(name, {"controlnet": controlnet})
        if type(self.pipe).__name__ == name:
            return self.pipe
        if mode not in self._variants:
            self._variants[mode] = self._around(name, {})
        pipe = self._variants[mode]
        for part, value in self.pipe.components.items():  # adapters may have put another encoder in
            if part in pipe.components and part != "scheduler":
                setattr(pipe, part, value)
        return pipe

    def _around(self, name: str, more: Mapping[str, Any]) -> Any:
        pipe = assemble(name, {**self.pipe.components, **more}, self.pipe.config)
        memory.follow(pipe, self.pipe)
        return pipe

    def place(self, placement: memory.Placement | None = None) -> None:
        """Puts it on the runtime's device: whole if that fits with a picture of the default size, else in turns."""
        if placement is None:
            parts = memory.parts_of(self.pipe)
            work = memory.decoding(self.pipe.vae, self.defaults.width, self.defaults.height)
            on_cpu = self.runtime.device.type == "cpu"
            placement = "whole" if on_cpu else memory.choose(parts, work, self.runtime.free_memory())
        self._variants.clear()
        with folders.quiet():
            words = memory.move(self.pipe, self.runtime, placement)
        self.placement = placement
        self.notes = [] if placement == "whole" else [words]

    def step_down(self) -> str | None:
        """After memory ran out for a single picture: takes less of the device and says how; None if there is no way."""
        lower = None if self.runtime.device.type == "cpu" else memory.lower(self.placement)
        if lower is None:
            return None
        self.runtime.release()
        self.place(lower)
        return f"the {lower} of the model take turns on {self.runtime.device}"


def load_model(ref: str | Path, runtime: Runtime, known: Mapping[str, weights.Model] = MODELS) -> Model:
    """The model that a reference (alias, hub id, folder, file) names, on the runtime's device.

    Raises ModelError: there is none, it is damaged, it is of a kind that genkit does not run; DeviceError where no way
    of placing it fits into memory.
    """
    path = weights.locate(ref, known, patterns=lambda files: folders.wanted(files, runtime.dtype, str(ref)))
    file = folders.only_file(path)
    need = folders.values(path, runtime.dtype) if file is None else singlefile.values(file, runtime.dtype)
    memory.check(str(ref), need, runtime)
    with folders.quiet():
        parts, settings = folders.read(path, runtime.dtype) if file is None else singlefile.read(file, runtime.dtype)
    configs = {name: {**_config(part), "class": type(part).__name__} for name, part in parts.items()}
    family, kind = identify(configs, path)
    pipe = assemble(_class_name(family, kind, MODES[kind][0]), parts, settings)
    own = DEFAULTS.get(models.alias_of(str(ref), known) or "") or defaults_of(family, configs, path)
    schedule = {**pipe.scheduler.config, "_class_name": type(pipe.scheduler).__name__}
    model = Model(pipe, family, kind, own, path, runtime, schedule)
    relax(model.denoiser, runtime)
    relax(pipe.vae.decoder, runtime)
    model.place()
    return model


def _config(part: Any) -> dict[str, Any]:
    config = getattr(part, "config", None) or {}
    return config.to_dict() if hasattr(config, "to_dict") else dict(config)


def _class_name(family: str, kind: str, mode: str, *, control: bool = False) -> str:
    """diffusers' class for a mode. Raises ModelError where it has none."""
    if family == "flux" and kind == "inpainting":
        return "FluxFillPipeline"
    found = FAMILIES[family].pipelines(control=control)
    if mode not in found:
        raise ModelError(f"for {FAMILIES[family].words} there is no ControlNet that begins from a picture")
    return found[mode]


def assemble(name: str, parts: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    """diffusers' pipeline class of this name around parts and settings, of which it takes what it knows."""
    import diffusers

    pipeline = getattr(diffusers, name)
    offered = {"safety_checker": None, "requires_safety_checker": False, "add_watermarker": False}
    offered = {**{key: value for key, value in settings.items() if key not in offered}, **offered, **parts}
    known = list(inspect.signature(pipeline.__init__).parameters.values())[1:]
    given = {p.name: offered.get(p.name) for p in known if p.name in offered or p.default is inspect.Parameter.empty}
    with folders.quiet():
        pipe = pipeline(**given)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def relax(module: nn.Module, runtime: Runtime) -> None:
    """Lets a network compute in `runtime.relaxed` while it is given, and gives back, the runtime's dtype.

    Nothing is done where the two are the same: in the exact mode, and on GPUs. Its layers are quick ones, which hold
    their weights twice, where that is no more than half of what is free.
    """
    if runtime.relaxed == runtime.dtype:
        return
    with folders.quiet():
        module.to(runtime.relaxed).to(memory_format=torch.channels_last)
    size = sum(weight.numel() * weight.element_size() for weight in module.parameters())
    if runtime.device.type == "cpu" and 2 * size < runtime.free_memory():
        quick.quicken(module)
    module.register_forward_pre_hook(_cast_in, with_kwargs=True)
    module.register_forward_hook(lambda module, inputs, output: cast(output, runtime.dtype))


def _cast_in(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    dtype = next(p.dtype for p in module.parameters() if p.is_floating_point())  # whatever it is by now
    return cast(args, dtype), cast(kwargs, dtype)


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Floating-point tensors of two dimensions and more in a dtype, inside lists and dictionaries too.

    Not the numbers that say when and where: a step is one of a thousand, and bfloat16 tells 256 apart.
    """
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() and value.ndim > 1 else value
    if isinstance(value, tuple | list):
        return type(value)(cast(item, dtype) for item in value)
    if isinstance(value, dict):  # an output of diffusers' is one as well
        return type(value)(**{name: item if name in PLACES else cast(item, dtype) for name, item in value.items()})
    return value
