"""`genkit evaluate midi --model M PIECES`: how likely a model finds pieces, beside n-grams of the same tokens.

Bits per note and per second are the bits of all tokens over the notes and the seconds of the files: they compare models
whose tokens differ.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from genkit import weights
from genkit.errors import InputError, MediaError
from genkit.evaluation import Report
from genkit.pipeline import Progress
from genkit.runtime import Runtime
from pipelines.midi_generation import loading
from pipelines.midi_generation.measuring.evaluate import read
from pipelines.midi_generation.measuring.likelihood import Likelihood, likelihood, windowed
from pipelines.midi_generation.measuring.ngram import NGram
from pipelines.midi_generation.models import MODELS
from pipelines.midi_generation.tokens.vocabulary import Vocabulary

__all__ = ["likely", "line"]

KEYS = range(-6, 6)  # semitones to all twelve keys


def likely(params: Any, report: Report, progress: Progress) -> None:
    """Adds the table `likelihood` to the report. Raises InputError, MediaError, ModelError, DeviceError."""
    runtime = Runtime.pick(device=params.device, dtype="float32")
    model = loading.load(weights.locate(params.model, MODELS))
    vocabulary = model.vocabulary

    def take(midi: Any) -> tuple[np.ndarray, int, float]:
        return _tokens(vocabulary, midi), midi.notes, midi.duration

    pieces = read(params.pieces, take, report, progress, "pieces")
    lines = [line(vocabulary, tokens) for _, (tokens, _, _) in pieces]
    notes, seconds = sum(n for _, (_, n, _) in pieces), sum(s for _, (_, _, s) in pieces)
    found: list[tuple[str, str | int | None, Likelihood]] = []
    if params.train is None:
        report.notes.append("no unigram and no n-gram beside it: --train names what they learn from")
    else:
        trained = read([params.train], lambda midi: _tokens(vocabulary, midi), report, progress, "train")
        _warn_of_copies({path.resolve() for path, _ in pieces}, trained, report)
        found += _ngrams(params, vocabulary, [t for t, *_ in lines], [tokens for _, tokens in trained])
    _check_memory(params, runtime, model, [len(tokens) for tokens, *_ in lines])
    network = runtime.place(model.network)
    with runtime.active():
        for memory, one in _readings(params, network, model.architecture, vocabulary, lines, progress):
            found.append((model.architecture, memory, one))
    if model.architecture == "gpt2":
        report.notes.append(
            f"gpt2 sees windows of {network.context} tokens, each half of one further on, and is asked for the second "
            "half of each"
        )
    total = sum(len(tokens) - 1 for tokens, *_ in lines)
    report.facts |= {"pieces": len(pieces), "tokens": total, "notes": notes, "seconds": seconds}
    report.tables["likelihood"] = [
        _row(name, memory, replace(one, notes=notes, seconds=seconds)) for name, memory, one in found
    ]


def _check_memory(params: Any, runtime: Runtime, model: loading.Model, sizes: Sequence[int]) -> None:
    """Whether the scores of attention of a batch will fit, by a generous count. Raises InputError."""
    context = getattr(model.network, "context", None)
    t = min(context or params.segment, max(sizes))
    k = t if context else min(t + max(params.memory), max(sizes))
    b = params.batch if context else min(params.batch, len(sizes))
    config = model.network.config
    need = b * t * (4 * config.heads * k * 4 + 3 * config.vocabulary * 4 + config.layers * config.width * 8)
    if need > 0.9 * runtime.free_memory():
        raise InputError(
            f"batch {params.batch}, segment {params.segment} and memory {max(params.memory)} need about "
            f"{need / 2**30:.0f} GB; lower them"
        )


def _row(name: str, memory: str | int | None, found: Likelihood) -> dict[str, Any]:
    return {
        "model": name,
        "memory": memory,
        "nats_per_token": found.nll,
        "bits_per_note": found.bits_per_note,
        "bits_per_second": found.bits_per_second,
    }


def _tokens(vocabulary: Vocabulary, midi: Any) -> np.ndarray:
    """A piece's base tokens."""
    tokens = vocabulary.encode(midi.score)
    if not len(tokens):
        raise MediaError("holds no notes that the model has tokens for")
    return tokens


def line(vocabulary: Vocabulary, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A piece as the network reads it, `BOS Key bars... EOS`: tokens, place, bar and weight, int64 [T] each."""
    key = vocabulary.key_of(tokens)
    start = [vocabulary.special("BOS")] + ([] if key is None else [vocabulary.key(key)])
    base = np.concatenate([start, tokens, [vocabulary.special("EOS")]]).astype(np.int64)
    place, bar = vocabulary.clock(base)
    merged, last = vocabulary.merge(base)
    return merged, place[last], bar[last], np.ones(len(merged), np.int64)


def _readings(
    params: Any,
    network: Any,
    architecture: str,
    vocabulary: Vocabulary,
    lines: Sequence[tuple[np.ndarray, ...]],
    progress: Progress,
) -> Iterator[tuple[str | int, Likelihood]]:
    """With each length of memory, what the network makes of the lines."""
    pitches = vocabulary.where("Pitch") | vocabulary.where("PitchDrum")
    total = sum(len(tokens) - 1 for tokens, *_ in lines)
    if architecture == "gpt2":
        done = _Counted(progress, total, "gpt2")
        found = windowed(network, lines, context=network.context, batch=params.batch, pitches=pitches, done=done)
        yield f"{network.context // 2} to {network.context}", found
        return
    asked = [(memory, False) for memory in params.memory] + [(m, True) for m in params.memory if params.sliding and m]
    stated = network.config
    for memory, sliding in asked:
        label = f"{memory}, sliding" if sliding else memory
        network.config = replace(stated, same_length=True) if sliding else stated
        yield (
            label,
            likelihood(
                network,
                lines,
                segment=params.segment,
                memory=memory,
                batch=params.batch,
                pitches=pitches,
                done=_Counted(progress, total, f"memory {label}"),
            ),
        )
    network.config = stated


class _Counted:
    """Tells a progress of tokens as they are read."""

    def __init__(self, progress: Progress, total: int, note: str) -> None:
        self.progress, self.total, self.note, self.read = progress, total, note, 0

    def __call__(self, tokens: int) -> None:
        self.read += tokens
        self.progress(min(self.read, self.total), self.total, note=self.note)


def _ngrams(
    params: Any, vocabulary: Vocabulary, lines: Sequence[np.ndarray], trained: Sequence[np.ndarray]
) -> Iterator[tuple[str, None, Likelihood]]:
    """Unigram and n-gram that learned from the base tokens of pieces, by name."""
    for name, order, source in _kinds(params, vocabulary, trained):
        model = NGram.fit(source(), len(vocabulary), order)
        nats = -sum(float(model.log_probabilities(tokens).sum()) for tokens in lines)
        yield name, None, Likelihood(nats, sum(len(tokens) - 1 for tokens in lines), 0)


def _kinds(
    params: Any, vocabulary: Vocabulary, pieces: Sequence[np.ndarray]
) -> Iterator[tuple[str, int, Callable[[], Iterator[np.ndarray]]]]:
    """Name, order and training lines of each n-gram asked for."""

    def plain() -> Iterator[np.ndarray]:
        return (line(vocabulary, tokens)[0] for tokens in pieces)

    def twelve() -> Iterator[np.ndarray]:
        for semitones in KEYS:
            for tokens in pieces:
                try:
                    moved = vocabulary.transpose(tokens, semitones)
                except ValueError:  # out of MIDI's range: this piece is in fewer keys
                    continue
                yield line(vocabulary, moved)[0]

    yield "unigram", 1, plain
    if params.order > 1:
        yield f"{params.order}-gram", params.order, plain
    if params.transpose:
        yield f"{params.order}-gram, 12 keys", params.order, twelve


def _warn_of_copies(measured: Collection[Path], trained: Sequence[tuple[Path, Any]], report: Report) -> None:
    """Notes it where the pieces to measure are among those learned from."""
    shared = sum(path.resolve() in measured for path, _ in trained)
    if shared:
        report.notes.append(f"{shared} of the pieces are in --train too: what is said of them is no measure")
