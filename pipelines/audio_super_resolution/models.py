"""The models that go by an alias, for `genkit models` and `--model`. Imports no torch.

An alias has a file for each preset; `genkit models` lists the one of `bright`, the default.
"""

from __future__ import annotations

from collections.abc import Mapping

from genkit.weights import Model

__all__ = ["DEFAULT_PRESET", "MODELS", "RATES", "shipped"]

HOME = "shipped:pipelines.audio_super_resolution/weights"
DEFAULT_PRESET = "bright"

MODELS: Mapping[str, Model] = {
    "speech-16k": Model(
        ref=f"{HOME}/speech-16k-{DEFAULT_PRESET}.safetensors",
        summary="speech to 16 kHz; the default for that rate",
        size="8 MB",
        licence="Apache-2.0",
    ),
    "piano-44k": Model(
        ref=f"{HOME}/piano-44k-{DEFAULT_PRESET}.safetensors",
        summary="piano to 44.1 and 48 kHz; the default for those rates",
        size="8 MB",
        licence="Apache-2.0",
    ),
}

RATES: Mapping[str, int] = {"speech-16k": 16000, "piano-44k": 44100}
"""Hz, that each alias works at."""


def shipped(alias: str, preset: str) -> str:
    """The reference of an alias's file for a preset."""
    return f"{HOME}/{alias}-{preset}.safetensors"
