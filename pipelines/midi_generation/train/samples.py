"""What a training lets be heard: held-out pieces carried on, and a song from nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from genkit.media.midi import Midi
from genkit.pipeline import silent
from genkit.runtime import Runtime
from pipelines.midi_generation.composing.studio import Studio, cannot_write
from pipelines.midi_generation.loading import Model
from pipelines.midi_generation.pipeline import Params

__all__ = ["samples"]

GIVEN, WRITTEN = 4, 8  # bars
PIECES = 2


def samples(model: Model, pieces: Sequence[np.ndarray], device: torch.device, memory: int) -> dict[str, Midi]:
    """Pieces by name. pieces: lines of tokens, of which the first bars are carried on. None from a model that cannot
    write (see `cannot_write`)."""
    if cannot_write(model):
        return {}
    prompts = [model.vocabulary.bars(piece)[:GIVEN] for piece in pieces[:PIECES]]
    orders = {
        f"continued-{i}": Params(prompt=Midi(model.vocabulary.decode(np.concatenate(bars))), bars=WRITTEN, seed=i)
        for i, bars in enumerate(prompts)
    } | {"composed": Params(bars=WRITTEN, seed=0)}
    together = [order.model_copy(update={"memory": max(memory, 16)}) for order in orders.values()]
    outputs = Studio(model, Runtime(device)).make(together, silent)
    return {name: output.midi for name, output in zip(orders, outputs, strict=True) if output.midi is not None}
