"""Where the pieces are made: reads a prompt onto a sheet, picks the writer of the task, and puts the bars back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import symusic

from genkit import weights
from genkit.errors import InputError, ModelError
from genkit.media.midi import Midi
from genkit.pipeline import Output, Progress
from genkit.runtime import Runtime
from pipelines.midi_generation import writing
from pipelines.midi_generation.bars import Bar
from pipelines.midi_generation.composer import Piece, compose
from pipelines.midi_generation.grammar import Grammar
from pipelines.midi_generation.instruments import program_of
from pipelines.midi_generation.keys import KEYS
from pipelines.midi_generation.loading import load
from pipelines.midi_generation.models import MODELS
from pipelines.midi_generation.sampling import Sampling
from pipelines.midi_generation.sheet import Sheet

if TYPE_CHECKING:
    from pipelines.midi_generation.pipeline import Params

__all__ = ["Studio"]

BARS = 16


@dataclass
class Order:
    """One item: its sheet, its writer's piece, and the programs whose notes give way."""

    sheet: Sheet
    piece: Piece
    replaced: list[int] | None
    params: Params
    key: int | None


class Studio:
    """The loaded network of one pipeline object. model: an alias, a folder or a file. Raises ModelError."""

    def __init__(self, model: str | Path, runtime: Runtime) -> None:
        loaded = load(weights.locate(model, MODELS))
        if loaded.architecture != "transformer-xl":
            raise ModelError(
                f"{model} is a {loaded.architecture} trained for comparison; it is for `genkit evaluate midi`"
            )
        if loaded.vocabulary.settings.tokenization != "REMI":
            raise ModelError(
                f"{model} reads {loaded.vocabulary.settings.tokenization}, which has no bars; pieces are written with "
                "REMI models, others can be trained and evaluated"
            )
        self.runtime = runtime
        self.network = runtime.place(loaded.network)
        self.vocabulary, self.instruments = loaded.vocabulary, loaded.instruments
        self.grammar = Grammar(self.vocabulary)

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
        written = {bar.number: (bar.signature, bar.events) for bar in order.piece.written}
        score = order.sheet.write(written, replaced=order.replaced)
        if order.params.tempo is not None:
            score.tempos = type(score.tempos)([symusic.Tempo(0, order.params.tempo)])
        return score

    def order(self, params: Params) -> Order:
        """Reads the prompt and sets the writer of the task to work."""
        task = params.resolved_task
        named = list(dict.fromkeys(program_of(name) for name in params.instruments or []))
        score = Midi.open(params.prompt).score if params.prompt is not None else None
        wanted = named or ([] if task not in ("compose", "accompany") else self._usual())
        sheet = Sheet(self.vocabulary, self.instruments, score, wanted=wanted)
        key = self._key(params, sheet)
        makers = {
            "continue": self._carry_on,
            "compose": self._carry_on,
            "infill": self._infill,
            "accompany": self._accompany,
            "vary": self._vary,
        }
        writer, total, replaced = makers[task](params, sheet, named, key)
        sampling = Sampling(
            temperature=params.temperature,
            duration_temperature=params.temperature
            if params.duration_temperature is None
            else params.duration_temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            repetition_penalty=params.repetition_penalty,
        )
        piece = Piece(writer, sampling, self.runtime.generator(params.seed or 0), total)
        return Order(sheet, piece, replaced, params, key)

    def _usual(self) -> list[int]:
        """Who plays where nobody is named: the two that the network has heard most."""
        return [program for program in self.instruments.known if program >= 0][:2]

    def _key(self, params: Params, sheet: Sheet) -> int | None:
        from pipelines.midi_generation.pipeline import key_number

        return key_number(params.key) if params.key is not None else sheet.key()

    def _signature(self, params: Params, sheet: Sheet) -> int | None:
        """The TimeSig token of new bars; None leaves the first to the network."""
        if params.time_signature is None:
            return sheet.signature(sheet.bars[-1]) if sheet.bars else None
        name = f"TimeSig_{params.time_signature}"
        if name not in self.vocabulary.ids:
            known = [
                value
                for kind, value in zip(self.vocabulary.kinds, self.vocabulary.values, strict=True)
                if kind == "TimeSig"
            ]
            raise InputError(f"time_signature {params.time_signature} is none the model has; it has {', '.join(known)}")
        return self.vocabulary.ids[name]

    def _tempo(self, params: Params) -> int | None:
        """The Tempo token nearest to the tempo asked for."""
        tempos = {
            float(v): i
            for i, (k, v) in enumerate(zip(self.vocabulary.kinds, self.vocabulary.values, strict=True))
            if k == "Tempo"
        }
        if params.tempo is None or not tempos:
            return None
        return tempos[min(tempos, key=lambda t: abs(t - float(params.tempo or 0)))]

    # The tasks: (writer, bars that it writes, programs whose notes give way).

    def _carry_on(self, params: Params, sheet: Sheet, named: Sequence[int], key: int | None) -> Any:
        total = params.bars or BARS
        reach = self.network.config.layers * params.memory  # tokens back that can make a difference
        before = _last(sheet.bars, reach)
        writer = writing.carry_on(
            self.grammar,
            before,
            first=len(sheet.bars) - len(before) + 1,
            bars=total,
            programs=self._tokens(sheet, named or sheet.programs),
            key=key,
            signature=self._signature(params, sheet),
            tempo=self._tempo(params) if not sheet.bars else None,
            free_tempo=not sheet.bars and params.tempo is None,
        )
        return writer, total, None

    def _infill(self, params: Params, sheet: Sheet, named: Sequence[int], key: int | None) -> Any:
        first, last = self._span(params, sheet)
        programs = list(named) or sheet.programs
        writer = writing.infill(
            self.grammar,
            sheet.bars[: first - 1],
            sheet.bars[last:],
            [sheet.signature(bar) for bar in sheet.bars[first - 1 : last]],
            first=first,
            programs=self._tokens(sheet, programs),
            key=key,
        )
        return writer, last - first + 1, None

    def _accompany(self, params: Params, sheet: Sheet, named: Sequence[int], key: int | None) -> Any:
        first, last = self._span(params, sheet)
        playing = sheet.playing()
        parts = list(named) or [program for program in self._usual() if program not in playing]
        given = [program for program in playing if program not in parts]
        if not parts:
            raise InputError("instruments is missing: the prompt has all that the model plays; name the parts to write")
        if not given:
            raise InputError(
                "instruments names all parts of the prompt; leave one that is given, or take task 'infill'"
            )
        tokens = self._tokens(sheet, parts)
        writer = writing.accompany(
            self.grammar,
            sheet.bars[: first - 1],
            sheet.bars[first - 1 : last],
            first=first,
            given=set(self._tokens(sheet, given)) - set(tokens),
            programs=tokens,
            key=key,
        )
        return writer, last - first + 1, parts

    def _vary(self, params: Params, sheet: Sheet, named: Sequence[int], key: int | None) -> Any:
        first, last = self._span(params, sheet)
        parts = list(named) or sheet.programs
        writer = writing.vary(
            self.grammar,
            sheet.bars[: first - 1],
            sheet.bars[first - 1 : last],
            first=first,
            task=params.vary.capitalize(),
            programs=self._tokens(sheet, parts),
            key=key,
        )
        return writer, last - first + 1, sheet.heard_as(parts)

    def _tokens(self, sheet: Sheet, programs: Sequence[int]) -> list[int]:
        """The Program tokens that the network knows programs by."""
        if not self.vocabulary.settings.programs:
            return []
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
