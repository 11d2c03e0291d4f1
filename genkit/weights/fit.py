"""Tensors -> module, with one line on what does not fit and what the file looks like instead."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from genkit.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["load_into", "looks_like"]

# Searched for line by line in the keys; the first that occurs names the family: from the telling ones to the general.
FAMILIES = {
    r"^model\.diffusion_model\.": "a Stable Diffusion checkpoint (one file)",
    r"lora_(unet|te)|\.lora_[AB]\.|\.lora\.(up|down)\.": "a LoRA",
    r"^control_model\.|controlnet_": "a ControlNet",
    r"^down_blocks\.\d+\.(resnets|attentions)\.": "a diffusers U-Net or autoencoder",
    r"^(first_stage_model\.|vae\.)?decoder\.up\.\d+\.block\.": "an autoencoder (VAE)",
    r"^text_model\.encoder\.layers\.": "a CLIP text encoder",
    r"^(deconv|res)\d\.(conv2d|conv1\.conv2d)\.": "a fast-neural-style TransformerNet",
    r"^model\.model\.\d+\.model\.": "a pix2pix U-Net generator",
    r"^model\.\d+\.conv_block\.": "a CycleGAN ResNet generator",
    r"^features\.\d+\.(squeeze|expand1x1)\.": "a torchvision SqueezeNet",
    r"^features\.\d+\.weight": "a torchvision VGG or AlexNet",
    r"^layer\d\.\d+\.(conv|bn)\d\.": "a torchvision ResNet",
    r"word_emb|dec_attn|r_w_bias": "a Transformer-XL",
    r"(transformer\.)?h\.\d+\.attn\.": "a GPT-2",
}


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], *, name: str) -> None:
    """Puts tensors into a module, in the module's dtype; one on the meta device takes them as they are.

    name: what the message calls the model (its file or alias). Raises ModelError, one line with the keys that are
    missing, unexpected or of another shape. Batch counts may be missing: checkpoints older than torch 0.4.1 have none.
    """
    wanted = module.state_dict()
    missing = [k for k in wanted if k not in tensors and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in tensors if k not in wanted]
    shapes = [
        f"{k} {list(tensors[k].shape)} for {list(wanted[k].shape)}"
        for k in wanted
        if k in tensors and tensors[k].shape != wanted[k].shape
    ]
    parts = [
        f"{len(keys)} {what} ({_few(keys)})"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if keys
    ]
    if parts:
        seen = looks_like(tensors) if missing or unexpected else ""
        hint = f"; it looks like {seen}" if seen else ""
        raise ModelError(f"model {name} does not fit {type(module).__name__}: {', '.join(parts)}{hint}")
    on_meta = any(t.is_meta for t in wanted.values())
    module.load_state_dict(dict(tensors), strict=False, assign=on_meta)


def looks_like(keys: Iterable[str]) -> str:
    """The family whose keys these are ("a LoRA"), or an empty string."""
    lines = "\n".join(keys)
    return next((family for sign, family in FAMILIES.items() if re.search(sign, lines, re.MULTILINE)), "")


def _few(names: list[str], count: int = 3) -> str:
    return ", ".join(name[:60] for name in names[:count]) + (", ..." if len(names) > count else "")
