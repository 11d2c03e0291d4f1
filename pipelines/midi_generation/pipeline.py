"""A melody carried on, a piece written, a gap filled, an accompaniment found: MIDI by a Transformer-XL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import genkit.pipeline

__all__ = ["MidiGeneration"]


class Params(genkit.pipeline.Params):
    """What a piece is made from."""


class MidiGeneration(genkit.pipeline.Pipeline):
    """Music by a Transformer-XL. See `Params` for what a call takes."""

    name = "midi-generation"
    Params = Params
    produces = "midi"
    trainings: ClassVar[Mapping[str, str]] = {
        "midi-transformer-xl": "pipelines.midi_generation.train.transformer_xl:MidiTransformerXL",
    }
