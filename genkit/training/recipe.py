"""The training recipe: what `genkit train` reads. Pydantic only, so that reading one needs no torch.

    train: style-fast                 # the training task, from some pipeline's `trainings`
    name: starry-night
    steps: 20000
    batch_size: 4
    task:                             # the task's own settings
      data: photos
    debug:                            # laid over the rest by --debug: a size that runs in seconds on a CPU
      steps: 4

Relative folders in `task` start from the recipe's own folder; those given by `--set` from the working folder.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import pydantic
from pydantic import BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from genkit.errors import InputError
from genkit.fields import MAX_SEED, File, Hint, expanded
from genkit.pipeline import one_line

if TYPE_CHECKING:
    from genkit.training.task import Task

__all__ = ["Checkpointing", "Folder", "Folders", "TaskConfig", "TrainRecipe", "differences", "find_task", "path_fields"]


class _Folder:
    """A folder that exists. The context `{"root": folder}` is where relative names start."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(
            self._validate, serialization=core_schema.plain_serializer_function_ser_schema(str, when_used="json")
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "string", "format": "path", "x-genkit": {"kind": "folder"}}

    def _validate(self, value: Any, info: ValidationInfo) -> Path:
        if not isinstance(value, str | os.PathLike) or not os.fspath(value) or "\x00" in os.fspath(value):
            raise PydanticCustomError("file", "is not the name of a folder")
        path = expanded(value)
        if info.context and info.context.get("root") and not path.is_absolute():
            path = Path(info.context["root"]) / path
        if not path.is_dir():
            reason = "is a file; name the folder it is in" if path.exists() else "does not exist; check the path"
            raise PydanticCustomError("file", "{reason}", {"reason": reason})
        return path


Folder = Annotated[Path, _Folder()]
Folders = Annotated[list[Folder], BeforeValidator(lambda value: value if isinstance(value, list) else [value])]
"""One folder or a list of them."""


class _Closed(pydantic.BaseModel):
    """Frozen, unknown names refused, no NaN or infinity."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, protected_namespaces=()
    )

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, root: Path | None = None) -> Self:
        """Validates. Raises InputError, one line that names the field, the value and what would be right."""
        try:
            return cls.model_validate(dict(values), context={"root": root} if root else None)
        except pydantic.ValidationError as error:
            raise InputError(one_line(error, cls)) from None


class TaskConfig(_Closed):
    """A task's own settings: subclass it with a described, bounded field for each."""


class Checkpointing(_Closed):
    every: int = Field(1000, ge=1, description="Steps between checkpoints.")
    keep_last: int = Field(3, ge=1, description="How many of the newest are kept.")
    keep_every: int | None = Field(None, ge=1, description="Checkpoints at multiples of this step are kept for good.")


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class TrainRecipe(_Closed):
    """Everything about a run that is the same for every task."""

    train: str = Field(description="The training task, as `genkit train --list` names it.")
    name: Name = Field(description="The run's name; its folder is runs/NAME unless --out says otherwise.")
    description: str = Field("", description="What this run is for.")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="Makes the run repeatable.")
    steps: int = Field(ge=1, le=10**9, description="Optimiser steps.")
    batch_size: int = Field(ge=1, le=2**20, description="Items a forward pass, over all processes together.")
    accumulate: int = Field(1, ge=1, le=2**16, description="Batches whose gradients are added up for one step.")
    precision: Literal["no", "bf16", "fp16"] = Field("no", description="Mixed precision of the forward pass.")
    ema: float | None = Field(None, ge=0, lt=1, description="Decay of the moving average of the weights.")
    clip: float | None = Field(None, gt=0, description="Largest norm of an optimiser's gradient.")
    deterministic: bool = Field(False, description="Refuse operations that differ from run to run on a GPU.")
    strict: bool = Field(False, description="Stop at an unreadable data file instead of leaving it out.")
    workers: Annotated[int, Hint(unit="processes")] = Field(0, ge=0, le=256, description="Processes that read data.")
    checkpoint: Checkpointing = Field(Checkpointing(), description="When to save, and what to keep.")
    validate_every: int | None = Field(None, ge=1, description="Steps between validations.")
    sample_every: int | None = Field(None, ge=1, description="Steps between samples.")
    log_every: int = Field(50, ge=1, description="Steps between logged numbers.")
    export: Literal["last", "best"] = Field("last", description="Which checkpoint is exported at the end.")
    task: dict[str, Any] = Field(default_factory=dict, description="The task's own settings.")
    debug: dict[str, Any] = Field(default_factory=dict, description="Laid over the rest by --debug.")


def path_fields(config: type[TaskConfig]) -> set[str]:
    """The fields of a config that hold files or folders, or lists of them; of a config within it as "data.a"."""
    found = set()
    for name, info in config.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, TaskConfig):
            found |= {f"{name}.{inner}" for inner in path_fields(info.annotation)}
        elif _names_path((info.annotation, *info.metadata)):
            found.add(name)
    return found


def _names_path(annotations: Sequence[Any]) -> bool:
    return any(
        isinstance(a, _Folder | File) or _names_path([*getattr(a, "__args__", ()), *getattr(a, "__metadata__", ())])
        for a in annotations
    )


def find_task(name: str) -> type[Task]:
    """The task class behind a name, from the `trainings` of every pipeline. Raises InputError."""
    known = trainings()
    if name not in known:
        raise InputError(unknown("training", name, known))
    module, _, attribute = known[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def trainings() -> dict[str, str]:
    """Every training task installed: name -> "module:Class". Pipelines that do not import are left out."""
    from genkit import registry
    from genkit.errors import GenkitError

    found: dict[str, str] = {}
    for pipeline in registry.pipelines():
        try:
            found.update(registry.get(pipeline).trainings)
        except GenkitError:  # `genkit doctor` tells about it; the others can still be trained
            continue
    return dict(sorted(found.items()))


def unknown(kind: str, name: str, known: Mapping[str, Any]) -> str:
    """One line: no such thing, and what was probably meant."""
    import difflib

    close = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known) or 'none'}"
    return f"no {kind} is called {name[:80]!r}: {hint}"


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """What changed between two recipes, in words: ["steps: 100 -> 200", "task.rate: 0.1 -> 0.2"]."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = [*old, *(name for name in new if name not in old)]
        inside = (differences(old.get(name), new.get(name), f"{path}.{name}" if path else str(name)) for name in names)
        return [line for lines in inside for line in lines]
    return [] if old == new else [f"{path}: {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = re.sub(r"\s+", " ", repr(value))
    return text if len(text) <= 60 else text[:57] + "..."
