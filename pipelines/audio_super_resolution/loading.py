"""From a file or a folder to a network, with the rates that it is for.

Two kinds of model are known:
- genkit's own: one safetensors file whose header says what it is (`header` writes it, `load` reads it);
- a generator of AP-BWE as its authors publish or train it: a checkpoint `g_...` with its `config.json` beside it. Where
  that is missing, sizes are read off the tensors, the spectra's hop and window are the published ones, and the rates
  are those in the name (`g_8kto16k`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genkit import weights
from genkit.errors import ModelError
from pipelines.audio_super_resolution.networks import spectral, unet

__all__ = ["Model", "describe", "header", "load"]

PREFIX = "genkit.audio-super-resolution."
PRESETS = ("faithful", "bright")
RATES = (1000, 768_000)  # Hz
LARGEST_CONFIG = 100_000  # bytes of a config.json
NAMED_RATES = re.compile(r"(\d{1,3})kto(\d{1,3})k", re.IGNORECASE)

Network = unet.UNet | spectral.Spectral


@dataclass(frozen=True)
class Model:
    """A network, in eval mode and float32 on the CPU, and what it is for."""

    network: Network
    rate: int
    """Hz, of what it takes and gives."""
    from_rates: tuple[int, ...]
    """Hz, of the recordings that it has learned to restore, ascending."""
    preset: str
    """"faithful" (waveform loss) or "bright" (spectral and adversarial losses)."""
    origin: str
    """"genkit" or "AP-BWE"."""

    @property
    def architecture(self) -> str:
        """ "unet" or "spectral"."""
        return _name(self.network)


def header(network: Network, *, rate: int, from_rates: Sequence[int], preset: str) -> dict[str, str]:
    """What the safetensors file of a network says about it, for `weights.write`. Raises ValueError."""
    checked, presets = _rates(rate, list(from_rates)), _preset(preset)
    return {
        "architecture": PREFIX + _name(network),
        "network": network.config.json(),
        "rate": str(checked[0]),
        "from_rates": json.dumps(checked[1]),
        "preset": presets,
    }


def load(path: str | Path) -> Model:
    """The model in a file, or in a folder that holds one. Raises ModelError."""
    path = _file(Path(path))
    about, tensors = weights.metadata(path), weights.read(path)
    try:
        if about.get("architecture", "").startswith(PREFIX):
            return _own(about, tensors, path)
        if "conv_pre_mag.weight" in tensors and "linear_post_pha_r.weight" in tensors:
            return _published(tensors, path)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path}: what is stated about it is damaged ({_reason(error)})") from error
    family = weights.looks_like(tensors)
    what = f": it looks like {family}" if family else ""
    raise ModelError(f"{path} is no audio super-resolution model (genkit's own, or a generator of AP-BWE){what}")


def describe(path: Path) -> dict[str, Any]:
    """What a model is, for `genkit inspect`. Raises ModelError."""
    model = load(path)
    return {
        "is": f"{model.architecture} network of {model.origin}, {model.preset}, to {model.rate} Hz",
        "from": ", ".join(f"{rate} Hz" for rate in model.from_rates),
        "parameters": sum(parameter.numel() for parameter in model.network.parameters()),
    }


def _own(about: Mapping[str, str], tensors: Mapping[str, Tensor], path: Path) -> Model:
    architecture, stated = about["architecture"].removeprefix(PREFIX), json.loads(about["network"])
    if architecture not in ("unet", "spectral"):
        raise ModelError(f"{path}: genkit knows no network {architecture[:60]!r} of this kind; update genkit")
    config = unet.Config(**stated) if architecture == "unet" else spectral.Config(**stated)
    rate, from_rates = _rates(json.loads(about["rate"]), json.loads(about["from_rates"]))
    return Model(_network(config, tensors, path), rate, tuple(from_rates), _preset(about["preset"]), "genkit")


def _published(tensors: Mapping[str, Tensor], path: Path) -> Model:
    channels, frequencies, _ = tensors["conv_pre_mag.weight"].shape
    layers = len({key.split(".")[1] for key in tensors if key.startswith("convnext_mag.")})
    found = {"ConvNeXt_channels": channels, "ConvNeXt_layers": layers, "n_fft": 2 * (frequencies - 1)}
    stated = _stated(path, found)
    for name, value in found.items():
        if stated[name] != value:
            raise ModelError(
                f"{path} and the config.json beside it differ: {name} is {value}, there {str(stated[name])[:20]}"
            )
    rate, from_rates = _rates(stated["hr_sampling_rate"], [stated["lr_sampling_rate"]])
    config = spectral.Config(channels, layers, found["n_fft"], stated["hop_size"], stated["win_size"])
    return Model(_network(config, tensors, path), rate, tuple(from_rates), "bright", "AP-BWE")


def _stated(path: Path, found: Mapping[str, int]) -> dict[str, Any]:
    """The config.json beside a checkpoint of AP-BWE, or what stands for it where there is none."""
    file = path.with_name("config.json")
    if file.is_file():
        if file.stat().st_size > LARGEST_CONFIG:
            raise ModelError(f"{file} is no config.json of AP-BWE: it is longer than {LARGEST_CONFIG:,} bytes")
        return json.loads(file.read_bytes())
    named = NAMED_RATES.search(path.name) or NAMED_RATES.search(path.absolute().parent.name)
    published = spectral.Config()
    if named is None or found["n_fft"] != published.n_fft:
        raise ModelError(f"{path} is a generator of AP-BWE whose rates nothing states; put its config.json beside it")
    low, high = (1000 * int(number) for number in named.groups())
    settings = {"hop_size": published.hop, "win_size": published.window}
    return {**found, **settings, "hr_sampling_rate": high, "lr_sampling_rate": low}


def _network(config: unet.Config | spectral.Config, tensors: Mapping[str, Tensor], path: Path) -> Network:
    with torch.device("meta"):  # takes no memory before all shapes have proved right
        network = unet.UNet(config) if isinstance(config, unet.Config) else spectral.Spectral(config)
    weights.load_into(network, {name: tensor.float() for name, tensor in tensors.items()}, name=str(path))
    return network.eval().requires_grad_(False)


def _file(path: Path) -> Path:
    """The one model in a folder; of AP-BWE's checkpoints the last, as its authors take it."""
    if not path.is_dir():
        return path
    for pattern in ("*.safetensors", "g_*", "*.pth", "*.pt"):
        found = sorted(file for file in path.glob(pattern) if file.is_file())
        if len(found) == 1 or (found and pattern == "g_*"):
            return found[-1]
        if found:
            names = ", ".join(file.name for file in found[:5])
            raise ModelError(f"folder {path} holds several models ({names}); name one")
    raise ModelError(f"folder {path} holds no model: no .safetensors, and no g_... of AP-BWE")


def _rates(rate: Any, from_rates: Any) -> tuple[int, list[int]]:
    """Both checked, the second sorted. Raises ValueError."""
    if not isinstance(from_rates, list) or not from_rates:
        raise ValueError(f"from_rates {from_rates!r} are no list of rates")
    for value in (rate, *from_rates):
        if type(value) is not int or not RATES[0] <= value <= RATES[1]:
            raise ValueError(f"rate {value!r} is no number of Hz from {RATES[0]:,} to {RATES[1]:,}")
    if max(from_rates) >= rate:
        raise ValueError(f"from_rates {from_rates!r} are not below the rate {rate}")
    return rate, sorted(set(from_rates))


def _preset(preset: str) -> str:
    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r} is none of {', '.join(PRESETS)}")
    return preset


def _name(network: Network) -> str:
    return "unet" if isinstance(network, unet.UNet) else "spectral"


def _reason(error: Exception) -> str:
    text = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return text[:160] or type(error).__name__
