"""Tiny models of both architectures in files, and sounds with a known cutoff."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor, nn

from genkit import weights
from genkit.media import sampling
from genkit.media.audio import Audio
from pipelines.audio_super_resolution.loading import header
from pipelines.audio_super_resolution.networks.spectral import Config as SpectralConfig
from pipelines.audio_super_resolution.networks.spectral import Spectral
from pipelines.audio_super_resolution.networks.unet import Config as UNetConfig
from pipelines.audio_super_resolution.networks.unet import UNet

PRESETS = {"unet": "faithful", "spectral": "bright"}


def network(name: str, seed: int = 0) -> nn.Module:
    """Random weights, large enough that what is made is heard."""
    torch.manual_seed(seed)
    if name == "unet":
        made: nn.Module = UNet(UNetConfig(blocks=2, width=4))
        nn.init.normal_(made.last.weight, std=0.1)
        return made.eval()
    return Spectral(SpectralConfig(channels=8, layers=1, n_fft=64, hop=16, window=64)).eval()


def model_file(
    path: Path, name: str = "spectral", *, rate: int = 16000, preset: str | None = None, seed: int = 0
) -> Path:
    """genkit's own file of a tiny network."""
    net = network(name, seed)
    about = header(net, rate=rate, from_rates=[rate // 4, rate // 2], preset=preset or PRESETS[name])
    weights.write(path, net.state_dict(), about)
    return path


def music(channels: int, seconds: float, rate: int, *, seed: int = 0, level: float = 0.1) -> Tensor:
    """Noise that fills the band, swelling and fading; channels differ. [C, T]"""
    generator = torch.Generator().manual_seed(seed)
    t = round(seconds * rate)
    swell = 0.6 + 0.4 * torch.sin(torch.arange(t) / rate * 9)
    return level * swell * torch.randn(channels, t, generator=generator)


def dull(channels: int, seconds: float, old: int = 8000, new: int = 16000, *, seed: int = 0) -> Audio:
    """At `new` Hz, without anything above half of `old`."""
    return Audio(sampling.upsample(music(channels, seconds, old, seed=seed), old, new), new)


def bad(folder: Path) -> dict[str, bytes]:
    """Files that are no sound, or none that can be restored. folder: to make them in."""
    samples = music(1, 1, 8000).numpy().T
    found = {"empty": b"", "text": b"a letter, and no sound at all", "picture": b"\x89PNG\r\n\x1a\n" + bytes(40)}
    for name, format, subtype in (("wav", "WAV", "PCM_16"), ("flac", "FLAC", "PCM_16"), ("adpcm", "WAV", "IMA_ADPCM")):
        soundfile.write(folder / "made", samples, 8000, format=format, subtype=subtype)
        found[name] = (folder / "made").read_bytes()
    found["cut off"] = found.pop("wav")[:5000]
    found["damaged"] = found["flac"][:3000] + bytes(3000) + found.pop("flac")[6000:]
    for name, value in (("nan", np.nan), ("infinity", np.inf)):
        broken = samples.copy()
        broken[5000] = value
        soundfile.write(folder / "made", broken, 8000, format="WAV", subtype="FLOAT")
        found[name] = (folder / "made").read_bytes()
    soundfile.write(folder / "made", np.zeros((0, 1), np.float32), 8000, format="WAV", subtype="PCM_16")
    found["no samples"] = (folder / "made").read_bytes()
    soundfile.write(folder / "made", np.zeros((10, 100), np.float32), 8000, format="WAV", subtype="PCM_16")
    found["a hundred channels"] = (folder / "made").read_bytes()
    (folder / "made").unlink()
    return found
