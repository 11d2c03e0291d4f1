"""The contract between the engine and a pipeline: `Params`, `Pipeline`, `Output`, and the progress callback.

A pipeline is a class with a `Params` of its own and a `run`. Everything else (keyword arguments, flags, recipes, forms,
seeds, batching, provenance) follows from those two and is done here, once.

This module imports no torch: reading a pipeline's parameters must stay cheap.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeAlias

import pydantic
from pydantic import ConfigDict, Field

from genkit._complaint import one_line
from genkit.errors import InputError
from genkit.fields import File, Seed

if TYPE_CHECKING:
    from genkit.media.audio import Audio
    from genkit.media.image import Image
    from genkit.media.midi import Midi
    from genkit.media.provenance import Provenance
    from genkit.runtime import Runtime
    from genkit.weights import Model

__all__ = ["Closed", "Output", "Params", "Pipeline", "Progress", "one_line"]


class Progress(Protocol):
    """Called by long work after each step. Raising `genkit.errors.Cancelled` from it stops the work within a step.

    step: steps done, 1..total; total: steps in all; preview: makes a media value of the state so far, only if called;
    note: a few words on what is going on ("scale 2 of 4").
    """

    def __call__(self, step: int, total: int, *, preview: Callable[[], Any] | None = None, note: str = "") -> None: ...


def silent(step: int, total: int, *, preview: Callable[[], Any] | None = None, note: str = "") -> None:
    """The progress of somebody who does not look."""


class Closed(pydantic.BaseModel):
    """Values that a person states: frozen, closed (an unknown name is an error with a suggestion) and free of NaN and
    infinity."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
        arbitrary_types_allowed=True,
        use_enum_values=True,
        protected_namespaces=(),
    )

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, root: Path | None = None, unchecked: bool = False) -> Self:
        """Validates a mapping. Raises InputError, one line that names the field, the value and what would be right.

        root: the folder that relative file names start from (default: the working folder); unchecked: files need not
        exist yet.
        """
        context: dict[str, Any] = {"unchecked": unchecked}
        if root is not None:
            context["root"] = root
        try:
            return cls.model_validate(dict(values), context=context)
        except pydantic.ValidationError as error:
            raise InputError(one_line(error, cls)) from None


class Params(Closed):
    """What one item is made from. Subclass it with a field per parameter; a field's type comes from `genkit.fields`."""

    aliases: ClassVar[Mapping[str, str]] = {}
    """Names that people know a parameter by from elsewhere: {"steps": "num_inference_steps"}. They are read wherever a
    person gives a parameter, and recorded nowhere."""

    seed: Seed = Field(None, description="Makes the result repeatable; drawn and recorded when not given.")

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, root: Path | None = None, unchecked: bool = False) -> Self:
        """Validates a mapping, see `Closed.parse`; parameters may go by their aliases."""
        return super().parse(cls.renamed(values), root=root, unchecked=unchecked)

    @classmethod
    def own_name(cls, name: str) -> str:
        """What a parameter is called here; any other name stays as it is."""
        return cls.aliases.get(name, name)

    @classmethod
    def renamed(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values by the parameters' own names. Raises InputError where two names mean the same one."""
        found: dict[str, str] = {}
        for name in values:
            own = cls.own_name(name)
            if own in found:
                raise InputError(f"{found[own]} and {name} are both given, and both mean {own}: give one of them")
            found[own] = name
        return {own: values[name] for own, name in found.items()}

    def resolved(self) -> Self:
        """Itself with a seed: the one given, or one drawn now."""
        # 32 bits, so that the number stays short enough to be read out and typed in elsewhere.
        return self if self.seed is not None else self.model_copy(update={"seed": secrets.randbelow(2**32)})

    def record(self) -> dict[str, Any]:
        """The parameters as JSON values, files by name: what provenance and a job's identity hold."""
        return json.loads(self.model_dump_json(exclude_none=True))

    def files(self) -> dict[str, Any]:
        """Input files by name: a Path each, or a media value in memory. `style[0]` is one of a list, `control[0].image`
        one in an object that is a parameter."""
        return dict(_files(self))

    @classmethod
    def file_fields(cls) -> dict[str, str]:
        """The fields that hold a file or a list of files, with the kind: {"content": "image"}."""
        kinds = {name: next(_file_kinds(_annotations(info)), "") for name, info in cls.model_fields.items()}
        return {name: kind for name, kind in kinds.items() if kind}

    @classmethod
    def file_kind(cls, name: str) -> str:
        """The kind of a file as `files()` names it: "image" of `control[0].image`; empty where no file is."""
        kind = ""
        models: list[type[Closed]] = [cls]
        for part in re.sub(r"\[\d+\]", "", name).split("."):
            within = [annotation for model in models for annotation in _annotations(model.model_fields.get(part))]
            kind, models = next(_file_kinds(within), ""), list(_objects(within))
        return kind


@cache
def _is_file(model: type[Closed], name: str) -> bool:
    return any(_file_kinds(_annotations(model.model_fields[name])))


def _files(values: Closed, at: str = "") -> Iterator[tuple[str, Any]]:
    """Every file in values, and in the objects among them."""
    for name in type(values).model_fields:
        value, is_file = getattr(values, name), _is_file(type(values), name)
        listed = isinstance(value, list | tuple)
        for i, item in enumerate(value if listed else (value,)):
            place = f"{at}{name}[{i}]" if listed else f"{at}{name}"
            if isinstance(item, Closed):
                yield from _files(item, f"{place}.")
            elif is_file and item is not None:
                yield place, item


def _one_sound(params: Params) -> Any:
    """The sound that goes in, a path or an Audio; None if there is none, or more than one."""
    sounds = [value for name, value in params.files().items() if params.file_kind(name) == "audio"]
    return sounds[0] if len(sounds) == 1 else None


AnyParams: TypeAlias = Params  # what `Params` means inside Pipeline, where the name is the subclass's own


def _annotations(info: Any) -> list[Any]:
    """What a field is declared by; nothing for no field."""
    return [info.annotation, *info.metadata] if info is not None else []


def _parts(annotations: Iterable[Any]) -> Iterator[Any]:
    """Every part of annotations, however deep (`list[ImageFile] | None`)."""
    for annotation in annotations:
        yield annotation
        yield from _parts((*getattr(annotation, "__args__", ()), *getattr(annotation, "__metadata__", ())))


def _file_kinds(annotations: Iterable[Any]) -> Iterator[str]:
    return (part.kind for part in _parts(annotations) if isinstance(part, File))


def _objects(annotations: Iterable[Any]) -> Iterator[type[Closed]]:
    return (part for part in _parts(annotations) if isinstance(part, type) and issubclass(part, Closed))


@dataclass
class Output:
    """What one item came out as: media values, the seeds they were made from, and how (provenance).

    info: figures a pipeline wants to hand over (final losses, the model it chose); found: what it found out about its
    input and belongs in the record of the file (a cutoff, the model it chose), the same on every run; notes: what the
    reader should know, a sentence each. before: the one sound that went in, a path or an Audio, for a picture of both.
    A long sound is a `Recording`, an Audio that stays on disk.

    degraded: what was given up because memory did not suffice, in a few words. What a pipeline puts there itself shows
    in the result, and goes into the record; what `generate` adds (fewer at once, what `relieve` said) does not.
    """

    images: list[Image] = field(default_factory=list)
    audio: Audio | None = None
    midi: Midi | None = None
    seeds: list[int] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    degraded: str = ""
    before: Path | Audio | None = None
    provenance: Provenance | None = None

    @property
    def media(self) -> list[Any]:
        """Every media value, pictures first."""
        return [*self.images, *(value for value in (self.audio, self.midi) if value is not None)]

    def save(self, path: str | Path) -> list[Path]:
        """Writes each media value atomically with its provenance inside. Several get `-1`, `-2`, ... before the suffix.

        Returns the paths written. Raises MediaError where the suffix does not fit the media.
        """
        names = self.paths(path)
        for index, (value, name) in enumerate(zip(self.media, names, strict=True)):
            value.save(name, provenance=self.provenance and self.provenance.at(index, len(names)))
        return names

    def render(self, *paths: str | Path, soundfont: str | Path | None = None) -> list[Path]:
        """Writes what the piece of music sounds and looks like: its sound (.wav, .flac, .ogg, .mp3), its piano roll
        (.png), its notation (.musicxml, .mxl; needs music21), by the suffix, with provenance inside. Of a sound: its
        spectrogram (.png), under that of the sound it was made from.

        soundfont: an .sf2 or .sf3 file (default: General MIDI). Returns the paths. Raises MediaError, DiskFull.
        """
        from genkit.media import rendering

        return rendering.write(self, paths, soundfont)

    def paths(self, path: str | Path) -> list[Path]:
        """The names that `save(path)` writes."""
        path, count = Path(path), len(self.media)
        return [path] if count == 1 else [path.with_stem(f"{path.stem}-{i}") for i in range(1, count + 1)]

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """Shows the first media value in a notebook."""
        return self.media[0]._repr_mimebundle_(include, exclude) if self.media else {"text/plain": repr(self)}


class Pipeline:
    """One task. A subclass states `Params`, its models and `run`; it is registered by an entry point in the group
    `genkit.pipelines` and needs nothing else to have a command, a place in recipes and a page.

    The module that holds the class imports torch only inside functions, so that its parameters can be listed in no
    time; the first line of the module's docstring is the summary that `genkit list` prints.
    """

    name: ClassVar[str]
    """As on the command line and in recipes: "style-transfer"."""
    Params: ClassVar[type[AnyParams]]
    produces: ClassVar[str] = "image"
    """The kind of media that comes out: "image", "audio" or "midi"."""
    version: ClassVar[int] = 1
    """Raised when the same parameters make something else than before; part of a job's identity."""
    together: ClassVar[int] = 1
    """How many requests of one `batch_key` a recipe's run hands over at once; over 1 where that is faster."""
    models: ClassVar[Mapping[str, Model]] = {}
    """Aliases, for `genkit models`."""
    default_model: ClassVar[str | None] = None
    examples: ClassVar[Sequence[str]] = ()
    """Command lines for the end of `genkit NAME --help`; without any, one is made from the required parameters."""
    trainings: ClassVar[Mapping[str, str]] = {}
    """Training tasks by name: "package.module:Class", imported when asked for."""
    evaluations: ClassVar[Mapping[str, str]] = {}
    """What `genkit evaluate NAME` measures, by name: "package.module:Class"; see `genkit.evaluation`."""
    exports: ClassVar[Mapping[str, str]] = {}
    """Formats that its models can leave in ("onnx"): "package.module:function"; see `genkit.exporting`."""

    def __init__(self, model: str | Path | None, runtime: Runtime) -> None:
        self.model = model
        self.runtime = runtime

    @classmethod
    def load(cls, model: str | Path | None, runtime: Runtime) -> Self:
        """Gets the weights of `model` (alias, hub id, folder or file; None for the default) onto the device.

        Raises ModelError.
        """
        return cls(model, runtime)

    @classmethod
    def model_refs(cls, model: str | None, params: AnyParams) -> dict[str, str]:
        """The models that a run with these parameters uses, by role: what a job's identity and provenance name."""
        name = model or cls.default_model
        return {"model": str(name)} if name else {}

    @classmethod
    def describe_model(cls, path: Path) -> dict[str, Any] | None:
        """What a model's file or folder holds, for `genkit inspect`: JSON values by name; `is`, in words, is the first.

        None, or a ModelError that says why not, where it is no model of this pipeline's.
        """
        return None

    def run(self, batch: Sequence[Any], progress: Progress) -> list[Output]:
        """Makes one Output for each Params, in order. Every seed is set. The batch shares one `batch_key`."""
        raise NotImplementedError(f"{type(self).__name__} has no run()")

    @classmethod
    def batch_key(cls, params: Any) -> Hashable:
        """Params with equal keys may share a batch. By default a batch holds equal items that differ in their seed."""
        return params.model_dump_json(exclude={"seed"})

    def at_once(self, params: Any) -> int:
        """How many requests of this one's `batch_key` are better made in one call than in several, on this device."""
        return self.together

    def relieve(self) -> str | None:
        """After memory ran out for a single item: makes the pipeline need less of it from now on, slow as that may be,
        and says how ("decodes in tiles"), whereupon the item is tried again; None where there is nothing to give up.
        """
        return self.runtime.relieve()

    def __call__(self, *, progress: Progress | None = None, **params: Any) -> Output:
        """Validates the keyword arguments (see `Params`) and makes one item."""
        return self.generate([self.Params.parse(params)], progress)[0]

    def generate(self, batch: Sequence[AnyParams], progress: Progress | None = None) -> list[Output]:
        """Makes a batch: draws missing seeds, notes how each item was made. If memory runs out it halves the batch,
        then gives up what `relieve` has to give; raises OutOfMemory if a single item does not fit all the same."""
        from genkit.media.provenance import Provenance

        batch = [params.resolved() for params in batch]
        # Inputs are read for their digest before the work, so that the record names what the work began from.
        records = [Provenance.of(self, params) for params in batch]
        shortage = self.runtime.shortage
        shortage.begin()
        with self.runtime.active():
            outputs = self.runtime.halving(lambda part: self.run(part, progress or silent), batch, self.relieve)
        for params, output, record in zip(batch, outputs, records, strict=True):
            shown = {"memory": output.degraded} if output.degraded else {}
            output.provenance = replace(record, found=output.found, runtime={**record.runtime, **shown})
            output.degraded = "; ".join(filter(None, (output.degraded, *shortage.words)))
            output.before = _one_sound(params)
            output.seeds = output.seeds or [params.seed or 0]
        return outputs
