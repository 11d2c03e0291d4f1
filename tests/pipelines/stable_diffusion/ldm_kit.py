"""Models in one file, in the layout of the original code (LDM): written from diffusers' parts, name by name.

The places are counted by hand from the original networks, the other way round than genkit reads them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def unet_name(key: str, layers: int, attends_up: Mapping[int, bool]) -> str:
    """A U-Net's name in the original code. attends_up: which blocks on the way up hold attention."""
    for ours, theirs in TOP.items():
        if key.startswith(f"{ours}."):
            return key.replace(ours, theirs, 1)
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", key)
    if found:
        way, block, kind, index, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        if kind == "downsamplers":
            return f"input_blocks.{(block + 1) * (layers + 1)}.0.op.{rest.removeprefix('conv.')}"
        if kind == "upsamplers":
            return f"output_blocks.{block * (layers + 1) + layers}.{1 + attends_up[block]}.{rest}"
        place = 1 + block * (layers + 1) + index if way == "down" else block * (layers + 1) + index
        stem = f"{'input' if way == 'down' else 'output'}_blocks.{place}"
        return f"{stem}.0.{_resnet(rest)}" if kind == "resnets" else f"{stem}.1.{rest}"
    found = re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", key)
    assert found, key
    if found[1] == "attentions":
        return f"middle_block.1.{found[3]}"
    return f"middle_block.{2 * int(found[2])}.{_resnet(found[3])}"


def _resnet(rest: str) -> str:
    name, _, end = rest.partition(".")
    return f"{RESNET[name]}.{end}"


def vae_name(key: str, levels: int) -> str:
    found = re.fullmatch(r"(encoder|decoder)\.(down|up)_blocks\.(\d+)\.(resnets|\w+samplers)\.(\d+)\.(.+)", key)
    if found:
        level = int(found[3]) if found[2] == "down" else levels - 1 - int(found[3])
        stem = f"{found[1]}.{found[2]}.{level}"
        rest = found[6].replace("conv_shortcut", "nin_shortcut")
        return f"{stem}.block.{found[5]}.{rest}" if found[4] == "resnets" else f"{stem}.{found[2]}sample.{rest}"
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    key = key.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_norm_out", "norm_out")
    for ours, theirs in {"group_norm": "norm", "to_out.0": "proj_out", "to_q": "q", "to_k": "k", "to_v": "v"}.items():
        key = key.replace(f"attn_1.{ours}.", f"attn_1.{theirs}.")
    return key


def unet_tensors(unet: Any) -> Tensors:
    attends = {i: "CrossAttn" in kind for i, kind in enumerate(unet.config.up_block_types)}
    layers = unet.config.layers_per_block
    return {
        f"model.diffusion_model.{unet_name(key, layers, attends)}": tensor for key, tensor in unet.state_dict().items()
    }


def vae_tensors(vae: Any) -> Tensors:
    levels = len(vae.config.block_out_channels)
    named = {vae_name(key, levels): tensor for key, tensor in vae.state_dict().items()}
    return {  # attention is made of convolutions there
        f"first_stage_model.{name}": tensor[..., None, None] if ".attn_1." in name and tensor.ndim == 2 else tensor
        for name, tensor in named.items()
    }


def clip_tensors(encoder: Any, prefix: str) -> Tensors:
    """transformers' own names, as the original code used them for CLIP ViT-L."""
    found = {f"text_model.{key.removeprefix('text_model.')}": tensor for key, tensor in encoder.state_dict().items()}
    places = torch.arange(encoder.config.max_position_embeddings)[None]
    return {prefix + key: tensor for key, tensor in (found | {"text_model.embeddings.position_ids": places}).items()}


def open_clip_tensors(encoder: Any, prefix: str) -> Tensors:
    """OpenCLIP's names: queries, keys and values of a layer in one matrix."""
    state = {key.removeprefix("text_model."): tensor for key, tensor in encoder.state_dict().items()}
    found = {
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "logit_scale": torch.tensor(4.6),
    }
    if "text_projection.weight" in state:
        found["text_projection"] = state["text_projection.weight"].T
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    for layer in range(encoder.config.num_hidden_layers):
        ours, theirs = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for kind in ("weight", "bias"):
            joined = [state[f"{ours}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            found[f"{theirs}.attn.in_proj_{kind}"] = torch.cat(joined)
            found[f"{theirs}.attn.out_proj.{kind}"] = state[f"{ours}.self_attn.out_proj.{kind}"]
            found |= {f"{theirs}.{new}.{kind}": state[f"{ours}.{old}.{kind}"] for old, new in names.items()}
    return {prefix + key: tensor for key, tensor in found.items()}


def tensors_of(pipe: Any) -> Tensors:
    """A whole pipeline's tensors in the original layout: SDXL's where it has two text encoders, else SD 1's."""
    found = unet_tensors(pipe.unet) | vae_tensors(pipe.vae)
    if "text_encoder_2" not in pipe.components:
        return found | clip_tensors(pipe.text_encoder, "cond_stage_model.transformer.")
    found |= clip_tensors(pipe.text_encoder, "conditioner.embedders.0.transformer.")
    return found | open_clip_tensors(pipe.text_encoder_2, "conditioner.embedders.1.model.")


def write(pipe: Any, file: Path, tensors: Tensors | None = None) -> Path:
    """Writes a pipeline as one file, its tokenizer and a NAME.config.json that says how small it is beside it."""
    from safetensors.torch import save_file

    save_file({key: tensor.contiguous().clone() for key, tensor in (tensors or tensors_of(pipe)).items()}, file)
    layout = {}
    for name, part in pipe.components.items():
        if name.startswith("tokenizer"):
            layout[name] = {"class": "CLIPTokenizer", "pad_token": part.pad_token}
        elif part is not None:
            config = part.config.to_dict() if hasattr(part.config, "to_dict") else dict(part.config)
            values = {key: value for key, value in config.items() if not key.startswith("_")}
            layout[name] = {"class": type(part).__name__, **values}
    file.with_name(f"{file.stem}.config.json").write_text(json.dumps(layout))
    pipe.tokenizer.save_pretrained(file.parent / "tokenizer")
    return file
