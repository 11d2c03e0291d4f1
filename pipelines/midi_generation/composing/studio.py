"""Where the pieces are made: reads a prompt onto a sheet, picks the writer of the task, and puts the bars back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import symusic

from genkit import weights
from genkit.errors import InputError, ModelError
from genkit.media.midi import Midi
from genkit.pipeline import Output, Progress
from genkit.runtime import Runtime
from pipelines.midi_generation.composing import varying, writing
from pipelines.midi_generation.composing.composer import Piece, compose
from pipelines.midi_generation.composing.grammar import Grammar
from pipelines.midi_generation.composing.parts import Parts
from pipelines.midi_generation.composing.sampling import Sampling
from pipelines.midi_generation.composing.sheet import Sheet
from pipelines.midi_generation.loading import Model, load
from pipelines.midi_generation.models import MODELS
from pipelines.midi_generation.pipeline import Params, key_number
from pipelines.midi_generation.tokens.bars import Bar, Event
from pipelines.midi_generation.tokens.instruments import ANOTHER, DRUMS, name_of, program_of
from pipelines.midi_generation.tokens.keys import KEYS

__all__ = ["Studio", "cannot_write"]

BARS = 16
APART = ("accompany", "vary")  # tasks in which the parts that write have to be told from the others


@dataclass
class Order:
    """One item: its sheet, its writer's piece, and how what is written goes into the sheet."""

    params: Params
    sheet: Sheet
    key: int | None
    piece: Piece
    put: Callable[[Mapping[int, tuple[int | None, Sequence[Event]]]], Any]
    """Bars by number, TimeSig token and events -> the score."""


class Studio:
    """A network, placed, and what it takes to write with it. model: its network may be one that is being trained."""

    def __init__(self, model: Model, runtime: Runtime) -> None:
        self.runtime = runtime
        self.network = model.network
        self.vocabulary, self.instruments = model.vocabulary, model.instruments
        self.grammar = Grammar(self.vocabulary)

    @classmethod
    def open(cls, name: str | Path, runtime: Runtime) -> Studio:
        """The studio of a model: an alias, a folder or a file. Raises ModelError."""
        model = load(weights.locate(name, MODELS))
        reason = cannot_write(model)
        if reason:
            raise ModelError(f"{name} {reason}; it is for `genkit evaluate`, take another model to write")
        return cls(replace(model, network=runtime.place(model.network)), runtime)

    def make(self, batch: Sequence[Params], progress: Progress) -> list[Output]:
        """One piece for each item. Raises InputError where a prompt and its parameters do not fit."""
        orders = [self.order(params) for params in batch]
        total = sum(order.piece.total for order in orders)

        def heard(pieces: Sequence[Piece]) -> None:
            done = sum(len(piece.written) for piece in pieces)
            first = orders[0]
            note = f"bar {len(first.piece.written)} of {first.piece.total}" if len(orders) == 1 else ""
            progress(done, total, preview=lambda: Midi(self.score(first)), note=note)

        with self.runtime.inference():
            compose(self.network, self.vocabulary, [o.piece for o in orders], memory=batch[0].memory, heard=heard)
        return [self.output(order) for order in orders]

    def output(self, order: Order) -> Output:
        """The piece as it is now."""
        info: dict[str, Any] = {
            "task": order.params.resolved_task,
            "bars": [written.number for written in order.piece.written],
            "tokens": order.piece.tokens,
        }
        if order.key is not None:
            info["key"] = KEYS[order.key]
        return Output(midi=Midi(self.score(order)), seeds=[order.params.seed or 0], info=info)

    def score(self, order: Order) -> Any:
        """The sheet with what has been written so far."""
        score = order.put({bar.number: (bar.signature, bar.events) for bar in order.piece.written})
        if order.params.tempo is not None:
            score.tempos = type(score.tempos)([symusic.Tempo(0, order.params.tempo)])
        return score

    def order(self, params: Params) -> Order:
        """Reads the prompt and sets the writer of the task to work."""
        sheet, parts = self._sheet(params)
        key = key_number(params.key) if params.key is not None else sheet.key()
        makers = {"infill": self._infill, "accompany": self._accompany, "vary": self._vary}
        writer, total, put = makers.get(params.resolved_task, self._carry_on)(params, sheet, parts, key)
        asked = params.duration_temperature
        sampling = Sampling(
            temperature=params.temperature,
            duration_temperature=params.temperature if asked is None else asked,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            repetition_penalty=params.repetition_penalty,
        )
        piece = Piece(writer, sampling, self.runtime.generator(params.seed or 0), total)
        return Order(params, sheet, key, piece, put)

    def _sheet(self, params: Params) -> tuple[Sheet, list[int]]:
        """The prompt as the network reads it, and the programs that will write."""
        task = params.resolved_task
        score = Midi.open(params.prompt).score if params.prompt is not None else None
        named = list(dict.fromkeys(program_of(name) for name in params.instruments or []))
        if task == "accompany" and named and not set(Parts(score).pitches()) - set(named):
            named = [program if program == DRUMS else program + ANOTHER for program in named]  # beside those given
        if named or task != "accompany":
            wanted = named or (self._usual() if score is None else [])
            sheet = Sheet(self.grammar, self.instruments, score, wanted=wanted, apart=named if task in APART else ())
            return sheet, sheet.writers
        heard = Sheet(self.grammar, self.instruments, score).stand_in.values()
        missing = [program for program in self._usual() if program not in heard]
        if not missing:
            raise InputError("instruments is missing: the prompt has all that the model plays; name the parts to write")
        return Sheet(self.grammar, self.instruments, score, wanted=missing, apart=missing), missing

    def _usual(self) -> list[int]:
        """Who plays where nobody is named: the two that the network has heard most."""
        return [program for program in self.instruments.known if program >= 0][:2]

    def _signature(self, params: Params, sheet: Sheet) -> int | None:
        """The TimeSig token of new bars; None leaves the first to the network."""
        if params.time_signature is None:
            return sheet.signature(sheet.bars[-1]) if sheet.bars else None
        token = self.vocabulary.ids.get(f"TimeSig_{params.time_signature}")
        if token is None:
            known = ", ".join(self._values("TimeSig").values()) or "4/4 only"
            raise InputError(f"time_signature {params.time_signature} is none that the model has; it has {known}")
        return token

    def _tempo(self, params: Params) -> int | None:
        """The Tempo token nearest to the tempo asked for."""
        tempos = {token: float(value) for token, value in self._values("Tempo").items()}
        asked = params.tempo
        return min(tempos, key=lambda token: abs(tempos[token] - asked)) if tempos and asked is not None else None

    def _values(self, kind: str) -> dict[int, str]:
        """The tokens of a kind, with their values."""
        return {int(token): self.vocabulary.values[token] for token in np.flatnonzero(self.grammar.of[kind])}

    # The tasks: (writer, bars that it writes, how they go into the sheet). parts: the programs that write.

    def _carry_on(self, params: Params, sheet: Sheet, parts: Sequence[int], key: int | None) -> Any:
        bars = params.bars or BARS
        reach = self.network.config.layers * params.memory  # tokens back that can make a difference
        before = _last(sheet.bars, reach)
        writer = writing.carry_on(
            self.grammar,
            before,
            first=len(sheet.bars) - len(before) + 1,
            bars=bars,
            programs=self._tokens(sheet, parts),
            key=key,
            signature=self._signature(params, sheet),
            tempo=self._tempo(params),
        )
        begun = bool(before) and writing.unfinished(self.grammar, before[-1])
        return writer, bars + begun, partial(sheet.write, replaced=())

    def _infill(self, params: Params, sheet: Sheet, parts: Sequence[int], key: int | None) -> Any:
        first, last = self._span(params, sheet)
        writer = writing.infill(
            self.grammar,
            sheet.bars[: first - 1],
            sheet.bars[last:],
            [sheet.signature(bar) for bar in sheet.bars[first - 1 : last]],
            first=first,
            programs=self._tokens(sheet, parts),
            key=key,
        )
        return writer, last - first + 1, sheet.write

    def _accompany(self, params: Params, sheet: Sheet, parts: Sequence[int], key: int | None) -> Any:
        first, last = self._span(params, sheet)
        given = [program for program in sheet.playing if program not in parts]
        if not given:
            raise InputError("instruments: the prompt has nothing but drums; name another part, or take task 'infill'")
        writer = writing.accompany(
            self.grammar,
            sheet.bars[: first - 1],
            sheet.bars[first - 1 : last],
            first=first,
            given=self._tokens(sheet, given),
            programs=self._tokens(sheet, parts),
            key=key,
        )
        return writer, last - first + 1, partial(sheet.write, replaced=parts)

    def _vary(self, params: Params, sheet: Sheet, parts: Sequence[int], key: int | None) -> Any:
        first, last = self._span(params, sheet)
        silent = [program for program in parts if program not in sheet.playing]
        if silent:
            raise InputError(
                f"instruments: the prompt has no {name_of(silent[0])} to vary; "
                f"it has {', '.join(map(name_of, sheet.playing))}"
            )
        programs = self._tokens(sheet, parts)
        writer = varying.vary(
            self.grammar,
            sheet.bars[: first - 1],
            sheet.bars[first - 1 : last],
            sheet.bars[last:],
            first=first,
            task=params.vary.capitalize(),
            programs=programs,
            key=key,
        )
        return writer, last - first + 1, partial(sheet.vary, programs=programs, rhythm=params.vary == "rhythms")

    def _tokens(self, sheet: Sheet, programs: Sequence[int]) -> list[int]:
        """The Program tokens that the network knows programs by."""
        return list(dict.fromkeys(sheet.token(program) for program in programs))

    def _span(self, params: Params, sheet: Sheet) -> tuple[int, int]:
        """The first and the last bar to write, from 1."""
        bars = len(sheet.bars)
        first, last = params.start_bar or 1, params.end_bar or bars
        if first > bars or last > bars:
            name, value = ("start_bar", first) if first > bars else ("end_bar", last)
            raise InputError(f"{name} {value} lies behind the prompt's last bar, {bars}")
        if first > last:
            raise InputError(f"start_bar {first} lies behind end_bar {last}")
        return first, last


def _last(bars: Sequence[Bar], tokens: int) -> list[Bar]:
    """The last bars that come to so many tokens together."""
    count, first = 0, len(bars)
    while first and count < tokens:
        first -= 1
        count += len(bars[first].tokens())
    return list(bars[first:])


def cannot_write(model: Model) -> str:
    """Why a model can be trained and evaluated but not write; empty where it can."""
    settings = model.vocabulary.settings
    if model.architecture != "transformer-xl":
        return f"is a {model.architecture}, trained for comparison"
    if settings.tokenization != "REMI":
        return f"reads {settings.tokenization}, which has no bars"
    if model.vocabulary.merges:
        return "reads merged tokens (byte-pair encoding), of which nothing tells which may follow which"
    return "" if settings.programs else "does not tell instruments apart"
