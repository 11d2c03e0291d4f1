"""genkit: a generative media toolkit for images and audio.

    import genkit

    painter = genkit.load("style-transfer")
    painter(content="photo.jpg", style="night.jpg", size=512, seed=7).save("out.png")

Every public name is imported when it is first used, so that `import genkit` costs nothing and never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from genkit._version import __version__

if TYPE_CHECKING:
    from genkit.errors import GenkitError, InputError, MediaError, ModelError, RecipeError
    from genkit.media.audio import Audio
    from genkit.media.image import Image
    from genkit.media.midi import Midi
    from genkit.pipeline import Output, Params, Pipeline, Progress
    from genkit.registry import load, pipelines

__all__ = [
    "Audio",
    "GenkitError",
    "Image",
    "InputError",
    "MediaError",
    "Midi",
    "ModelError",
    "Output",
    "Params",
    "Pipeline",
    "Progress",
    "RecipeError",
    "__version__",
    "load",
    "pipelines",
]

_HOME = {
    "Audio": "genkit.media.audio",
    "Image": "genkit.media.image",
    "Midi": "genkit.media.midi",
    **dict.fromkeys(("GenkitError", "InputError", "MediaError", "ModelError", "RecipeError"), "genkit.errors"),
    **dict.fromkeys(("Output", "Params", "Pipeline", "Progress"), "genkit.pipeline"),
    **dict.fromkeys(("load", "pipelines"), "genkit.registry"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'genkit' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
