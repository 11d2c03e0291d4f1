"""Fits a model into the memory there is."""
from __future__ import annotations
from typing import Any
from genkit.runtime import Runtime
from pipelines.stable_diffusion.models import Defaults
def place(pipe: Any, runtime: Runtime, denoiser: str, defaults: Defaults) -> list[str]:
    pipe.to(runtime.device)
    return []
def follow(pipe: Any, first: Any) -> None:
    pass
