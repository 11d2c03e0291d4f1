"""From a file to a network, with the vocabulary and the instruments that its header holds.

A model is one safetensors file whose header says what it is: `architecture`, `network` (the Config), `vocabulary`,
`instruments` (what it has heard); nothing else has to be stated about it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from genkit import weights
from genkit.errors import ModelError
from pipelines.midi_generation.networks.transformer_xl import ACTIVATIONS, Config, TransformerXL
from pipelines.midi_generation.tokens.instruments import Instruments
from pipelines.midi_generation.tokens.vocabulary import Vocabulary

__all__ = ["Model", "describe", "load"]

PREFIX = "genkit.midi-generation."
LARGEST = 2_000_000_000  # parameters
LARGEST_SIZE = 1_000_000  # of anything in a Config


@dataclass(frozen=True)
class Model:
    """A network, in float32 on the CPU, with what it reads and has heard."""

    network: Any
    """TransformerXL, or a GPT2 that was trained for comparison."""
    vocabulary: Vocabulary
    instruments: Instruments
    architecture: str
    """"transformer-xl" or "gpt2"."""


def load(path: str | Path) -> Model:
    """The model in a file that a training of `midi-transformer-xl` exported. Raises ModelError."""
    path = Path(path)
    if path.is_dir():
        path = _only_file(path)
    header, tensors = weights.metadata(path), weights.read(path)
    architecture = header.get("architecture", "").removeprefix(PREFIX)
    if not header.get("architecture", "").startswith(PREFIX):
        family = weights.looks_like(tensors)
        what = f": it looks like {family}" if family else ""
        raise ModelError(f"{path} is no MIDI model of genkit's (its header does not say so){what}")
    vocabulary = _vocabulary(header.get("vocabulary", ""), path)
    config = _config(header.get("network", ""), vocabulary, path)
    with torch.device("meta"):  # takes no memory before all shapes have proved right
        network = _network(architecture, config, header, path)
    weights.load_into(network, {name: tensor.float() for name, tensor in tensors.items()}, name=str(path))
    instruments = Instruments.from_record(header["instruments"]) if "instruments" in header else Instruments({})
    return Model(network.eval().requires_grad_(False), vocabulary, instruments, architecture)


def describe(path: Path) -> dict[str, Any]:
    """What a model is, for `genkit inspect`. Raises ModelError."""
    model = load(path)
    config: Config = model.network.config
    return {
        "is": f"{model.architecture} network, {config.layers} layers of {config.width}, {len(model.vocabulary)} tokens",
        "parameters": sum(parameter.numel() for parameter in model.network.parameters()),
    }


def _only_file(folder: Path) -> Path:
    found = sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        raise ModelError(f"{folder} holds {len(found)} safetensors files; name the one that is the model")
    return found[0]


def _vocabulary(text: str, path: Path) -> Vocabulary:
    try:
        return Vocabulary.from_record(text)
    except RecursionError as error:
        raise ModelError(f"{path}: the vocabulary in its header is damaged (nested too deep)") from error


def _config(text: str, vocabulary: Vocabulary, path: Path) -> Config:
    try:
        stated = json.loads(text)
        known = {field.name for field in fields(Config)}
        config = Config(**{name: value for name, value in stated.items() if name in known})
        _check(config)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path}: the network in its header is damaged ({str(error)[:120]})") from error
    if config.vocabulary != len(vocabulary):
        raise ModelError(f"{path}: its network has {config.vocabulary} tokens, its vocabulary {len(vocabulary)}")
    return config


def _check(config: Config) -> None:
    """Raises ValueError where a value is of the wrong type or out of bounds."""
    for field in fields(Config):
        value = getattr(config, field.name)
        kinds = {"int": int, "bool": bool, "str": str, "float": int | float}
        if not isinstance(value, kinds[str(field.type)]) or (field.type == "int" and isinstance(value, bool)):
            raise ValueError(f"{field.name} {value!r} is no {field.type}")
        least = 1 if field.name in ("vocabulary", "layers", "width", "heads", "feedforward") else 0
        if not isinstance(value, str) and not least <= value <= LARGEST_SIZE:
            raise ValueError(f"{field.name} {value!r} is out of bounds")
    tables = (config.vocabulary + config.places + config.bars) * config.width
    if config.layers * config.width * (5 * config.width + 2 * config.feedforward) + tables > LARGEST:
        raise ValueError(f"it would have more than {LARGEST:,} parameters")
    if config.activation not in ACTIVATIONS:
        raise ValueError(f"activation {config.activation!r} is none of {', '.join(ACTIVATIONS)}")


def _network(architecture: str, config: Config, header: dict[str, str], path: Path) -> Any:
    try:
        if architecture == "transformer-xl":
            return TransformerXL(config)
        if architecture == "gpt2":
            from pipelines.midi_generation.networks.gpt2 import GPT2

            context = int(header["context"])
            if not 0 < context <= LARGEST_SIZE:
                raise ValueError(f"context {context} is out of bounds")
            return GPT2(config, context=context)
    except (ValueError, KeyError) as error:
        raise ModelError(f"{path}: the network in its header is damaged ({str(error)[:120]})") from error
    raise ModelError(f"{path}: genkit knows no MIDI network {architecture[:60]!r}; update genkit")
