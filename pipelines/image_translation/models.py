"""The models that go by an alias, for `genkit models` and `--model`. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping

from genkit.weights import Model

__all__ = ["DEFAULT", "MODELS"]

HOME = "shipped:pipelines.image_translation/weights"
DEFAULT = "noto-to-blob"

MODELS: Mapping[str, Model] = {
    "noto-to-blob": Model(
        ref=f"{HOME}/noto-to-blob.safetensors",
        summary="emoji of Noto's hand drawn in that of Blobmoji; genkit's own, the default",
        size="6 MB",
        licence="Apache-2.0",
    ),
    "blob-to-noto": Model(
        ref=f"{HOME}/blob-to-noto.safetensors",
        summary="the way back, Blobmoji into Noto",
        size="6 MB",
        licence="Apache-2.0",
    ),
}
