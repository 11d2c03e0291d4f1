"""Which network a checkpoint's tensors belong to: the architecture is read off their names and shapes.

Known are the published layouts of pytorch-CycleGAN-and-pix2pix, contrastive-unpaired-translation and yunjey/stargan,
and genkit's own files, whose header states the layout (`header` writes it) and must agree with the tensors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from genkit import weights
from genkit.errors import ModelError
from pipelines.image_translation.architectures import KINDS, Kind, kind_of

__all__ = ["ARCHITECTURE", "Recognised", "header", "recognise"]

ARCHITECTURE = "genkit.image-translation"
STATISTICS = re.compile(r"(.*)\.(running_mean|running_var|num_batches_tracked)")


@dataclass(frozen=True)
class Recognised:
    """What was found: `kind` is a Kind's name, `layout` that kind's dataclass, `words` one line for people."""

    kind: str
    layout: Any
    words: str
    tensors: dict[str, Tensor]
    """In float32, without what old files hold too much."""

    @property
    def generates(self) -> bool:
        """Whether it is a generator; the others are discriminators."""
        return KINDS[self.kind].generates

    def build(self) -> nn.Module:
        """The network with these weights, in eval mode, on the CPU. Raises ModelError."""
        with torch.device("meta"):  # takes no memory of its own: the tensors become the network's
            network = KINDS[self.kind].network(self.layout)
        weights.load_into(network, self.tensors, name=self.words)
        return network.eval().requires_grad_(False)


def header(kind: str, layout: Any, **about: Any) -> dict[str, str]:
    """What the safetensors file of a network says about it, for `weights.write`.

    about: whatever else is to be known of it, as JSON values: `training` (its options), `direction` ("a-to-b").
    """
    stated = {"architecture": ARCHITECTURE, "layout": json.dumps({"kind": kind, **asdict(layout)})}
    return stated | {name: value if isinstance(value, str) else json.dumps(value) for name, value in about.items()}


def recognise(tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None, *, name: str = "it") -> Recognised:
    """The network that tensors belong to, all of them and no others.

    about: the file's metadata; name: what messages call the file. Raises ModelError, one line.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    empty = next((key for key, shape in shapes.items() if 0 in shape), None)
    if empty is not None:
        raise ModelError(f"{name}: tensor {empty[:80]!r} is empty; get the file again")
    kind = kind_of(shapes)
    if kind is None:
        raise ModelError(f"{name} is no image translation model{_instead(tensors)}")
    try:
        layout = kind.read(shapes)
    except (KeyError, IndexError, ValueError) as error:
        raise ModelError(f"{name} looks like a {kind.name} of image translation, but {_reason(error)}") from None
    about = about or {}
    if about.get("architecture", "").startswith(ARCHITECTURE) and "layout" in about:
        layout = _stated(kind, layout, about["layout"], name)
    kept = _without_strays(tensors)
    found = Recognised(kind.name, layout, kind.words(layout), kept)
    with torch.device("meta"):
        network = kind.network(layout)
    weights.load_into(network, kept, name=f"{name} ({found.words})")
    return found


def _stated(kind: Kind, read: Any, text: str, name: str) -> Any:
    """The layout that a header states, which may add to what was read off the tensors but not differ from it."""
    try:
        stated = json.loads(text)
        named = stated.pop("kind")
        known = {field.name: type(getattr(read, field.name)) for field in fields(read)}
        bad = next((key for key, value in stated.items() if type(value) is not known.get(key)), None)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise ModelError(f"{name}: the layout in its header is damaged; get the file again") from None
    if bad is not None:
        value = str(stated[bad])[:40]
        raise ModelError(f"{name}: its header states {bad[:40]!r} as {value!r}; update genkit, or get the file again")
    layout = replace(read, **stated)
    visible = replace(layout, **{field: getattr(read, field) for field in kind.unseen})
    if named != kind.name or visible != read:
        raise ModelError(
            f"{name}: its header and its tensors differ (the tensors are those of: {kind.words(read)}); get it again"
        )
    return layout


def _without_strays(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in float32, without statistics that belong to no weights: before PyTorch 0.4 an InstanceNorm kept some
    that it never used. Files older than 0.4.1 count no batches: a count is added, which nothing here reads."""
    kept = {}
    for key, tensor in tensors.items():
        found = STATISTICS.fullmatch(key)
        if found and f"{found[1]}.weight" not in tensors:
            continue
        counts = found is not None and found[2] == "num_batches_tracked"
        kept[key] = tensor if counts else tensor.float()
        if found and found[2] == "running_mean":
            kept.setdefault(f"{found[1]}.num_batches_tracked", torch.tensor(0))
    return kept


def _instead(tensors: Mapping[str, Tensor]) -> str:
    """What it looks like instead, as the end of a sentence."""
    if "mlp_0.0.weight" in tensors:
        return ": it looks like the heads that CUT trains with (net_F); name the generator, net_G"
    inner = sorted({key.partition(".")[0] for key in tensors if re.match(r"(net)?[GD]_\w+\.", key)})
    if inner:
        return f": it holds several networks ({', '.join(inner)}); save the generator in a file of its own"
    family = weights.looks_like(tensors)
    ours = ", of which tensors are missing" if re.search("CycleGAN|pix2pix", family) else ""
    return f": it looks like {family}{ours}" if family else ""


def _reason(error: Exception) -> str:
    return f"tensor {error} is missing" if isinstance(error, KeyError) else str(error)
