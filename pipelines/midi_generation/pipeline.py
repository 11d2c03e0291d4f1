"""A melody carried on, a piece written, a gap filled, an accompaniment found: MIDI by a Transformer-XL.

`task` says what is done: `continue` a prompt or `compose` from nothing, `infill` bars between what surrounds them,
`accompany` the parts that are there with others, `vary` pitches or rhythms. No torch is imported here.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

import genkit.pipeline
from genkit.fields import Hint, MidiFile, Number, Slider
from genkit.pipeline import Output, Progress
from pipelines.midi_generation.models import MODELS

if TYPE_CHECKING:
    from genkit.runtime import Runtime

__all__ = ["MidiGeneration"]

Task = Literal["continue", "compose", "infill", "accompany", "vary"]
NOTES = {"c": 0, "d": 2, "e": 4, "f": 5, "g": 7, "a": 9, "b": 11}
_KEY = re.compile(r"([a-g])([#b♯♭]?)[ :_-]?(major|maj|minor|min|m)?", re.IGNORECASE)
_SIGNATURE = re.compile(r"([1-9][0-9]?)/(2|4|8|16)")


def key_number(text: str) -> int:
    """A key's index: majors from C up by semitones are 0..11, minors 12..23. Raises ValueError."""
    match = _KEY.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{text[:40]!r} is no key; write it as 'D major', 'F# minor', 'Bb' or 'Am'")
    note, sign, mode = match.groups()
    root = NOTES[note.lower()] + {"": 0, "#": 1, "♯": 1, "b": -1, "♭": -1}[sign]
    minor = mode is not None and (mode == "m" or mode.lower().startswith("min"))
    return root % 12 + (12 if minor else 0)


def _key(text: str | None) -> str | None:
    if text is not None:
        key_number(text)
    return text


def _signature(text: str | None) -> str | None:
    if text is not None and not _SIGNATURE.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is no time signature; write it as 3/4 or 6/8")
    return text


def _listed(value: Any) -> Any:
    if value is None:
        return None
    parts = value if isinstance(value, list | tuple) else [value]
    texts = [str(part) if isinstance(part, int) else part for part in parts]
    return [name for text in texts for name in (map(str.strip, text.split(",")) if isinstance(text, str) else [text])]


def _known(names: list[str] | None) -> list[str] | None:
    if names is not None:
        from pipelines.midi_generation.tokens.instruments import program_of  # imports MidiTok: only where it is asked

        for name in names:
            program_of(name)
    return names


class Params(genkit.pipeline.Params):
    """What a piece is made from."""

    prompt: Annotated[MidiFile | None, Hint(section="main", short="p")] = Field(
        None, description="The piece to carry on, fill, accompany or vary. Without one a piece is composed."
    )
    task: Annotated[Task | None, Hint(section="main")] = Field(
        None, description="What to do. By default continue the prompt, or compose where there is none."
    )
    bars: Annotated[int | None, Number(1, 1000, "bars"), Hint(section="main", short="b")] = Field(
        None,
        description="continue, compose: how many bars to write; 16 when not given. A bar that the prompt leaves "
        "unfinished is finished first.",
    )
    start_bar: Annotated[int | None, Number(1, 5000), Hint(section="main")] = Field(
        None, description="infill, accompany, vary: the first bar written anew, counted from 1."
    )
    end_bar: Annotated[int | None, Number(1, 5000), Hint(section="main")] = Field(
        None, description="infill, accompany, vary: the last bar written anew."
    )
    vary: Annotated[Literal["pitches", "rhythms"], Hint(section="main")] = Field(
        "pitches", description="vary: what is redone; the other is kept."
    )
    instruments: Annotated[
        list[Annotated[str, Field(max_length=60)]] | None,
        BeforeValidator(_listed),
        AfterValidator(_known),
        Hint(section="music"),
    ] = Field(
        None,
        max_length=16,
        description="General MIDI names or numbers. accompany: the parts to write, anew or beside the given ones; "
        "vary: those that change; otherwise who plays. By default the prompt's, or the two that the model knows best.",
    )
    tempo: Annotated[float | None, Number(10, 400, "quarters a minute"), Hint(section="music")] = Field(
        None, description="Tempo of the whole piece. By default the prompt's."
    )
    time_signature: Annotated[str | None, AfterValidator(_signature), Hint(section="music")] = Field(
        None, description="continue, compose: of the new bars, as 3/4. By default that of the prompt's last bar."
    )
    key: Annotated[str | None, AfterValidator(_key), Hint(section="music")] = Field(
        None, description="The key to think in: 'D major', 'Am'. By default estimated from the prompt."
    )
    temperature: Annotated[float, Slider(0, 3), Hint(section="sampling")] = Field(
        0.9, description="Boldness of notes and rhythm. 0 takes the likeliest each time."
    )
    duration_temperature: Annotated[float | None, Slider(0, 3), Hint(section="sampling")] = Field(
        None, description="The same for note lengths. By default as temperature."
    )
    top_k: Annotated[int, Number(0, 10_000), Hint(section="sampling")] = Field(
        0, description="Choose among the k likeliest only; 0 for all."
    )
    top_p: Annotated[float, Slider(0.01, 1), Hint(section="sampling")] = Field(
        0.9, description="Choose among the likeliest that come to this share together."
    )
    min_p: Annotated[float, Slider(0, 1), Hint(section="sampling")] = Field(
        0.0, description="Leave out what is less than this share as likely as the likeliest."
    )
    repetition_penalty: Annotated[float, Slider(1, 3), Hint(section="sampling")] = Field(
        1.0, description="Above 1 avoids pitches that were just played."
    )
    memory: Annotated[int, Number(16, 8192, "tokens"), Hint(section="sampling")] = Field(
        512, description="How far the network looks back; a note is about three tokens."
    )

    @model_validator(mode="after")
    def _together(self) -> Params:
        task = self.resolved_task
        if task == "compose" and self.prompt is not None:
            raise ValueError("prompt is not for task 'compose'; leave it out, or take task 'continue'")
        if task != "compose" and self.prompt is None:
            raise ValueError(f"prompt is missing: task {task!r} needs a MIDI file")
        spans = task in ("infill", "accompany", "vary")
        if spans and self.bars is not None:
            raise ValueError(f"bars is for tasks 'continue' and 'compose'; {task!r} takes start_bar and end_bar")
        if not spans and (self.start_bar is not None or self.end_bar is not None):
            raise ValueError(f"start_bar and end_bar are for 'infill', 'accompany' and 'vary'; {task!r} takes bars")
        if spans and self.time_signature is not None:
            raise ValueError(f"time_signature is for 'continue' and 'compose'; {task!r} keeps that of the prompt")
        if task == "infill" and (self.start_bar is None or self.end_bar is None):
            raise ValueError("task 'infill' needs start_bar and end_bar: the first and the last bar to write anew")
        if self.start_bar is not None and self.end_bar is not None and self.start_bar > self.end_bar:
            raise ValueError(f"start_bar {self.start_bar} lies behind end_bar {self.end_bar}")
        return self

    @property
    def resolved_task(self) -> Task:
        """The task given, or the one that follows from the prompt."""
        return self.task or ("continue" if self.prompt is not None else "compose")


Item: TypeAlias = Params  # what `Params` means inside the class, where the name is its own


class MidiGeneration(genkit.pipeline.Pipeline):
    """Music by a Transformer-XL. See `Params` for what a call takes."""

    name = "midi-generation"
    Params = Params
    produces = "midi"
    models = MODELS
    default_model = "lieder"
    examples: ClassVar[Sequence[str]] = (
        "genkit midi-generation --prompt tune.mid --bars 16 --seed 3 -o longer.mid --render longer.wav",
        "genkit midi-generation --bars 24 --key 'A minor' --time-signature 3/4 -o song.mid",
        "genkit midi-generation -p song.mid --task infill --start-bar 9 --end-bar 12 -o mended.mid",
        "genkit midi-generation -p melody.mid --task accompany --instruments piano -o duet.mid",
    )
    trainings: ClassVar[Mapping[str, str]] = {
        "midi-transformer-xl": "pipelines.midi_generation.train.transformer_xl:MidiTransformerXL",
    }
    evaluations: ClassVar[Mapping[str, str]] = {"midi": "pipelines.midi_generation.measuring.evaluate:MidiEvaluation"}

    def __init__(self, model: str | Path | None, runtime: Runtime) -> None:
        super().__init__(model, runtime)
        from pipelines.midi_generation.composing.studio import Studio

        self.studio = Studio.open(model or "lieder", runtime)

    @classmethod
    def load(cls, model: str | Path | None, runtime: Runtime) -> MidiGeneration:
        """model: `lieder` or a file that `genkit train` exported; None for what ships. Raises ModelError."""
        return cls(model, runtime)

    @classmethod
    def describe_model(cls, path: Path) -> dict[str, Any] | None:
        from pipelines.midi_generation.loading import describe

        return describe(path)

    @classmethod
    def batch_key(cls, params: Any) -> Hashable:
        """Any pieces may be written side by side that look back equally far."""
        return params.memory

    def run(self, batch: Sequence[Item], progress: Progress) -> list[Output]:
        """One piece for each item, written side by side. Progress counts bars; its preview is the first piece."""
        return self.studio.make(batch, progress)
