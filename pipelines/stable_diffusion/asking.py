"""What a request comes to on a model: its mode, sizes, steps and guidance, and everything that cannot be, said at once.

Choices made here:
- What is not stated is the model's own default. What a model cannot do is refused in one line before any memory is
  taken; what it can do but nobody would want (a negative prompt without guidance, a size far from the trained one) is
  done and told in a note.
- A strength that leaves none of the stated steps is refused; of steps that nobody stated, a few-step model's one or
  four, as many are taken as it needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch

from genkit.errors import InputError
from genkit.runtime import Runtime
from pipelines.stable_diffusion import canvas

if TYPE_CHECKING:
    from pipelines.stable_diffusion.canvas import Scene
    from pipelines.stable_diffusion.loading import Model
    from pipelines.stable_diffusion.pipeline import Params

__all__ = ["Mode", "Request", "ask"]

Mode: TypeAlias = Literal["text", "image", "inpaint"]

BYTES = 32
"""For each pixel made, on its way to a picture: floats of the decoder, of the result, and the 8 bits that are saved."""
STRENGTH = {"image": 0.8, "inpaint": 1.0}
MOST_STEPS = 100
"""That are taken of nobody's asking."""
FAR = 2.0
"""Times more or fewer pixels than a model was trained on, from which on it is told."""


@dataclass(frozen=True)
class Request:
    """One request with everything settled. Sizes are multiples of what the model works in."""

    params: Params
    mode: Mode
    width: int
    height: int
    upscaled: tuple[int, int] | None
    """Width and height of the second pass of a high-resolution fix."""
    steps: int
    guidance: float
    guided: bool
    """Whether the model runs with and without the prompt, and so with a negative one."""
    strength: float
    scheduler: str | None
    count: int
    """Pictures that are made, of which `params.num_images_per_prompt` are kept."""
    scene: Scene | None
    notes: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the first pass."""
        return self.width, self.height

    @property
    def first(self) -> int:
        """Steps that a picture goes through in the first pass."""
        return self.steps if self.mode == "text" else kept_steps(self.steps, self.strength)

    @property
    def work(self) -> int:
        """Steps that a picture goes through in all."""
        return self.first + (kept_steps(self.steps_again, self.params.upscale_strength) if self.upscaled else 0)

    @property
    def steps_again(self) -> int:
        """Of the second pass, of which `upscale_strength` keeps a share: at least one."""
        return enough_steps(self.steps, self.params.upscale_strength)

    @property
    def seeds(self) -> list[int]:
        return [(self.params.seed or 0) + i for i in range(self.count)]

    @property
    def found(self) -> dict[str, Any]:
        """What was settled, for the record of the file."""
        facts: dict[str, Any] = {"num_inference_steps": self.steps, "guidance_scale": self.guidance}
        if self.mode != "text":
            facts["strength"] = self.strength
        facts |= {"width": self.width, "height": self.height}
        if self.upscaled:
            facts |= {"upscaled_width": self.upscaled[0], "upscaled_height": self.upscaled[1]}
        return facts


def kept_steps(steps: int, strength: float) -> int:
    """Of so many steps those that a picture goes through which keeps 1 - strength of itself (SDEdit, Meng et al. 2021).

    As diffusers counts them.
    """
    return min(int(steps * strength), steps)


def enough_steps(steps: int, strength: float) -> int:
    """Steps of which a strength above 0 keeps at least one."""
    need = max(steps, math.ceil(1 / strength))
    return need if kept_steps(need, strength) else need + 1  # 1 / strength may be rounded down


def ask(params: Params, model: Model) -> Request:
    """Raises InputError, MediaError."""
    mode = _mode(params, model)
    _check_sides(params, model)
    scene = canvas.read(params, model.multiple)
    own = model.defaults
    width, height = scene.canvas if scene else (params.width or own.width, params.height or own.height)
    upscaled = _upscaled(params, model, width, height)
    count = params.best_of or params.num_images_per_prompt
    _check_memory(*(upscaled or (width, height)), count)
    notes = list(scene.notes if scene else ())
    guidance = own.guidance_scale if params.guidance_scale is None else params.guidance_scale
    guided = _guided(model, guidance)
    strength = STRENGTH.get(mode, 1.0) if params.strength is None else params.strength
    steps = _steps(params, model, strength, notes)
    notes += _remarks(params, model, width, height, guided)
    return Request(
        params=params,
        mode=mode,
        width=width,
        height=height,
        upscaled=upscaled,
        steps=steps,
        guidance=guidance,
        guided=guided,
        strength=strength,
        scheduler=params.scheduler or own.scheduler,
        count=count,
        scene=scene,
        notes=tuple(notes),
    )


def _mode(params: Params, model: Model) -> Mode:
    mode: Mode = "text" if params.image is None else "image" if not params.masked else "inpaint"
    if model.kind == "inpainting" and mode != "inpaint":
        raise InputError(
            f"{model.path} is a model for inpainting: give image with mask_image or expand, or name another model"
        )
    if model.kind == "refining" and mode == "text":
        raise InputError(f"{model.path} refines pictures: give image, or name another model")
    return mode


def _check_sides(params: Params, model: Model) -> None:
    """Raises InputError for a stated width or height that the model cannot work on."""
    for name in ("width", "height"):
        value = getattr(params, name)
        if value is not None and value % model.multiple:
            below = value // model.multiple * model.multiple
            near = [size for size in (below, below + model.multiple) if size >= model.multiple]
            verb = "is" if len(near) == 1 else "are"
            raise InputError(
                f"{name} {value} is not a multiple of {model.multiple} px, which this model works in: "
                f"{' and '.join(map(str, near))} {verb}"
            )


def _upscaled(params: Params, model: Model, width: int, height: int) -> tuple[int, int] | None:
    if params.upscale is None:
        return None
    sides = (max(1, round(side * params.upscale / model.multiple)) * model.multiple for side in (width, height))
    return next(sides), next(sides)


def _check_memory(width: int, height: int, count: int) -> None:
    """Raises InputError before anything of that size is made."""
    canvas.check(width, height)
    need, free = BYTES * width * height * count, Runtime(torch.device("cpu")).free_memory()
    if need > free:
        raise InputError(
            f"{count} pictures of {width}x{height} px take {need / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free: "
            "make fewer or smaller ones"
        )


def _guided(model: Model, guidance: float) -> bool:
    """Flux, and models distilled like LCM, are told the guidance as a number: they run once a step."""
    if model.family == "flux":
        return False
    denoiser: Any = model.denoiser
    return guidance > 1 and denoiser.config.get("time_cond_proj_dim") is None


def _steps(params: Params, model: Model, strength: float, notes: list[str]) -> int:
    """Raises InputError where a strength leaves no step."""
    own = model.defaults.num_inference_steps
    steps = params.num_inference_steps or own
    if params.image is None or kept_steps(steps, strength):
        return steps
    more = enough_steps(steps, strength) if strength > 1 / MOST_STEPS else 0
    if params.num_inference_steps is not None or not more:
        need = f" (of {more} it would leave one)" if more else ""
        raise InputError(
            f"strength {strength:g} leaves none of {steps} steps to change image in{need}: raise strength or "
            "num_inference_steps"
        )
    notes.append(f"{more} steps instead of the model's {own}, of which strength {strength:g} keeps one")
    return more


def _remarks(params: Params, model: Model, width: int, height: int, guided: bool) -> list[str]:
    """What the reader should know, though it is done as asked."""
    notes, own = [], model.defaults
    if params.negative_prompt and not guided:
        why = "guidance_scale is not over 1" if model.family != "flux" else "the model knows none"
        notes.append(f"negative_prompt has no effect: {why}")
    if params.guidance_scale is not None and params.guidance_scale > 1 >= own.guidance_scale:
        told = "is over 1, and the model was made to go" if guided else "has no effect: the model was made to go"
        notes.append(f"guidance_scale {told} without")
    ratio = width * height / (own.width * own.height)
    if not 1 / FAR <= ratio <= FAR:
        notes.append(
            f"{width}x{height} px is far from the {own.width}x{own.height} that the model was trained on"
            + ("; to make it large, use upscale" if ratio > 1 and params.image is None else "")
        )
    return notes
