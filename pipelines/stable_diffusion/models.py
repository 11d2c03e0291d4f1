"""The models that go by an alias, for `genkit models` and `--model`. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping

from genkit.weights import Model

__all__ = ["DEFAULT", "MODELS"]

DEFAULT = "emoji"

MODELS: Mapping[str, Model] = {
    "emoji": Model(
        ref="shipped:pipelines.stable_diffusion/weights/emoji",
        summary="emoji of two hands from a few words, 128 px; genkit's own, the default",
        size="31 MB",
        licence="Apache-2.0",
    ),
}
