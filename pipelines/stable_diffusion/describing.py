"""What a diffusion model is, by its headers and configurations alone: for loading, and for `genkit inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from genkit import weights
from genkit.errors import ModelError
from pipelines.stable_diffusion import folders, singlefile
from pipelines.stable_diffusion.families import FAMILIES
from pipelines.stable_diffusion.models import Defaults

__all__ = ["STATED", "defaults_of", "describe", "identify", "in_words"]

Configs = Mapping[str, Mapping[str, Any]]
"""The configuration of each part by name, its class under "class"."""

STATED = "genkit.json"
"""A file in a folder that `diffusion-unet` exported: what the model is best called with, and how it was trained."""
USES = {"text": "text to image", "inpainting": "inpainting", "refining": "refining of pictures"}


def identify(configs: Configs, path: Path) -> tuple[str, str]:
    """(family, kind): "sd1", "sd2", "sdxl", "sd3" or "flux"; "text", "inpainting" or "refining".

    Raises ModelError for a model that is none of genkit's.
    """
    if "transformer" in configs:
        family = {"SD3Transformer2DModel": "sd3", "FluxTransformer2DModel": "flux"}.get(configs["transformer"]["class"])
        if family is None:
            raise ModelError(f"{path} has a {configs['transformer']['class']}, which genkit does not run; name another")
    elif "text_encoder_2" in configs:
        family = "sdxl"
    else:
        family = "sd2" if configs["unet"].get("cross_attention_dim") == 1024 else "sd1"
    latents, takes = configs["vae"].get("latent_channels", 4), configs[FAMILIES[family].denoiser].get("in_channels", 4)
    text, inpainting = latents, 2 * latents + 1
    if family == "flux":  # packed: four pixels a token, and the mask at the picture's own size
        text, inpainting = 4 * latents, 8 * latents + 4 * shrinks(configs) ** 2
    if takes not in (text, inpainting):
        raise ModelError(
            f"{path} takes {takes} channels where text to image takes {text} and inpainting {inpainting}: a model for "
            "depth, upscaling or editing, which genkit does not run; name another"
        )
    if family == "sdxl" and "text_encoder" not in configs:
        return family, "refining"
    return family, "text" if takes == text else "inpainting"


def shrinks(configs: Configs) -> int:
    """Pixels of the picture to a latent pixel, along a side."""
    return 2 ** (len(configs["vae"].get("block_out_channels", (64,))) - 1)


def defaults_of(family: str, configs: Configs, path: Path) -> Defaults:
    """A model's own size, and the steps and guidance that its folder states, else its family's; fewer steps where it
    was distilled for that. Raises ModelError where what is stated makes no sense."""
    found = _of_family(family, configs)
    stated = folders.json_of(path / STATED) if (path / STATED).is_file() else {}
    steps, guidance = stated.get("num_inference_steps", found.num_inference_steps), stated.get("guidance_scale")
    guidance = found.guidance_scale if guidance is None else guidance
    good = isinstance(steps, int) and isinstance(guidance, int | float) and 1 <= steps <= 1000 and 0 <= guidance <= 50
    if not good:
        raise ModelError(f"{path / STATED} states no steps of 1 to 1000 or no guidance of 0 to 50; mend or remove it")
    return replace(found, num_inference_steps=steps, guidance_scale=float(guidance))


def _of_family(family: str, configs: Configs) -> Defaults:
    denoiser, found = configs[FAMILIES[family].denoiser], FAMILIES[family].defaults
    stated = denoiser.get("sample_size") or (found.height, found.width)
    height, width = (stated, stated) if isinstance(stated, int) else stated
    found = replace(found, width=width * shrinks(configs), height=height * shrinks(configs))
    if configs["scheduler"]["class"] == "LCMScheduler":
        told = denoiser.get("time_cond_proj_dim") is not None
        return replace(found, num_inference_steps=6, guidance_scale=8.0 if told else 1.5)
    if family == "flux" and not denoiser.get("guidance_embeds"):
        return replace(found, num_inference_steps=4, guidance_scale=0.0)
    return found


def in_words(family: str, kind: str, defaults: Defaults) -> str:
    """A model in one line."""
    return f"{FAMILIES[family].words}, {USES[kind]}, {defaults.width}x{defaults.height} px"


def describe(path: Path) -> dict[str, Any] | None:
    """What a folder or a file holds, for `genkit inspect`; None where it is nothing of these. Raises ModelError."""
    if path.is_dir() and not (path / folders.INDEX).is_file():
        return None
    configs, parameters = _of_folder(path) if path.is_dir() else _of_file(path)
    family, kind = identify(configs, path)
    defaults = defaults_of(family, configs, path)
    return {
        "is": in_words(family, kind, defaults),
        "parameters": sum(parameters.values()),
        "parts": parameters,
        "scheduler": configs["scheduler"]["class"],
        "predicts": configs["scheduler"].get("prediction_type", "epsilon" if "unet" in configs else "flow"),
        "steps": defaults.num_inference_steps,
        "guidance": defaults.guidance_scale,
    }


def _of_folder(folder: Path) -> tuple[dict[str, Any], dict[str, int]]:
    configs, parameters = {}, {}
    for name, (_, kind) in folders.stated(folder).items():
        config = folder / name / ("scheduler_config.json" if name == "scheduler" else "config.json")
        if config.is_file():
            configs[name] = {**folders.json_of(config), "class": kind}
        files = folders.weights_of(folder, name, torch.float32)
        if files:
            parameters[name] = sum(folders.count(folder / name / file) for file in files if file.endswith("tensors"))
    for name in ("vae", "scheduler"):
        if name not in configs:
            raise ModelError(f"{folder} has no configuration of its {name}; it is incomplete: get it again")
    return configs, parameters


def _of_file(file: Path) -> tuple[dict[str, Any], dict[str, int]]:
    tensors = weights.read(file, allow_nan=True)
    family = singlefile.recognise(tensors, file)
    layout = singlefile.layout_of(family, tensors, file)
    places = {"vae": ("first_stage_model.", "vae.")} | {name: (at,) for name, at in singlefile.TEXT[family].items()}
    parameters = {
        name: sum(
            tensor.numel() for key, tensor in tensors.items() if key.startswith(places.get(name, ("model.diff",)))
        )
        for name in layout
        if name in places or name in ("unet", "transformer")
    }
    return layout, {name: count for name, count in parameters.items() if count}
