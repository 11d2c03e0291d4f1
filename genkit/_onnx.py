"""From a `Graph` to an ONNX file, checked: torch writes it, onnx looks it over, onnxruntime must give the same numbers.

Choices:
- torch's exporter on `torch.export`, the one that it maintains; it needs onnxscript. Lengths stay free because each
  free axis is stated as a multiple of a symbol.
- Opset 18 unless another is asked for, and the lowest IR version that has it: read by onnxruntime since 1.14.
- The same model gives the same bytes: what the exporter notes of stack traces and paths of this machine is taken out,
  and nothing of the day is put in. The file is one file; weights are inside.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genkit import weights
from genkit._version import __version__
from genkit.errors import InputError, ModelError
from genkit.exporting import Axis, Exported, Graph, Value
from genkit.media.files import atomic_write

if TYPE_CHECKING:
    from torch import Tensor

    from genkit.pipeline import Pipeline, Progress

__all__ = ["LIMIT", "OPSETS", "ready", "write"]

OPSETS = range(18, 26)  # what torch writes itself, or onnxscript turns into without guessing
LIMIT = 1e-4  # between onnxruntime's result and torch's, values being -1..1
LARGEST = 2 * 10**9  # bytes of a protocol buffer


def ready(opset: int | None, *, check: bool) -> None:
    """Whether the version can be written and the packages are there; before any work. Raises InputError."""
    if opset is not None and opset not in OPSETS:
        raise InputError(f"opset {opset} cannot be written; give one from {OPSETS[0]} to {OPSETS[-1]}")
    wanted = ["onnx", "onnxscript", *(["onnxruntime"] if check else [])]
    missing = [name for name in wanted if find_spec(name) is None]
    if missing:
        have = "is" if len(missing) == 1 else "are"
        names = ", ".join(missing)
        raise InputError(f"ONNX needs {names}, which {have} not installed; `pip install genkit-media[onnx]`")


def write(
    pipeline: type[Pipeline],
    model: str,
    graph: Graph,
    path: Path,
    opset: int | None,
    *,
    check: bool,
    progress: Progress,
) -> Exported:
    """Writes the file; it is there only if it passed. Raises InputError, ModelError, DiskFull."""
    opset = OPSETS[0] if opset is None else opset
    metadata = _metadata(pipeline, model, graph)
    progress(0, 3, note="tracing")
    proto = _traced(graph, opset)
    _tidy(proto, graph, metadata)
    content = proto.SerializeToString(deterministic=True)
    progress(1, 3, note="checking the file")
    difference = None

    def examine(file: Path) -> None:
        nonlocal difference
        import onnx

        onnx.checker.check_model(str(file), full_check=True)
        progress(2, 3, note="checking its results")
        difference = _difference(graph, file) if check else None
        if difference is not None and not difference <= LIMIT:  # not-a-number is refused too
            words = f"onnxruntime's result differs from the network's by {difference:.1e}, over {LIMIT:.0e}"
            raise ModelError(f"{model!r} cannot be exported: {words}; nothing was written")

    path = atomic_write(path, content, check=examine)
    progress(3, 3)
    return Exported(
        file=path,
        format="onnx",
        pipeline=pipeline.name,
        words=graph.words,
        bytes=len(content),
        opset=opset,
        shapes={name: _shape(value) for name, value in {**graph.inputs, **graph.outputs}.items()},
        axes=_axes(graph),
        difference=difference,
        metadata=metadata,
        notes=list(graph.notes),
    )


def _metadata(pipeline: type[Pipeline], model: str, graph: Graph) -> dict[str, str]:
    """What the file says about itself: where it is from, and how its values are to be read."""
    known = pipeline.models.get(model)
    return {
        "genkit": __version__,
        "pipeline": pipeline.name,
        "model": model if known else graph.source.name,
        "model_digest": weights.digest(graph.source),
        **({"licence": known.licence} if known else {}),
        **{name: value.says for name, value in {**graph.inputs, **graph.outputs}.items()},
        **{f"{axis.name}_multiple": str(axis.multiple) for axis in _axes(graph) if axis.multiple > 1},
        **{f"{axis.name}_least": str(axis.least) for axis in _axes(graph) if axis.least > 1},
        **({"notes": " ".join(graph.notes)} if graph.notes else {}),
        **graph.about,
    }


def _axes(graph: Graph) -> list[Axis]:
    """Every free axis once."""
    shapes = [value.shape for value in (*graph.inputs.values(), *graph.outputs.values())]
    return list(dict.fromkeys(axis for shape in shapes for axis in shape if isinstance(axis, Axis)))


def _traced(graph: Graph, opset: int) -> Any:
    """The network as a ModelProto of onnx."""
    import torch

    symbols: dict[str, Any] = {}

    def free(axis: Axis) -> Any:
        if axis.name not in symbols:
            symbol = torch.export.Dim(f"{axis.name}_", min=-(-axis.least // axis.multiple))
            symbols[axis.name] = axis.multiple * symbol if axis.multiple > 1 else symbol
        return symbols[axis.name]

    shapes = tuple(
        {place: free(axis) for place, axis in enumerate(value.shape) if isinstance(axis, Axis)}
        for value in graph.inputs.values()
    )
    with warnings.catch_warnings():
        # Two inputs share an axis; its name in the file is set below.
        warnings.filterwarnings("ignore", "# The axis name", UserWarning)
        program = torch.onnx.export(
            graph.network,
            _sample(graph, graph.sizes[0]),
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            opset_version=opset,
            dynamic_shapes=shapes,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def _tidy(proto: Any, graph: Graph, metadata: Mapping[str, str]) -> None:
    """Names a reader understands, metadata, and nothing of this machine."""
    import onnx

    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del proto.graph.value_info[:], proto.graph.metadata_props[:], proto.metadata_props[:]  # shapes are inferred anyway
    proto.ir_version = onnx.helper.find_min_ir_version_for(proto.opset_import)
    proto.graph.name = "genkit"
    proto.producer_name, proto.producer_version = "genkit", __version__
    proto.doc_string = graph.words
    for found, values in ((proto.graph.input, graph.inputs), (proto.graph.output, graph.outputs)):
        for info, (name, value) in zip(found, values.items(), strict=True):
            info.CopyFrom(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, _shape(value), value.says))
    onnx.helper.set_model_props(proto, dict(sorted(metadata.items())))
    if proto.ByteSize() > LARGEST:
        raise InputError(f"the network is too large for one ONNX file ({proto.ByteSize() / 1e9:.1f} GB, at most 2)")


def _shape(value: Value) -> list[int | str]:
    return [axis.name if isinstance(axis, Axis) else axis for axis in value.shape]


def _sample(graph: Graph, size: Mapping[str, int]) -> tuple[Tensor, ...]:
    """Random inputs of a size, the same on every call."""
    import torch

    random = torch.Generator().manual_seed(0)

    def drawn(value: Value) -> Tensor:
        shape = [size[axis.name] if isinstance(axis, Axis) else axis for axis in value.shape]
        return torch.rand(shape, generator=random) * (value.high - value.low) + value.low

    return tuple(drawn(value) for value in graph.inputs.values())


def _difference(graph: Graph, file: Path) -> float:
    """The largest between onnxruntime's result and torch's, on the CPU, over the sizes that were not traced."""
    import numpy as np
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    differences = []
    for size in graph.sizes[1:]:
        sample = _sample(graph, size)
        with torch.inference_mode():
            expected = graph.network(*sample).numpy()
        given = dict(zip(graph.inputs, (one.numpy() for one in sample), strict=True))
        found = session.run(None, given)[0]
        same = found.shape == expected.shape
        differences.append(float(np.abs(found - expected).max()) if same else float("inf"))
    return float(np.max(differences))
