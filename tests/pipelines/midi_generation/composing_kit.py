"""For the tests of what composes: tiny random networks in model files, and writers driven without any network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import symusic
import torch

from genkit import weights
from pipelines.midi_generation.composing.grammar import Grammar
from pipelines.midi_generation.composing.writing import Choose, Given, Writer, Written
from pipelines.midi_generation.networks.transformer_xl import Config, TransformerXL
from pipelines.midi_generation.tokens.instruments import Instruments
from pipelines.midi_generation.tokens.vocabulary import Vocabulary

VOCABULARY = Vocabulary.build()
GRAMMAR = Grammar(VOCABULARY)
HEARD = Instruments({0: (0.98, 61.6), 68: (0.9, 69.8), 52: (0.05, 63.0)})
CONFIG = Config(len(VOCABULARY), layers=2, width=32, heads=2, feedforward=64, places=180, bars=16)


def network(seed: int = 0, config: Config = CONFIG, vocabulary: Vocabulary = VOCABULARY) -> TransformerXL:
    """A random one with a mind of its own, that closes its bars before long."""
    torch.manual_seed(seed)
    made = TransformerXL(config).eval().requires_grad_(False)
    for weight in made.parameters():
        if weight.dim() > 1:
            weight.mul_(3)
    made.embedding.weight.mul_(5)
    if "Bar_None" in vocabulary.ids:
        made.output_bias[vocabulary.ids["Bar_None"]] = 1.5
    return made


def header(vocabulary: Vocabulary = VOCABULARY, config: Config = CONFIG, /, **other: str) -> dict[str, str]:
    """What a model file's header says; other: entries instead of, or besides, those."""
    return {
        "architecture": "genkit.midi-generation.transformer-xl",
        "vocabulary": vocabulary.record(),
        "network": config.json(),
        "instruments": HEARD.record(),
    } | other


def model_file(path: Path, *, tensors: Mapping[str, Any] | None = None, **other: str) -> Path:
    """A model file with a tiny network. other: entries of the header."""
    weights.write(path, tensors or network().state_dict(), metadata=header(**other))
    return path


def config_text(**other: Any) -> str:
    """A network's record with some values replaced."""
    return json.dumps(json.loads(CONFIG.json()) | other)


def drive(writer: Writer, seed: int, closing: float = 0.2) -> tuple[list[int], list[Written]]:
    """Runs a writer, any allowed token as likely as another, but Bar with a chance of its own. -> line, bars"""
    random, line, bars, answer = np.random.default_rng(seed), [], [], None
    try:
        while True:
            request = writer.send(answer)
            answer = None
            if isinstance(request, Given):
                assert len(request.tokens) == len(request.bars)
                line += map(int, request.tokens)
            elif isinstance(request, Written):
                bars.append(request)
            else:
                answer = _drawn(request, random, closing)
    except StopIteration:
        return line, bars


def _drawn(choice: Choose, random: np.random.Generator, closing: float) -> int:
    allowed = np.flatnonzero(choice.allowed)
    assert len(allowed)
    if choice.allowed[GRAMMAR.bar] and (random.random() < closing or len(allowed) == 1):
        return GRAMMAR.bar
    allowed = allowed[allowed != GRAMMAR.bar]
    kinds = [VOCABULARY.kinds[token] for token in allowed]  # a kind first, so that pitches do not crowd out the rest
    kind = random.choice(sorted(set(kinds)))
    return int(random.choice([token for token, own in zip(allowed, kinds, strict=True) if own == kind]))


def tune(bars: int = 4, program: int = 0) -> Any:
    """A symusic score: quarters up and down, whole bars of 4/4."""
    made = symusic.Score(480)
    made.tracks.append(symusic.Track(program=program))
    for i in range(4 * bars):
        made.tracks[0].notes.append(symusic.Note(480 * i, 480, 60 + (0, 4, 7, 4)[i % 4] + i % 3, 70))
    return made
