"""From names and files to networks: which feature network, which transformation network, which encoder and decoder.

Architectures are read off the tensors; nothing else has to be stated about a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from genkit import weights
from genkit.errors import ModelError
from genkit.weights import Model
from pipelines.style_transfer.networks import adain
from pipelines.style_transfer.networks.features import FeatureNetwork, Small, SqueezeNet, Vgg
from pipelines.style_transfer.networks.transformer import TransformerNet, recognise

__all__ = ["encoder_from", "feature_network", "style_model"]

StyleModel = TransformerNet | tuple[adain.Encoder, adain.Decoder]


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
            raise ModelError(f"{source} is no `small` feature network: it looks like {weights.looks_like(tensors)}")
        network = Small.of(tensors)
    elif name == "squeezenet1_0":
        network = SqueezeNet(pooling or "average", dense)
    else:
        network = Vgg(int(name.removeprefix("vgg")), pooling or "max")
    weights.load_into(network, tensors, name=str(source))
    return network.freeze()


def style_model(path: Path) -> StyleModel:
    """What a file or a folder holds: a transformation network (`fast`), or an encoder and a decoder (`adain`).

    path: a file with a TransformerNet's tensors; or a folder with `decoder.*` and `vgg_normalised.*`; or one file with
    both under `decoder.` and `encoder.`. Raises ModelError where it is neither.
    """
    if path.is_dir():
        return _pair(_member(path, "vgg_normalised", "encoder"), _member(path, "decoder"), str(path))
    tensors = weights.read(path)
    if recognise(tensors):
        network, kept = TransformerNet.of(tensors)
        weights.load_into(network, _floats(kept), name=str(path))
        return network
    parts = {part: _under(tensors, part) for part in ("encoder", "decoder")}
    if all(parts.values()):
        return _pair(parts["encoder"], parts["decoder"], str(path))
    if adain.recognise_decoder(tensors) or adain.recognise_encoder(tensors):
        raise ModelError(
            f"{path} is half of an AdaIN model: put decoder.pth and vgg_normalised.pth into one folder and name that"
        )
    raise ModelError(
        f"{path} is no style model (a transformation network or an AdaIN pair): "
        f"it looks like {weights.looks_like(tensors)}"
    )


def encoder_from(path: Path) -> adain.Encoder:
    """AdaIN's encoder, in float32. Raises ModelError."""
    tensors = weights.read(path)
    if not adain.recognise_encoder(tensors):
        raise ModelError(
            f"{path} is no normalised VGG (vgg_normalised.pth of pytorch-AdaIN): "
            f"it looks like {weights.looks_like(tensors)}"
        )
    network, kept = adain.Encoder.of(tensors)
    weights.load_into(network, _floats(kept), name=str(path))
    return network


def _pair(
    encoder: Mapping[str, Tensor], decoder: Mapping[str, Tensor], name: str
) -> tuple[adain.Encoder, adain.Decoder]:
    if not adain.recognise_encoder(encoder):
        raise ModelError(f"{name}: its encoder is no normalised VGG (vgg_normalised.pth of pytorch-AdaIN)")
    if not adain.recognise_decoder(decoder):
        raise ModelError(f"{name}: its decoder is no AdaIN decoder (decoder.pth of pytorch-AdaIN)")
    front, kept_front = adain.Encoder.of(encoder)
    back, kept_back = adain.Decoder.of(decoder)
    weights.load_into(front, _floats(kept_front), name=f"{name} (encoder)")
    weights.load_into(back, _floats(kept_back), name=f"{name} (decoder)")
    return front, back


def _member(folder: Path, *stems: str) -> dict[str, Tensor]:
    """The tensors of the file in a folder with one of these stems."""
    for stem in stems:
        for suffix in (".safetensors", ".pth", ".pt"):
            if (folder / f"{stem}{suffix}").is_file():
                return weights.read(folder / f"{stem}{suffix}")
    raise ModelError(
        f"{folder} holds no {stems[0]}.pth or {stems[0]}.safetensors; an AdaIN folder has it and decoder.pth"
    )


def _under(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{part}."): value for key, value in tensors.items() if key.startswith(f"{part}.")}


def _floats(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.float() for key, value in tensors.items()}
