"""Where recordings are restored: listen, decide, resample, make the treble piece by piece, join it, keep the result.

Nothing is held but a few pieces: a recording is read block by block, twice (once to find its cutoff), and a long result
goes to a scratch file (`genkit.media.recording`).

Choices made here:
- A result at another rate than the model's is the recording resampled to it, with the treble resampled and added: the
  recorded band makes no detour.
- Nothing is scaled. What goes beyond full scale stays so in memory, is clipped in a file, and is told.
- On the CPU a channel goes through by itself, so that a recording comes out the same to the last bit in any batch;
  other devices, which are slow on few rows, take many together.
- On the CPU, in float32, layers take quicker forms (`networks.quick`), which differ by rounding.
- Layers compute in the runtime's dtype by autocast; spectra, bands and results are float32 and more.

C: channels; T: samples; B: rows in a batch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genkit import weights
from genkit.errors import GenkitError, InputError
from genkit.media.audio import Audio
from genkit.media.recording import Recording, keep
from genkit.media.streaming import Reader
from genkit.pipeline import Output, Progress
from genkit.runtime import Runtime
from pipelines.audio_super_resolution import bands, streams
from pipelines.audio_super_resolution.ahead import Ahead, Queued
from pipelines.audio_super_resolution.bandwidth import detect
from pipelines.audio_super_resolution.chunks import Part, Pieces, cut
from pipelines.audio_super_resolution.deciding import DEFAULT_RATES, Decision, Recorded, decide, rates_of
from pipelines.audio_super_resolution.loading import Model, Network, load
from pipelines.audio_super_resolution.meter import Meter
from pipelines.audio_super_resolution.models import DEFAULT_PRESET, MODELS, RATES, shipped
from pipelines.audio_super_resolution.networks.quick import quicken

if TYPE_CHECKING:
    from pipelines.audio_super_resolution.pipeline import Params

__all__ = ["Restorer"]

PIECE = 1 << 18  # samples of a piece, context apart; at least four times the context
ROOM = {"cpu": 0, "other": 1 << 22}  # samples, all rows together, that go through a network at once: one row at least


@dataclass
class Work:
    """One recording on its way. frames: samples per channel that it has; top: Hz, from which on it is restored;
    filtered: what it has above is taken out first; model: None where it is passed on."""

    name: str
    source: Audio
    frames: int
    top: float
    filtered: bool
    decision: Decision
    model: Model | None
    found: dict[str, Any]
    notes: list[str]

    def at(self, rate: int) -> Iterator[Tensor]:
        """The recording at a rate, in blocks."""
        blocks = streams.resampled(self.source.blocks(), self.source.sample_rate, rate)
        return streams.lowpassed(blocks, self.top, rate) if self.filtered else blocks

    def length(self, rate: int) -> int:
        return -(-self.frames * rate // self.source.sample_rate)


class Restorer:
    """The loaded models of one pipeline object. model: as `AudioSuperResolution.load` takes it. Raises ModelError."""

    def __init__(self, model: str | Path | None, runtime: Runtime) -> None:
        self.model, self.runtime = model, runtime
        self._rows = dataclasses.replace(runtime, _fits=None)  # it remembers how many rows fit, not how many items
        # The bands are float64, which other devices lack.
        self._home = runtime.device if runtime.device.type == "cuda" else torch.device("cpu")
        self._shipped: dict[tuple[str, str], Model] = {}
        self._own = None if model is None or str(model) in MODELS else self._loaded(model)

    def _loaded(self, ref: str | Path) -> Model:
        model = load(weights.locate(ref, MODELS))
        self.runtime.place(model.network, dtype=torch.float32)
        if self.runtime.device.type == "cpu" and self.runtime.dtype == torch.float32:
            quicken(model.network)
        return model

    def make(self, batch: Sequence[Params], progress: Progress) -> list[Output]:
        """One sound for each item. Raises InputError, MediaError, DiskFull, and what `progress` raises."""
        sources = [_open(params.audio) for params in batch]
        listened = [
            length / source.sample_rate * (params.cutoff is None)
            for params, (source, length) in zip(batch, sources, strict=True)
        ]
        meter = Meter(progress, sum(length / source.sample_rate for source, length in sources), sum(listened))
        works = [self._work(params, source, meter) for params, (source, _) in zip(batch, sources, strict=True)]
        ahead = Ahead(self._queue(works), self._through, self._room)
        return [self._output(work, ahead.of(item), meter) for item, work in enumerate(works)]

    # ---------------------------------------------------------------------------------------------- what is to be done

    def _work(self, params: Params, source: Audio, meter: Meter) -> Work:
        """Listens, and decides. Raises InputError."""
        self._check_preset(params)
        name = repr(str(params.audio)) if isinstance(params.audio, Path) else "the sound"
        recorded, frames = self._listen(params, source, name, meter)
        rates = DEFAULT_RATES
        if self.model is not None:
            rates = rates_of(self._own.rate if self._own else RATES[str(self.model)])
        decision = decide(recorded, params.sample_rate, rates, str(self.model))
        model = self._model(decision.working, params.preset or DEFAULT_PRESET) if decision.restores else None
        top, rises = recorded.top, source.sample_rate < decision.working
        if rises:  # below half its rate the recording falls off: in the filter it was made with, and in that to come
            top = min(top, bands.KEPT * source.sample_rate / 2)
        found = {"recording": str(recorded), "sample_rate": decision.rate}
        found |= {"restored": f"from {top:,.0f} Hz", "model": self._words(model)} if model else {"restored": "no"}
        # What is left above a cutoff is noise, and a network would make it louder.
        filtered = model is not None and (not rises or params.cutoff is not None)
        return Work(name, source, frames, top, filtered, decision, model, found, [*decision.notes])

    def _check_preset(self, params: Params) -> None:
        if self._own and params.preset not in (None, self._own.preset):
            raise InputError(
                f"preset {params.preset!r} does not fit model {str(self.model)!r}, which is {self._own.preset!r}; "
                "leave one out"
            )

    def _listen(self, params: Params, source: Audio, name: str, meter: Meter) -> tuple[Recorded, int]:
        """What the recording holds, and its length."""
        rate = source.sample_rate
        if params.cutoff is not None:
            if params.cutoff > rate / 2:
                raise InputError(
                    f"cutoff {params.cutoff:g} Hz is above half the rate of {name} ({rate / 2:g} Hz); give less"
                )
            return Recorded(name, rate, params.cutoff, None), source.frames
        frames = 0

        def blocks() -> Iterator[Tensor]:
            nonlocal frames
            for block in source.blocks():
                frames += block.shape[1]
                meter.listened(block.shape[1] / rate)
                yield block

        found = detect(blocks(), rate)
        return Recorded(name, rate, 0.0 if found.kind == "silent" else found.cutoff, found), frames

    def _model(self, working: int, preset: str) -> Model:
        """The model asked for, or the one that ships for a rate. Raises ModelError."""
        if self._own:
            return self._own
        alias = str(self.model or next(alias for alias, rate in RATES.items() if rate == working))
        if (alias, preset) not in self._shipped:
            self._shipped[alias, preset] = self._loaded(shipped(alias, preset))
        return self._shipped[alias, preset]

    def _words(self, model: Model) -> str:
        named = "a file of its own" if self._own else next(a for (a, _), m in self._shipped.items() if m is model)
        return f"{named}: {model.preset}, {model.architecture}, {model.rate} Hz"

    # -------------------------------------------------------------------------------------------------- how it is done

    @property
    def _room(self) -> int:
        return ROOM["cpu" if self.runtime.device.type == "cpu" else "other"]

    def _queue(self, works: Sequence[Work]) -> Iterator[Queued]:
        for item, work in enumerate(works):
            if work.model is not None:
                for part in cut(work.at(work.decision.working), _pieces(work.model, work.top)):
                    yield Queued(item, work.model.network, part)

    def _through(self, network: Network, rows: Tensor) -> Tensor:
        """[B, T] through a network, in as many calls as there is room for. Raises DeviceError (memory)."""
        device, dtype = self.runtime.device, self.runtime.dtype

        def work(part: Sequence[Tensor]) -> list[Tensor]:
            with self.runtime.inference(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                return list(network.restore(torch.stack(list(part)).to(device)).float().to(self._home))

        done = [self._rows.halving(work, list(some)) for some in rows.split(max(1, self._room // rows.shape[1]))]
        return torch.stack([row for some in done for row in some])

    def _joined(self, work: Work, part: Part, made: Tensor) -> Tensor:
        """What is added to a piece of the recording, [C, T]. Raises GenkitError where a network made no sound."""
        assert work.model is not None
        rate, network = work.model.rate, work.model.network
        own = part.samples.to(self._home)
        if not made.isfinite().all():
            raise GenkitError(f"what was made for {work.name} is not a sound (NaN): use --dtype float32")
        joined = bands.keep_band(own, bands.link(own, made, work.top, rate), work.top, rate)
        treble = joined - own
        gain = streams.awake(own, rate, network.multiple)
        return (treble if gain is None else gain * treble)[:, part.start : part.end].cpu()

    def _made(self, work: Work, pieces: Iterator[tuple[Part, Tensor]]) -> Iterator[Tensor]:
        """The result, at its rate, in blocks."""
        rate = work.decision.rate
        if work.model is None:
            yield from work.at(rate)
        elif rate == work.model.rate:
            for part, made in pieces:
                yield part.samples[:, part.start : part.end] + self._joined(work, part, made)
        else:
            treble = (self._joined(work, part, made) for part, made in pieces)
            yield from streams.add(work.at(rate), streams.resampled(treble, work.model.rate, rate))

    def _output(self, work: Work, pieces: Iterator[tuple[Part, Tensor]], meter: Meter) -> Output:
        rate, peak = work.decision.rate, 0.0

        def told() -> Iterator[Tensor]:
            nonlocal peak
            for block in self._made(work, pieces):
                peak = max(peak, float(block.abs().max()))
                meter.restored(block.shape[1] / rate)
                yield block

        audio = keep(told(), rate, work.source.channels, frames=work.length(rate), name=f"what was made of {work.name}")
        if peak > 1:
            over = 20 * math.log10(peak)
            work.found["peak"] = f"{over:.1f} dB over full scale"
            work.notes.append(
                f"the result goes {over:.1f} dB over full scale, and files clip there; turn {work.name} down first"
            )
        return Output(audio=audio, info=dict(work.found), found=work.found, notes=work.notes)


def _open(value: Any) -> tuple[Audio, int]:
    """A sound that is read as often as it is needed, and how long it says it is. Raises MediaError."""
    if isinstance(value, Path):
        with Reader(value) as reader:
            return Recording.open(value), reader.frames
    audio = Audio.open(value)
    return audio, audio.frames


def _pieces(model: Model, cutoff: float) -> Pieces:
    network = model.network
    made = network.context + bands.reach(cutoff, model.rate)
    context = max(made, streams.awake_reach(model.rate, network.multiple))  # which looks at the recording alone
    return Pieces(max(PIECE, 4 * context), context, network.multiple)
