"""The models that go by an alias, for `genkit models` and `--model`. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping

from genkit.weights import Model

__all__ = ["MODELS"]

MODELS: Mapping[str, Model] = {
    "lieder": Model(
        ref="shipped:pipelines.midi_generation/weights/lieder.safetensors",
        summary="nineteenth-century songs for voice and piano; the default",
        size="14 MB",
        licence="CC0-1.0",
    ),
}
