"""Models in one .safetensors file, as the original code and most of the web have them, offline.

    model.diffusion_model.*                  the denoiser
    first_stage_model.* or vae.*             the autoencoder
    cond_stage_model.*, conditioner.*, text_encoders.*     the text encoders

Which family it is shows in the names; how large it is, configs/*.json says (one for each family), or a file
NAME.config.json of the same form beside NAME.safetensors. diffusers translates the names. What a file does not have
(Flux's and SD 3's text encoders, a VAE left out) comes from the folders of a diffusers model around it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genkit import weights
from genkit.errors import ModelError
from pipelines.stable_diffusion import folders
from pipelines.stable_diffusion.vocabulary import clip_tokenizer

__all__ = ["CONFIGS", "layout_of", "read", "recognise", "translate", "values"]

CONFIGS = Path(__file__).parent / "configs"
DENOISER = "model.diffusion_model."
TEXT = {
    "sd1": {"text_encoder": "cond_stage_model.transformer."},
    "sd2": {"text_encoder": "cond_stage_model.model."},
    "sdxl": {
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
    "sdxl-refiner": {"text_encoder_2": "conditioner.embedders.0.model."},
    "sd3": {
        "text_encoder": "text_encoders.clip_l.transformer.",
        "text_encoder_2": "text_encoders.clip_g.transformer.",
    },
    "flux": {"text_encoder": "text_encoders.clip_l.transformer."},
}
"""Where each family has its text encoders."""

Tensors = Mapping[str, Tensor]


def read(file: Path, dtype: torch.dtype) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parts of a file by name, networks in a dtype, and the pipeline's settings. Raises ModelError."""
    tensors = weights.read(file, allow_nan=True)  # a picture of NaN is found out later, without reading all of it twice
    family = recognise(tensors, file)
    layout = layout_of(family, tensors, file)
    settings = layout.pop("settings", {})
    parts: dict[str, Any] = {}
    for name, config in layout.items():
        kind, values = config["class"], {key: value for key, value in config.items() if key != "class"}
        if name.startswith("tokenizer"):
            parts[name] = clip_tokenizer(file, values["pad_token"])
        elif name == "scheduler":
            parts[name] = _class(kind).from_config(values)
        else:
            parts[name] = _network(file, family, name, kind, values, tensors, dtype)
    if family == "flux":  # T5 is no part of the file, nor is its vocabulary
        parts |= {name: _beside(file, name, dtype) for name in ("text_encoder_2", "tokenizer_2")}
    return parts, settings


def values(file: Path, dtype: torch.dtype) -> int:
    """Bytes of a file's weights in a dtype; 0 of a pickle, whose header does not tell."""
    return folders.count(file) * dtype.itemsize if file.suffix == ".safetensors" else 0


def recognise(tensors: Tensors, file: Path) -> str:
    """The family, by the names in the file. Raises ModelError for what is no diffusion model."""
    if f"{DENOISER}joint_blocks.0.context_block.attn.qkv.weight" in _prefixed(tensors):
        return "sd3"
    if f"{DENOISER}double_blocks.0.img_attn.qkv.weight" in _prefixed(tensors):
        return "flux"
    if f"{DENOISER}input_blocks.0.0.weight" in tensors:
        for family in ("sdxl", "sdxl-refiner", "sd2", "sd1"):
            if all(any(key.startswith(prefix) for key in tensors) for prefix in TEXT[family].values()):
                return family
        return _by_width(tensors, file)
    seen = weights.looks_like(tensors)
    remedy = "give it as --lora beside a model" if seen == "a LoRA" else "name a whole model"
    raise ModelError(
        f"{file} is no diffusion model: {'it looks like ' + seen if seen else 'no denoiser is in it'}; {remedy}"
    )


def _by_width(tensors: Tensors, file: Path) -> str:
    """Without text encoders: by the width of the text that the U-Net attends to."""
    key = re.compile(re.escape(DENOISER) + r"input_blocks\.\d+\.1\.transformer_blocks\.0\.attn2\.to_k\.weight")
    widths = {tensors[name].shape[1] for name in tensors if key.fullmatch(name)}
    known = {768: "sd1", 1024: "sd2", 2048: "sdxl", 1280: "sdxl-refiner"}
    if len(widths) != 1 or not widths <= known.keys():
        raise ModelError(f"{file} holds a U-Net of no family that genkit knows and no text encoder; name a whole model")
    return known[widths.pop()]


def _prefixed(tensors: Tensors) -> set[str]:
    """The names with the prefix of the denoiser, which files of nothing else leave out."""
    return {name if name.startswith(DENOISER) else DENOISER + name for name in tensors}


def layout_of(family: str, tensors: Tensors, file: Path) -> dict[str, Any]:
    """The configuration of each part: the family's, put right by what the file itself shows."""
    own = file.with_name(f"{file.stem}.config.json")
    path = own if own.is_file() else CONFIGS / f"{family}.json"
    try:
        layout: dict[str, Any] = json.loads(path.read_bytes())
        for name in ({"unet", "transformer"} & layout.keys() or {"unet"}) | {"vae", "scheduler"}:
            _class(layout[name]["class"])
        if "unet" in layout:
            layout["unet"]["in_channels"] = tensors[f"{DENOISER}input_blocks.0.0.weight"].shape[1]
        if family == "sd2" and not _predicts_velocity(file, tensors):
            layout["scheduler"]["prediction_type"] = "epsilon"
            layout["unet"]["sample_size"] = 64
        if family in ("sd1", "sdxl") and "v_pred" in tensors:  # the sign that trainers of such models leave
            zero = "ztsnr" in tensors
            layout["scheduler"] |= {"prediction_type": "v_prediction", "rescale_betas_zero_snr": zero}
        if "transformer" in layout and path != own:
            layout["transformer"] |= _transformer(family, tensors)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} describes no model ({type(error).__name__}: {error}); see {CONFIGS}") from None
    return layout


def _predicts_velocity(file: Path, tensors: Tensors) -> bool:
    """Stable Diffusion 2 comes in two kinds that no tensor tells apart: of 768 px, which predicts velocity, and 512 px.

    Said by a NAME.yaml beside the file (the original code's), by the file's own words, by its name; else it is the
    first."""
    beside = file.with_suffix(".yaml")
    if beside.is_file():
        return re.search(r"parameterization:\s*[\"']?v\b", beside.read_text("utf-8", "replace")) is not None
    stated = weights.metadata(file).get("modelspec.prediction_type")
    if stated:
        return stated.startswith("v")
    steps = tensors.get("global_step")  # of the published 512 px file
    return not (re.search(r"512|base", file.stem) or (steps is not None and int(steps) == 875_000))


def _transformer(family: str, tensors: Tensors) -> dict[str, Any]:
    """What a transformer's tensors say of its size."""
    found = {name.removeprefix(DENOISER): tensor for name, tensor in tensors.items()}
    if family == "flux":
        guided = "guidance_in.in_layer.weight" in found
        return {"guidance_embeds": guided, "in_channels": found["img_in.weight"].shape[1]}
    layers = 1 + max(int(name.split(".")[1]) for name in found if name.startswith("joint_blocks."))
    width = found["context_embedder.weight"].shape[0]
    dual = sorted({int(name.split(".")[1]) for name in found if ".x_block.attn2." in name})
    return {
        "num_layers": layers,
        "num_attention_heads": width // 64,
        "caption_projection_dim": width,
        "pos_embed_max_size": int(found["pos_embed"].shape[1] ** 0.5),
        "qk_norm": "rms_norm" if any(".ln_q." in name for name in found) else None,
        "dual_attention_layers": dual,
    }


def _network(
    file: Path, family: str, name: str, kind: str, config: Mapping[str, Any], tensors: Tensors, dtype: torch.dtype
) -> Any:
    """One network with the file's weights; from a folder beside it where the file has none."""
    from accelerate import init_empty_weights

    with init_empty_weights():
        network = _built(_class(kind), config, file)
    own = translate(family, name, network, tensors)
    if not own:
        return _beside(file, name, dtype)
    wanted = network.state_dict()
    weights.load_into(network, {key: own[key] for key in own if key in wanted}, name=f"{file} ({name})")
    return network.to(dtype).eval()


def _class(name: str) -> Any:
    import diffusers
    import transformers

    return getattr(diffusers, name, None) or getattr(transformers, name)


def _built(kind: Any, config: Mapping[str, Any], file: Path) -> Any:
    try:
        return kind.from_config(dict(config)) if hasattr(kind, "from_config") else kind(kind.config_class(**config))
    except (TypeError, ValueError, KeyError, ZeroDivisionError) as error:
        raise ModelError(f"{file}: its configuration builds no {kind.__name__} ({error}); see {CONFIGS}") from None


def translate(family: str, name: str, network: Any, tensors: Tensors) -> dict[str, Tensor]:
    """A part's tensors under the names that diffusers and transformers have for them; empty where the file has none."""
    from diffusers.loaders import single_file_utils as utils

    if name.startswith("text_encoder"):
        return _text(network, tensors, TEXT[family].get(name))
    prefixes = ("first_stage_model.", "vae.") if name == "vae" else (DENOISER,)
    part = {key: tensor for key, tensor in tensors.items() if key.startswith(prefixes)}
    if name == "transformer" and not part:
        part = dict(tensors)
    converters: dict[str, Callable[..., dict[str, Tensor]]] = {
        "unet": utils.convert_ldm_unet_checkpoint,
        "vae": utils.convert_ldm_vae_checkpoint,
        "sd3": utils.convert_sd3_transformer_checkpoint_to_diffusers,
        "flux": utils.convert_flux_transformer_checkpoint_to_diffusers,
    }
    convert = converters[family if name == "transformer" else name]
    return convert(checkpoint=part, config=dict(network.config)) if part else {}


def _text(network: Any, tensors: Tensors, prefix: str | None) -> dict[str, Tensor]:
    """A text encoder's tensors, out of OpenCLIP's layout or transformers' own."""
    from diffusers.loaders import single_file_utils as utils

    part = {key: tensor for key, tensor in tensors.items() if prefix and key.startswith(prefix)}
    if prefix and prefix.endswith(".model."):
        found = utils.convert_open_clip_checkpoint(network, part, prefix=prefix)
    else:
        found = {key.removeprefix(prefix or ""): tensor for key, tensor in part.items()}
    wraps = hasattr(network, "text_model")
    found = {key if wraps else key.removeprefix("text_model."): tensor for key, tensor in found.items()}
    if found and "text_projection.weight" in network.state_dict():  # SD 3's files leave out what is the identity
        found.setdefault("text_projection.weight", torch.eye(network.config.hidden_size))
    return found


def _beside(file: Path, name: str, dtype: torch.dtype) -> Any:
    """A part that a file leaves out, from the folder of the diffusers model that it lies in. Raises ModelError."""
    if not (file.parent / folders.INDEX).is_file():
        raise ModelError(
            f"{file} has no {name}: put it into the folder of a diffusers model of its kind (beside {folders.INDEX}), "
            "whose parts it then uses, or name that folder"
        )
    entry = folders.index_of(file.parent).get(name)
    if not isinstance(entry, list) or not all(entry):
        raise ModelError(f"{file} has no {name}, nor has the model in whose folder it lies; name a whole model")
    return folders.part(file.parent, name, entry, dtype)
