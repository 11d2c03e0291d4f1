"""What `genkit export MODEL` is made from. The engine knows no network; a pipeline gives its own as a `Graph`.

    class Pipeline(genkit.pipeline.Pipeline):
        exports = {"onnx": "pipelines.image_translation.export:graph"}

    def graph(model):
        batch, height, width = Axis("batch"), Axis("height", multiple=4), Axis("width", multiple=4)
        picture = Value((batch, 3, height, width), "RGB, -1..1")
        return Graph(network, {"image": picture}, {"translated": picture}, sizes=SIZES, source=file)

Whose a model is: the pipeline's that has the alias, or that knows the file (`Pipeline.describe_model`); where several
could be meant, the person says which. The module imports torch only inside functions, so that help comes at once.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genkit import registry
from genkit.errors import GenkitError, InputError
from genkit.fields import expanded

if TYPE_CHECKING:
    from torch import nn

    from genkit.pipeline import Pipeline, Progress

__all__ = ["FORMATS", "Axis", "Exported", "Graph", "Value", "aliases", "export", "owner"]

FORMATS = ("onnx",)


@dataclass(frozen=True)
class Axis:
    """An axis whose length the user of the graph chooses: a multiple of `multiple`, not below `least`."""

    name: str
    multiple: int = 1
    least: int = 1


@dataclass(frozen=True)
class Value:
    """What goes in or comes out: float32 of this shape."""

    shape: tuple[int | Axis, ...]
    says: str
    """For whoever opens the file: channels, range."""
    low: float = -1.0
    high: float = 1.0
    """The range that the check draws from."""


@dataclass(frozen=True)
class Graph:
    """A network with what a file of it must say. The network takes the inputs in their order and gives one tensor; it
    is in eval mode, in float32 on the CPU."""

    network: nn.Module
    inputs: Mapping[str, Value]
    outputs: Mapping[str, Value]
    sizes: Sequence[Mapping[str, int]]
    """Lengths of the axes by name: the first is what the network is traced at (no length 1), the others are what the
    file is checked at, and should differ from it."""
    source: Path
    """The file that the weights are from."""
    words: str = ""
    """The network in a sentence."""
    about: Mapping[str, str] = field(default_factory=dict)
    """What the file's metadata holds beside the engine's own: the layout as JSON."""
    notes: Sequence[str] = ()
    """What the user must know: how the graph's result differs from the pipeline's."""


@dataclass(frozen=True)
class Exported:
    """A file that was written."""

    file: Path
    format: str
    pipeline: str
    words: str
    bytes: int
    opset: int
    shapes: dict[str, list[int | str]]
    """Of inputs and outputs; free axes by name."""
    axes: list[Axis]
    """The free ones."""
    difference: float | None
    """The largest from the network's own result; None where it was not checked."""
    metadata: dict[str, str]
    notes: list[str]

    @property
    def takes(self) -> str:
        """What goes in and comes out, in words: "image [batch, 3, height, width] -> translated [...]; height and width
        in multiples of 4, at least 8"."""
        *inputs, output = (f"{name} [{', '.join(map(str, shape))}]" for name, shape in self.shapes.items())
        bounds: dict[str, list[str]] = {}
        for axis in self.axes:
            if axis.multiple > 1 or axis.least > 1:
                words = f"in multiples of {axis.multiple}, at least {max(axis.least, axis.multiple)}"
                bounds.setdefault(words, []).append(axis.name)
        said = [f"{' and '.join(names)} {words}" for words, names in bounds.items()]
        return "; ".join([f"{', '.join(inputs)} -> {output}", *said])


def export(
    model: str,
    path: Path,
    format: str = "onnx",
    *,
    pipeline: str | None = None,
    opset: int | None = None,
    check: bool = True,
    progress: Progress | None = None,
) -> Exported:
    """Writes `model` to `path`, whole or not at all, and compares the file's results with the network's.

    model: an alias of `genkit models`, a hub id, a folder or a file; pipeline: whose model it is, where that is not
    plain; opset: of ONNX (default: the oldest that the exporter writes, which the most programs read).

    Raises InputError for what a person can mend, ModelError if the file's results are not the network's.
    """
    from genkit import _onnx
    from genkit.media.files import check_place
    from genkit.pipeline import silent

    if path.suffix.lower() != f".{format}":
        raise InputError(f"output {str(path)!r} does not end in .{format}; give it that suffix")
    whose = owner(model, format, pipeline)
    _onnx.ready(opset, check=check)
    check_place(path)
    module, _, attribute = whose.exports[format].partition(":")
    make: Callable[[str], Graph] = getattr(importlib.import_module(module), attribute)
    return _onnx.write(whose, model, make(model), path, opset, check=check, progress=progress or silent)


def aliases(format: str) -> list[str]:
    """The models with an alias that can be exported."""
    return [alias for pipeline in _exporting(format).values() for alias in pipeline.models]


def owner(model: str, format: str = "onnx", pipeline: str | None = None) -> type[Pipeline]:
    """The pipeline whose model it is. Raises InputError where it exports none, or where that is not plain."""
    able = _exporting(format)
    if pipeline is not None:
        found = [registry.get(pipeline)]
    else:
        installed = _installed()
        found = [one for one in installed if model in one.models]
        found = found or [one for one in installed if _knows(one, model)] or list(able.values())
    could = [one for one in found if one.name in able]
    if not could:
        whose = found[0].name if found else "any pipeline here"
        others = f"; what can be exported are models of {', '.join(able)}" if able else ""
        raise InputError(f"models of {whose} have no {format.upper()} export{others}")
    if len(could) > 1:
        names = ", ".join(one.name for one in could)
        raise InputError(f"{model!r} could be a model of {names}; say which by --pipeline NAME")
    return could[0]


def _knows(pipeline: type[Pipeline], model: str) -> bool:
    """Whether a file or folder on this machine is one of the pipeline's models."""
    path = expanded(model)
    try:
        return path.exists() and pipeline.describe_model(path) is not None
    except (GenkitError, OSError, ValueError):  # damaged, or no name of a file: told by whoever reads it in earnest
        return False


def _exporting(format: str) -> dict[str, type[Pipeline]]:
    return {pipeline.name: pipeline for pipeline in _installed() if format in pipeline.exports}


def _installed() -> list[type[Pipeline]]:
    """Every pipeline that imports; `genkit doctor` tells about the others."""
    found: list[Any] = []
    for name in registry.pipelines():
        try:
            found.append(registry.get(name))
        except GenkitError:
            continue
    return found
