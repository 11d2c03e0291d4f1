"""Tiny LoRA, ControlNets and IP-Adapters in the formats that circulate, and a picture made with them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusion_kit
import torch
from safetensors.torch import save_file
from torch import Tensor

from genkit.runtime import Runtime
from pipelines.stable_diffusion.additions.applying import Additions, Use
from pipelines.stable_diffusion.loading import Model, load_model
from pipelines.stable_diffusion.pipeline import Params

RANK = 3
LAYERS = {
    "sd": {
        "unet": (
            "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
            "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
            "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0",
            "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
            "up_blocks.1.attentions.0.proj_in",
            "up_blocks.0.resnets.0.conv1",
        ),
        "text_encoder": ("encoder.layers.0.self_attn.q_proj", "encoder.layers.1.mlp.fc1"),
    },
    "sdxl": {
        "unet": (
            "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v",
            "mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
            "up_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
        ),
        "text_encoder": ("encoder.layers.0.self_attn.v_proj",),
        "text_encoder_2": ("text_model.encoder.layers.1.self_attn.q_proj",),
    },
}
"""A few layers of every kind: attention, the layer behind it, convolutions of one pixel and of nine."""
Pairs = dict[str, dict[str, tuple[Tensor, Tensor]]]


def load(folder: Path, dtype: str = "float32") -> Model:
    return load_model(folder, Runtime.pick("cpu", dtype))


def picture(model: Model, use: Use, prompt: str = "a red apple", mode: str = "text", **given: Any) -> Tensor:
    """[1, 3, 64, 64] in 0..1, two guided steps from seed 1."""
    options: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 5.0, "height": 64, "width": 64, **given}
    if mode != "text" and "strength" not in given:
        options["strength"] = 1.0
    options |= use.arguments(mode, 64, 64, 1, True)
    made = use.pipe(mode)(
        use.text(prompt),
        negative_prompt="blob",
        generator=[torch.Generator().manual_seed(1)],
        output_type="pt",
        **{name: value for name, value in options.items() if not (mode == "image" and name in ("height", "width"))},
    )
    return made.images.float()


def made(additions: Additions, prompt: str = "a red apple", mode: str = "text", **params: Any) -> Tensor:
    """The picture of a request."""
    given = {name: params.pop(name) for name in ("image", "mask_image", "latents", "strength") if name in params}
    with torch.no_grad(), additions.applied(Params(prompt=prompt, **params)) as use:
        return picture(additions.model, use, prompt, mode, **given)


def pairs(model: Model, kind: str, seed: int = 0, rank: int = RANK) -> Pairs:
    """{network: {layer: (A, B)}}, large enough to be seen."""
    generator = torch.Generator().manual_seed(seed)
    found: Pairs = {}
    for network, layers in LAYERS[kind].items():
        for layer in layers:
            weight = getattr(model.pipe, network).get_submodule(layer).weight
            first = torch.randn(rank, *weight.shape[1:], generator=generator) * 0.4
            second = torch.randn(weight.shape[0], rank, *(1,) * (weight.ndim - 2), generator=generator) * 0.4
            found.setdefault(network, {})[layer] = first, second
    return found


def merge(model: Model, changes: Pairs, scale: float) -> None:
    """W + scale * B A, in place."""
    for network, layers in changes.items():
        for layer, (first, second) in layers.items():
            weight = getattr(model.pipe, network).get_submodule(layer).weight
            with torch.no_grad():
                weight += scale * (second.flatten(1) @ first.flatten(1)).view_as(weight)


def kohya_file(path: Path, changes: Pairs, alpha: float | None = None, names: Mapping[str, str] | None = None) -> Path:
    """`lora_unet_...`, `lora_te_...` (two encoders: `lora_te1_`, `lora_te2_`); names: of layers that differ."""
    second = "text_encoder_2" in changes
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te1" if second else "lora_te", "text_encoder_2": "lora_te2"}
    tensors = {}
    for network, layers in changes.items():
        inner = "text_model." if network == "text_encoder" else ""
        for layer, (down, up) in layers.items():
            name = f"{prefixes[network]}_{(names or {}).get(layer, inner + layer).replace('.', '_')}"
            tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
            if alpha is not None:
                tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return saved(path, tensors)


def diffusers_file(path: Path, changes: Pairs, alpha: float | None = None) -> Path:
    """As `save_lora_weights` writes it; alpha: stated in the header."""
    tensors = {
        f"{network}.{layer}.lora_{letter}.weight": tensor
        for network, layers in changes.items()
        for layer, both in layers.items()
        for letter, tensor in zip("AB", both, strict=True)
    }
    stated = {f"{network}.{name}": value for network in changes for name, value in (("r", RANK), ("lora_alpha", alpha))}
    return saved(path, tensors, {"lora_adapter_metadata": json.dumps(stated)} if alpha is not None else None)


def old_diffusers_file(path: Path, changes: Pairs) -> Path:
    """With the names that diffusers gave before peft."""
    tensors = {}
    for network, layers in changes.items():
        middle = "lora" if network == "unet" else "lora_linear_layer"
        inner = "text_model." if network == "text_encoder" else ""
        for layer, (down, up) in layers.items():
            tensors |= {
                f"{network}.{inner}{layer}.{middle}.down.weight": down,
                f"{network}.{inner}{layer}.{middle}.up.weight": up,
            }
    return saved(path, tensors)


def peft_folder(folder: Path, layers: Mapping[str, tuple[Tensor, Tensor]], **config: Any) -> Path:
    """An adapter of one network."""
    folder.mkdir()
    tensors = {
        f"base_model.model.{layer}.lora_{letter}.weight": tensor
        for layer, both in layers.items()
        for letter, tensor in zip("AB", both, strict=True)
    }
    saved(folder / "adapter_model.safetensors", tensors)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, **config}))
    return folder


def saved(path: Path, tensors: Mapping[str, Tensor], about: dict[str, str] | None = None) -> Path:
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, path, about)
    return path


def controlnet(model: Model, seed: int = 0) -> Any:
    """A ControlNet in the layout of a model's U-Net that does something (a new one does nothing)."""
    from diffusers import ControlNetModel

    torch.manual_seed(seed)
    network = ControlNetModel.from_unet(model.pipe.unet, load_weights_from_unet=False)
    for layer in [*network.controlnet_down_blocks, network.controlnet_mid_block]:
        torch.nn.init.normal_(layer.weight, std=0.3)
    torch.nn.init.normal_(network.controlnet_cond_embedding.conv_out.weight, std=0.3)
    return network.eval()


def ip_adapter(path: Path, model: Model, *, plus: bool = False, seed: int = 0) -> Path:
    """An IP-Adapter as its authors save it; plus: with a resampler, which reads the encoder's hidden layer."""
    generator = torch.Generator().manual_seed(seed)
    unet, width = model.pipe.unet, diffusion_kit.HIDDEN

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    reads = unet.config.cross_attention_dim
    if plus:
        project = _resampler(drawn, width, reads)
    else:
        project = {"proj.weight": drawn(4 * reads, width), "proj.bias": drawn(4 * reads)}
        project |= {"norm.weight": torch.ones(reads), "norm.bias": drawn(reads)}
    tensors = {f"image_proj.{name}": tensor for name, tensor in project.items()}
    layers = [name for name in unet.attn_processors if ".attn2." in name]
    for i, name in enumerate(layers):
        shape = unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape
        tensors |= {f"ip_adapter.{2 * i + 1}.{part}.weight": drawn(*shape) for part in ("to_k_ip", "to_v_ip")}
    return saved(path, tensors)


def _resampler(drawn: Any, width: int, reads: int) -> dict[str, Tensor]:
    inner, heads = 16, 64
    tensors = {"latents": drawn(1, 4, inner)}
    sizes: Sequence[tuple[str, tuple[int, ...]]] = (("proj_in", (inner, width)), ("proj_out", (reads, inner)))
    for name, shape in sizes:
        tensors |= {f"{name}.weight": drawn(*shape), f"{name}.bias": drawn(shape[0])}
    tensors |= {"norm_out.weight": torch.ones(reads), "norm_out.bias": drawn(reads)}
    for i in range(4):
        for norm in ("0.norm1", "0.norm2", "1.0"):
            tensors |= {f"layers.{i}.{norm}.weight": torch.ones(inner), f"layers.{i}.{norm}.bias": drawn(inner)}
        tensors |= {
            f"layers.{i}.0.to_q.weight": drawn(heads, inner),
            f"layers.{i}.0.to_kv.weight": drawn(2 * heads, inner),
            f"layers.{i}.0.to_out.weight": drawn(inner, heads),
            f"layers.{i}.1.1.weight": drawn(4 * inner, inner),
            f"layers.{i}.1.3.weight": drawn(inner, 4 * inner),
        }
    return tensors
