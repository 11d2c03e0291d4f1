"""The models that go by an alias, for `genkit models` and `--model`. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping

from genkit.weights import Model

__all__ = ["FEATURES", "MODELS"]

HOME = "shipped:pipelines.style_transfer/weights"

FEATURES: Mapping[str, Model] = {
    "small": Model(
        ref=f"{HOME}/small.safetensors",
        summary="feature network, genkit's own; the default",
        size="1.7 MB",
        licence="Apache-2.0",
    ),
    "squeezenet1_0": Model(
        ref="torchvision:squeezenet1_0",
        summary="feature network, its teacher",
        size="5 MB",
        licence="BSD-3-Clause",
    ),
    "vgg16": Model(
        ref="torchvision:vgg16",
        summary="feature network of Johnson et al.",
        size="553 MB",
        licence="BSD-3-Clause",
        needs="0.6 GB of memory at 512 px",
    ),
    "vgg19": Model(
        ref="torchvision:vgg19",
        summary="feature network of Gatys et al.; the best results",
        size="575 MB",
        licence="BSD-3-Clause",
        needs="0.7 GB of memory at 512 px",
    ),
}

MODELS: Mapping[str, Model] = {
    **FEATURES,
    "starry-night": Model(
        ref=f"{HOME}/starry-night.safetensors",
        summary="fast: Van Gogh's Starry Night in one pass",
        size="0.9 MB",
        licence="Apache-2.0",
    ),
}
