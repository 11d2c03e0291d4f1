"""A generator as a graph for `genkit export`, with the values it has inside: pictures in -1..1, both ways.

Batch norm and StarGAN's norm take the statistics of each picture by itself, as the pipeline does unless `--eval-norm`
is given, so a picture does not depend on its batch here either. Dropout, which pix2pix leaves on in use as its only
noise, is off: a graph cannot draw what genkit draws from a seed.

Legend: B pictures, C channels, L labels, H, W px.
"""

from __future__ import annotations

from torch import Tensor, nn

from genkit.exporting import Axis, Graph, Value
from pipelines.image_translation.loading import Generator, load_generator
from pipelines.image_translation.networks.modes import Dropout, as_published
from pipelines.image_translation.recognise import header

__all__ = ["graph"]

SIDE = 48  # px, about: large enough for statistics, small enough to be quick
WITHOUT_DROPOUT = "dropout is off in the file, so it gives one picture where genkit draws another with each seed"


class OwnStatistics(nn.Module):
    """A network whose norms take each picture's own statistics: [B, C, H, W] (and labels [B, L]) -> [B, C, H, W]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, labels: Tensor | None = None) -> Tensor:
        with as_published(self.network, None):
            return self.network(image) if labels is None else self.network(image, labels)


def graph(model: str) -> Graph:
    """The generator of `model` (alias, hub id, folder or file). Raises ModelError."""
    found = load_generator(model)
    batch = Axis("batch")
    sides = [Axis(name, found.multiple, found.smallest) for name in ("height", "width")]
    inputs = {"image": Value((batch, found.channels_in, *sides), _says(found.channels_in))}
    if found.labels:
        inputs["labels"] = Value((batch, found.labels), "0 or 1 for each look", low=0.0)
    direction = {"direction": found.about["direction"]} if "direction" in found.about else {}
    dropout = any(isinstance(layer, Dropout) for layer in found.network.modules())
    return Graph(
        network=OwnStatistics(found.network).eval() if found.modes else found.network,
        inputs=inputs,
        outputs={"translated": Value((batch, found.channels_out, *sides), _says(found.channels_out))},
        sizes=_sizes(found),
        words=found.words,
        source=found.path,
        about=header(found.kind, found.layout, **direction),
        notes=[WITHOUT_DROPOUT] if dropout else [],
    )


def _says(channels: int) -> str:
    planes = {1: "grey", 3: "RGB"}.get(channels, f"{channels} planes")
    return f"{planes} in sRGB, -1..1 (a value of 0..255 is x / 127.5 - 1)"


def _sizes(found: Generator) -> list[dict[str, int]]:
    """One to trace at, and two others to check at, the second no larger than it must be.

    A U-Net's smallest picture is a single value at the bottleneck: traced there, it would take no other.
    """
    m = found.multiple
    near = -(-max(found.smallest, SIDE) // m) * m
    sizes = ((3, near + m, near + 2 * m), (2, near + 2 * m, near), (1, near, near))
    return [{"batch": b, "height": h, "width": w} for b, h, w in sizes]
