"""Files of LoRA, whoever wrote them -> for each network of a pipeline, pairs of matrices by the layer they belong to.

Known are diffusers' own files (old and new), kohya's and A1111's (`lora_unet_...`, `lora_te_...`), and a peft adapter
(`adapter_model.safetensors` beside its `adapter_config.json`). Names are translated by diffusers.

Choices made here:
- A scale that a file states (kohya's alpha, diffusers' and peft's configuration) is multiplied into the second matrix
  of each pair, so that all formats mean the same from here on: W + weight * B A.
- Everything is checked against the pipeline before anything is loaded: a file for another family is refused as a whole.
- safetensors only. LyCORIS' other decompositions (LoHa, LoKr, OFT, DoRA) are refused by name rather than half read.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from genkit import weights
from genkit.errors import ModelError
from pipelines.stable_diffusion.additions.kinds import TEXT_WIDTHS
from pipelines.stable_diffusion.families import FAMILIES

__all__ = ["NETWORKS", "Parts", "file_of", "read"]

NETWORKS = ("unet", "transformer", "text_encoder", "text_encoder_2")
"""Parts of a pipeline that a LoRA may change, as diffusers names them."""
Parts = dict[str, dict[str, Tensor]]
"""By network: `LAYER.lora_A.weight` [rank, in] and `LAYER.lora_B.weight` [out, rank]; of a convolution with its kernel
behind; `LAYER.lora_magnitude_vector` of a DoRA."""

OTHERS = {
    r"\.hada_w": "LoHa",
    r"\.lokr_w": "LoKr",
    r"\.oft_|\.boft_": "OFT",
    r"\.dora_scale": "a DoRA of kohya's kind",
    r"\.lora_mid\.": "LoCon with a third matrix",
    r"\.(diff|diff_b)$": "full differences",
}
ENDS = re.compile(
    r"(?P<layer>.+)\.(?P<end>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_magnitude_vector(\.weight)?)"
)


def file_of(ref: str) -> Path:
    """The file that a reference (file, folder, hub id) names. Raises ModelError."""
    path = weights.locate(ref, patterns=["*.safetensors", "adapter_config.json"])
    if path.is_dir():
        found = sorted(file for file in path.glob("*.safetensors") if file.is_file())
        usual = [f for f in found if f.name in ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")]
        found = usual[:1] or found
        if len(found) != 1:
            names = ", ".join(file.name for file in found[:5])
            held = f"{len(found)} files ({names}); name one" if found else "no .safetensors file"
            raise ModelError(f"LoRA folder {path} holds {held}")
        path = found[0]
    if path.suffix.lower() != ".safetensors":
        raise ModelError(
            f"LoRA {path} is no .safetensors file, and a LoRA is read from nothing else: a pickle may run code; "
            "get it as safetensors, or convert it in a sandbox"
        )
    return path


def read(path: Path, pipe: Any, family: str) -> Parts:
    """What a file adds to which network of a pipeline; it fits, or ModelError says in one line why not."""
    tensors = weights.read(path)
    keys = "\n".join(tensors)
    for sign, name in OTHERS.items():
        if re.search(sign, keys, re.MULTILINE):
            raise ModelError(f"{path} is {name}, of the LyCORIS family: genkit reads plain LoRA only")
    if "lora" not in keys:
        seen = weights.looks_like(tensors)
        raise ModelError(f"{path} is no LoRA" + (f": it looks like {seen}" if seen else ""))
    stated = _stated(path)
    try:
        parts = _translated(_with_alphas(tensors), pipe)
    except (ValueError, KeyError, IndexError, RuntimeError, AttributeError, TypeError) as error:
        raise _refusal(
            path, tensors, family, f"its layers have names that nothing here has ({_brief(error)})"
        ) from None
    misfits = [misfit for name, part in parts.items() for misfit in _misfits(name, part, getattr(pipe, name, None))]
    if misfits:
        raise _refusal(path, tensors, family, misfits[0])
    return {name: _scaled(path, part, stated.get(name, stated.get(""))) for name, part in parts.items()}


def _with_alphas(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """kohya's `LAYER.alpha` multiplied into the layer: its scale is alpha / rank."""
    found = {name: tensor for name, tensor in tensors.items() if not name.endswith(".alpha")}
    for name in tensors.keys() - found.keys():
        layer = name.removesuffix(".alpha")
        for end in ("lora_up.weight", "lora_B.weight", "lora.up.weight"):
            up = found.get(f"{layer}.{end}")
            if up is not None and up.ndim > 1 and tensors[name].numel() == 1:
                found[f"{layer}.{end}"] = _times(up, float(tensors[name]) / up.shape[1])
    return found


def _times(tensor: Tensor, scale: float) -> Tensor:
    return tensor if scale == 1 else (tensor.float() * scale).to(tensor.dtype)


def _translated(tensors: dict[str, Tensor], pipe: Any) -> Parts:
    """By network, with peft's names. Raises nearly anything for names that diffusers does not know."""
    from diffusers.utils.state_dict_utils import (
        StateDictType,
        convert_state_dict_to_peft,
        convert_unet_state_dict_to_peft,
    )

    if all(name.startswith("base_model.model.") for name in tensors):
        tensors = {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}
    if not any(name.startswith((*(f"{network}." for network in NETWORKS), "lora_")) for name in tensors):
        home = _home(tensors, pipe)
        tensors = {f"{home}.{name}": tensor for name, tensor in tensors.items()} if home else tensors
    options = {"unet_config": pipe.unet.config} if getattr(pipe, "unet", None) is not None else {}
    state = pipe.lora_state_dict(tensors, **options)
    state = state[0] if isinstance(state, tuple) else state
    parts: Parts = {}
    for name, tensor in state.items():
        network, _, rest = name.partition(".")
        parts.setdefault(network, {})[rest] = tensor
    for network, part in parts.items():
        if network.startswith("text_encoder"):
            for kind in (StateDictType.DIFFUSERS_OLD, StateDictType.DIFFUSERS):  # kohya's come out as a mixture
                part = convert_state_dict_to_peft(part, original_type=kind)
            if not hasattr(getattr(pipe, network, None), "text_model"):  # how CLIP's layers are called since 5.0
                part = {name.removeprefix("text_model."): tensor for name, tensor in part.items()}
        elif not any(".lora_A." in name for name in part):
            part = convert_unet_state_dict_to_peft(part)
        parts[network] = part
    return parts


def _home(tensors: Mapping[str, Tensor], pipe: Any) -> str | None:
    """The network that layers without a prefix belong to; None if they are nobody's."""
    layers = {re.split(r"\.(?:processor\.)?(?:to_\w+_)?lora", name)[0] for name in tensors}

    def known(network: str) -> int:
        module = getattr(pipe, network, None)
        names = {name for name, _ in module.named_modules()} if module is not None else set()
        plain = {name.replace(".base_layer", "") for name in names}
        return len((layers | {layer.removeprefix("text_model.") for layer in layers}) & plain)

    best = max(NETWORKS, key=known)
    return best if known(best) else None


def _layers(part: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """{layer: {"lora_A.weight": ..., "lora_B.weight": ...}}; what is none of these under the name of its own."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in part.items():
        match = ENDS.fullmatch(name)
        layers.setdefault(match["layer"] if match else name, {})[match["end"] if match else ""] = tensor
    return layers


def _misfits(network: str, part: Mapping[str, Tensor], module: nn.Module | None) -> Iterator[str]:
    """What does not fit a network, a few words each."""
    if module is None:
        yield f"it changes a {network}, which the model has not"
        return
    for layer, pair in _layers(part).items():
        where = f"{network}.{layer}"[:120]
        try:
            target: Any = module.get_submodule(layer)
        except AttributeError:
            yield f"the model has no layer {where}"
            continue
        target = getattr(target, "base_layer", target)  # where another LoRA sits already
        first, second = pair.get("lora_A.weight"), pair.get("lora_B.weight")
        if first is None or second is None:
            yield f"of {where} one matrix is missing"
        elif not isinstance(target, nn.Linear | nn.Conv2d):
            yield f"{where} is no layer that a LoRA can change"
        elif first.ndim < 2 or second.ndim < 2 or first.shape[0] != second.shape[1] or not first.shape[0]:
            yield f"the matrices of {where} do not belong together"
        elif (first.shape[1], second.shape[0]) != (target.weight.shape[1], target.weight.shape[0]):
            theirs, ours = (
                f"{first.shape[1]} to {second.shape[0]}",
                f"{target.weight.shape[1]} to {target.weight.shape[0]}",
            )
            yield f"{where} goes from {theirs} in it and from {ours} in the model"
        elif isinstance(target, nn.Linear) and (first.shape[2:].numel() != 1 or second.shape[2:].numel() != 1):
            yield f"{where} is a convolution in it and none in the model"


def _stated(path: Path) -> dict[str, dict[str, Any]]:
    """What a file's header or the configuration beside it says of ranks and scales, by network ("" for any)."""
    text = weights.metadata(path).get("lora_adapter_metadata")
    beside = path.with_name("adapter_config.json")
    try:
        if text is None:
            return {"": json.loads(beside.read_bytes())} if path.stem == "adapter_model" and beside.is_file() else {}
        found: dict[str, dict[str, Any]] = {}
        for name, value in json.loads(text).items():
            network, _, key = name.partition(".")
            found.setdefault(network, {})[key] = value
        return found
    except (ValueError, AttributeError, RecursionError):
        raise ModelError(f"the configuration of LoRA {path} is damaged; get it again") from None


def _scaled(path: Path, part: dict[str, Tensor], stated: Mapping[str, Any] | None) -> dict[str, Tensor]:
    """With the scale that a peft configuration states multiplied in: alpha / rank, or alpha / sqrt(rank)."""
    if not stated:
        return part
    from peft.utils.other import get_pattern_key

    alphas = stated.get("alpha_pattern") or {}
    scaled = dict(part)
    try:
        for name, up in part.items():
            if not name.endswith(".lora_B.weight"):
                continue
            layer = name.removesuffix(".lora_B.weight")
            alpha = float(alphas.get(get_pattern_key(list(alphas), layer), stated.get("lora_alpha", up.shape[1])))
            rank = up.shape[1]
            scaled[name] = _times(up, alpha / (math.sqrt(rank) if stated.get("use_rslora") else rank))
    except (ValueError, TypeError, AttributeError, re.error):
        raise ModelError(f"the configuration of LoRA {path} states no scale; get it again") from None
    return scaled


def _refusal(path: Path, tensors: Mapping[str, Tensor], family: str, otherwise: str) -> ModelError:
    """Says whom the file is for where its names and shapes tell that, else what does not fit."""
    made_for = _made_for(tensors)
    reason = f"it is for {FAMILIES[made_for].words}" if made_for not in ("", family) else otherwise
    return ModelError(f"LoRA {path} is not for this model ({FAMILIES[family].words}): {reason}")


def _made_for(tensors: Mapping[str, Tensor]) -> str:
    """The family that a LoRA was made for, as far as its names and shapes tell."""
    keys = "\n".join(tensors)
    if re.search(r"double_blocks|single_blocks|single_transformer_blocks", keys):
        return "flux"
    if re.search(r"joint_blocks|transformer[._].*add_k_proj", keys):
        return "sd3"
    if re.search(r"lora_te[12]_|text_encoder_2\.|label_emb|add_embedding", keys):
        return "sdxl"
    into = (t.shape[1] for name, t in tensors.items() if re.search(r"attn2.*to_k.*(lora_A|down)", name) and t.ndim > 1)
    return next((TEXT_WIDTHS[width] for width in into if width in TEXT_WIDTHS), "")


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
