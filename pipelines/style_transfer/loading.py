"""From names and files to networks: which feature network, which transformation network, which encoder and decoder.

Architectures are read off the tensors; nothing else has to be stated about a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from genkit import weights
from genkit.errors import ModelError
from genkit.weights import Model
from pipelines.style_transfer.networks import adain
from pipelines.style_transfer.networks.features import FeatureNetwork, Small, SqueezeNet, Vgg
from pipelines.style_transfer.networks.transformer import TransformerNet, recognise

__all__ = ["describe", "encoder_from", "feature_network", "style_model"]

StyleModel = TransformerNet | tuple[adain.Encoder, adain.Decoder]
Network = TypeVar("Network", Small, TransformerNet, adain.Encoder, adain.Decoder)
ENCODER = ("vgg_normalised", "encoder")


def feature_network(
    name: str,
    models: Mapping[str, Model],
    *,
    path: Path | None = None,
    pooling: str | None = None,
    dense: bool = True,
) -> FeatureNetwork:
    """A feature network by name, frozen, on the CPU in float32.

    path: its weights, where they are in a file of one's own (torchvision's key names); pooling: "max", "average" or
    "l2" instead of the network's own; dense: see SqueezeNet. Raises ModelError.
    """
    source = path or weights.locate(name, models)
    tensors = {key: value.float() for key, value in weights.read(source).items() if not key.startswith("classifier.")}
    network: FeatureNetwork
    if name == "small":
        if "features.0.0.weight" not in tensors:
            raise ModelError(f"{source} is no `small` feature network{_seen(tensors)}")
        return _fitted(Small, tensors, str(source)).freeze()
    if name == "squeezenet1_0":
        network = SqueezeNet(pooling or "average", dense)
    else:
        network = Vgg(int(name.removeprefix("vgg")), pooling or "max")
    weights.load_into(network, tensors, name=str(source))
    return network.freeze()


def style_model(path: Path) -> StyleModel:
    """What a file or a folder holds: a transformation network (`fast`), or an encoder and a decoder (`adain`).

    path: a file with a TransformerNet's tensors; or a folder with `decoder.*` and `vgg_normalised.*`; or one file with
    both under `decoder.` and `encoder.`; or a folder that holds nothing but such a file. Raises ModelError where it is
    none of these.
    """
    if path.is_dir() and _file(path, "decoder", *ENCODER):
        return _pair(_member(path, *ENCODER), _member(path, "decoder"), str(path))
    tensors = weights.read(path)
    if recognise(tensors):
        return _fitted(TransformerNet, tensors, str(path))
    parts = {part: _under(tensors, part) for part in ("encoder", "decoder")}
    if all(parts.values()):
        return _pair(parts["encoder"], parts["decoder"], str(path))
    if adain.recognise_decoder(tensors) or adain.recognise_encoder(tensors):
        raise ModelError(
            f"{path} is half of an AdaIN model: put decoder.pth and vgg_normalised.pth into one folder and name that"
        )
    raise ModelError(f"{path} is no style model (a transformation network or an AdaIN pair){_seen(tensors)}")


def describe(path: Path) -> dict[str, Any]:
    """What a style model or a feature network is, for `genkit inspect`. Raises ModelError."""
    tensors = {} if path.is_dir() else weights.read(path)
    if any(key.startswith("features.") for key in tensors):
        whose = "genkit's own" if "features.0.0.weight" in tensors else weights.looks_like(tensors)
        return {"is": f"feature network, {whose}", "parameters": sum(tensor.numel() for tensor in tensors.values())}
    model = style_model(path)
    networks: tuple[nn.Module, ...] = model if isinstance(model, tuple) else (model,)
    what = "AdaIN encoder and decoder (adain)"
    if isinstance(model, TransformerNet):
        what = f"transformation network (fast), {model.width} channels"
    return {"is": what, "parameters": sum(p.numel() for network in networks for p in network.parameters())}


def encoder_from(path: Path) -> adain.Encoder:
    """AdaIN's encoder, in float32. Raises ModelError."""
    tensors = weights.read(path)
    if not adain.recognise_encoder(tensors):
        raise ModelError(f"{path} is no normalised VGG (vgg_normalised.pth of pytorch-AdaIN){_seen(tensors)}")
    return _fitted(adain.Encoder, tensors, str(path))


def _pair(
    encoder: Mapping[str, Tensor], decoder: Mapping[str, Tensor], name: str
) -> tuple[adain.Encoder, adain.Decoder]:
    if not adain.recognise_encoder(encoder):
        raise ModelError(f"{name}: its encoder is no normalised VGG (vgg_normalised.pth of pytorch-AdaIN)")
    if not adain.recognise_decoder(decoder):
        raise ModelError(f"{name}: its decoder is no AdaIN decoder (decoder.pth of pytorch-AdaIN)")
    front, back = (
        _fitted(adain.Encoder, encoder, f"{name} (encoder)"),
        _fitted(adain.Decoder, decoder, f"{name} (decoder)"),
    )
    if back.widths[-1] != front.widths[-1]:
        raise ModelError(
            f"{name}: its decoder takes {back.widths[-1]} channels, its encoder gives {front.widths[-1]}; "
            "they belong to different models"
        )
    return front, back


def _fitted(kind: type[Network], tensors: Mapping[str, Tensor], name: str) -> Network:
    """A network whose widths are read off a file; it takes no memory before all shapes have proved right."""
    try:
        with torch.device("meta"):
            network, kept = kind.of(tensors)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from None
    weights.load_into(network, {key: value.float() for key, value in kept.items()}, name=name)
    return network


def _member(folder: Path, *stems: str) -> dict[str, Tensor]:
    """The tensors of the file in a folder with one of these stems."""
    file = _file(folder, *stems)
    if file is None:
        raise ModelError(
            f"{folder} holds no {stems[0]}.pth or {stems[0]}.safetensors; an AdaIN folder has it and decoder.pth"
        )
    return weights.read(file)


def _file(folder: Path, *stems: str) -> Path | None:
    names = (folder / f"{stem}{suffix}" for stem in stems for suffix in (".safetensors", ".pth", ".pt"))
    return next((file for file in names if file.is_file()), None)


def _under(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{part}."): value for key, value in tensors.items() if key.startswith(f"{part}.")}


def _seen(tensors: Mapping[str, Tensor]) -> str:
    family = weights.looks_like(tensors)
    return f": it looks like {family}" if family else ""
