"""How well a model knows pieces, and how alike what it wrote is to pieces that people wrote.

`midi` of `genkit evaluate`. Two questions, asked apart or together:

- `--model M PIECES`: how likely the model finds the pieces (`likely`);
- `--reference DIR PIECES`: how alike the pieces are to the reference's, and how much of them is copied (`alike`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import Field, model_validator

from genkit.errors import InputError, MediaError
from genkit.evaluation import Evaluation, Place, Report
from genkit.fields import Hint
from genkit.media import files
from genkit.pipeline import Closed, Progress

__all__ = ["MidiEvaluation"]

Taken = TypeVar("Taken")
NAMED = 10  # unreadable files named one by one; the others are counted


class Params(Closed):
    """What is measured, and against what."""

    pieces: list[Place] = Field(min_length=1, description="MIDI files to measure, or folders of them.")
    model: Annotated[str | None, Hint(kind="model", short="m")] = Field(
        None, description="How likely this model finds them: an alias, a hub id, a folder or a file."
    )
    reference: Place | None = Field(None, description="Pieces by people, to compare the statistics with.")
    train: Place | None = Field(
        None,
        description="The pieces a model was trained on. With --model: what unigram and n-gram learn from. With "
        "--reference: where copies are looked for (by default in the reference).",
    )
    held_out: Place | None = Field(
        None,
        description="Pieces by people that are not in --train: how much of them a search for copies finds. By default "
        "the reference, where --train is given.",
    )
    memory: Annotated[list[Annotated[int, Field(ge=0, le=65_536)]], Field(min_length=1), Hint(unit="tokens")] = Field(
        [0, 512, 1024], description="Memory before each segment; 0 begins anew at every segment."
    )
    segment: Annotated[int, Hint(unit="tokens")] = Field(512, ge=1, le=65_536, description="Length of a segment.")
    sliding: bool = Field(
        False,
        description="Also let every token see just the memory before it and no more of its segment, as writing does.",
    )
    order: int = Field(5, ge=1, le=8, description="The n of the n-gram.")
    transpose: bool = Field(False, description="Also an n-gram that learned from --train in all twelve keys.")
    batch: int = Field(16, ge=1, le=4096, description="Pieces side by side.")
    device: str | None = Field(None, description="cpu, cuda, cuda:1, mps or xpu; by default the best there is.")

    @model_validator(mode="after")
    def _together(self) -> Params:
        if self.model is None and self.reference is None:
            raise ValueError("give --model to measure likelihood, --reference to compare statistics, or both")
        if self.held_out is not None and self.reference is None:
            raise ValueError("held_out is for the search for copies; it needs --reference")
        if self.transpose and (self.train is None or self.model is None):
            raise ValueError("transpose is for the n-gram; it needs --model and --train")
        return self


class MidiEvaluation(Evaluation):
    """How well a model knows PIECES, or how alike PIECES are to those that people wrote.

    With --model: negative log-likelihood in nats per token, bits per note and bits per second of music (which do not
    depend on the tokens), read in segments with different lengths of memory; with --train beside a unigram and an
    n-gram (modified interpolated Kneser-Ney) that learned from it.

    With --reference: statistics of each piece (pitch-class entropy, scale and groove consistency, polyphony, empty
    beats, range, density, note length, self-repetition), how far their distributions overlap with those of the
    reference (1 is wholly), beside how far parts of the reference overlap with each other; and how much of the pieces
    is found, note for note and in any key, in the training set.
    """

    Params: ClassVar[type[Closed]] = Params
    arguments = ("pieces",)
    examples = (
        "genkit evaluate midi --model lieder --train songs/train songs/valid",
        "genkit evaluate midi --reference songs/valid --train songs/train written --json",
    )

    def run(self, params: Any, progress: Progress) -> Report:
        """Raises InputError, MediaError, ModelError, DeviceError."""
        report = Report()
        if params.model is not None:
            from pipelines.midi_generation.measuring.likely import likely

            likely(params, report, progress)
        if params.reference is not None:
            from pipelines.midi_generation.measuring.alike import alike

            alike(params, report, progress)
        return report


def read(
    places: Sequence[Path], take: Callable[[Any], Taken], report: Report, progress: Progress, what: str
) -> list[tuple[Path, Taken]]:
    """What `take` makes of every piece (a genkit Midi) under some places, by file; the pieces themselves are not kept.

    Files that cannot be read are named and counted in the report's notes. Raises InputError where there are none,
    MediaError where none can be read.
    """
    paths = _listed(places)
    found: list[tuple[Path, Taken]] = []
    bad: list[str] = []
    for number, path in enumerate(paths, 1):
        from genkit.media.midi import Midi

        try:
            found.append((path, take(Midi.open(path))))
        except (MediaError, OSError, ValueError) as error:
            bad.append(str(error) if str(path) in str(error) else f"{path}: {error}")
        progress(number, len(paths), note=what)
    if not found:
        raise MediaError(f"none of {len(paths)} files can be read; the first: {bad[0]}")
    if bad:
        report.notes += [f"left out: {text}" for text in bad[:NAMED]]
        report.notes.append(f"left out {len(bad)} unreadable file(s) of {len(paths)} ({what})")
    return found


def _listed(places: Sequence[Path]) -> list[Path]:
    """The MIDI files under some places, each once, sorted within a folder; hidden ones are left out."""
    found: dict[Path, None] = {}
    for place in places:
        inside = sorted(place.rglob("*")) if place.is_dir() else [place]
        named = [p for p in inside if p.suffix.lower() in files.SUFFIXES["midi"] and not p.name.startswith(".")]
        found |= dict.fromkeys([p for p in named if p.is_file()] if place.is_dir() else [place])
    if not found:
        raise InputError(
            f"{', '.join(map(str, places))}: no files ending in {', '.join(files.SUFFIXES['midi'])} in there; "
            "name a folder that holds some"
        )
    return list(found)
