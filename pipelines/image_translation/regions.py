"""Which part of its input a layer needs for a part of its output, and that part computed alone.

A rule stands for one step of a network (`program` finds them). It knows the picture's borders: padding is put where
the whole picture has it, and nowhere else, so a part comes out as it lies in the whole, up to the rounding of the
arithmetic. What depends on all of the picture at once, the statistics of a norm and the places that dropout takes out,
is handed in by `tiling`.

Both axes go the same way (square kernels, equal strides), as in every network here. Legend: B pictures, C channels,
H, W px; a Span is a stretch of one axis, a Part one of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.image_translation.networks.modes import Dropout

__all__ = [
    "Beside",
    "Drop",
    "Norm",
    "Pad",
    "Part",
    "Pointwise",
    "Rule",
    "Shape",
    "Span",
    "Spread",
    "Window",
    "reflected",
]


class Span(NamedTuple):
    """start <= i < end."""

    start: int
    end: int

    def joined(self, other: Span) -> Span:
        return Span(min(self.start, other.start), max(self.end, other.end))


class Part(NamedTuple):
    rows: Span
    columns: Span

    def joined(self, other: Part) -> Part:
        return Part(self.rows.joined(other.rows), self.columns.joined(other.columns))

    def of(self, x: Tensor, start: Part | None = None) -> Tensor:
        """This part of x [..., H, W]; start: the part that x is, if it is not the whole."""
        top, left = (start.rows.start, start.columns.start) if start else (0, 0)
        rows, columns = self
        return x[..., rows.start - top : rows.end - top, columns.start - left : columns.end - left]


class Shape(NamedTuple):
    channels: int
    height: int
    width: int


def reflected(start: int, end: int, n: int) -> Tensor:
    """Where places start..end lie on an axis of n px that goes back and forth for ever; [end - start], 0..n-1."""
    if n == 1:
        return torch.zeros(end - start, dtype=torch.long)
    places = torch.arange(start, end).remainder(2 * (n - 1))
    return torch.minimum(places, 2 * (n - 1) - places)


class Rule(Protocol):
    """One step of a network."""

    def channels(self, of: Sequence[int]) -> int:
        """Of the output, for those of the inputs."""

    def size(self, n: int) -> int:
        """The output's length on an axis where the input has n."""

    def needs(self, span: Span, n: int) -> Span:
        """What of an input of length n a stretch of the output needs."""

    def apply(self, inputs: Sequence[Tensor], part: Part, whole: Shape) -> Tensor:
        """The part of the output; inputs: what it needs of each; whole: the first input's shape."""


class Pointwise:
    """Each pixel by itself."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function

    def channels(self, of: Sequence[int]) -> int:
        return of[0]

    def size(self, n: int) -> int:
        return n

    def needs(self, span: Span, n: int) -> Span:
        return span

    def apply(self, inputs: Sequence[Tensor], part: Part, whole: Shape) -> Tensor:
        return self.function(*inputs)


class Beside(Pointwise):
    """Channels of several, one behind the other."""

    def __init__(self) -> None:
        super().__init__(lambda *inputs: torch.cat(inputs, 1))

    def channels(self, of: Sequence[int]) -> int:
        return sum(of)


class Norm(Pointwise):
    """Normalised by statistics of the whole picture, where the layer takes those (`measured`), else by its own."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        super().__init__(self._normalised)
        self.measured = bool(getattr(layer, "own", False)) or not self.layer.track_running_stats
        self.statistics: tuple[Tensor, Tensor] = (self.layer.running_mean, self.layer.running_var)

    def _normalised(self, x: Tensor) -> Tensor:
        mean, variance = (one.to(x.device, torch.float32) for one in self.statistics)
        weight, bias = self.layer.weight, self.layer.bias
        scale = (variance + self.layer.eps).rsqrt() * (1 if weight is None else weight.float())
        centred = (x.float() - mean[:, None, None]) * scale[:, None, None]
        return (centred if bias is None else centred + bias.float()[:, None, None]).to(x.dtype)


class Drop(Pointwise):
    """Dropout that takes out the places set in `mask` [C, H, W] of the whole; nothing without generators."""

    def __init__(self, layer: Dropout) -> None:
        self.p, self.generators = layer.p, layer.generators
        self.mask: Tensor | None = None

    def draw(self, shape: Shape) -> None:
        """As the layer itself draws for the whole picture, the first of the batch."""
        if self.generators is not None:
            self.mask = torch.empty(shape).bernoulli_(1 - self.p, generator=self.generators[0]).bool()

    def apply(self, inputs: Sequence[Tensor], part: Part, whole: Shape) -> Tensor:
        (x,) = inputs
        return x if self.mask is None else x * part.of(self.mask).to(x) / (1 - self.p)


@dataclass(frozen=True)
class Pad:
    """Rows and columns added at the borders of the whole picture."""

    by: int
    mode: Literal["reflect", "replicate"]

    def channels(self, of: Sequence[int]) -> int:
        return of[0]

    def size(self, n: int) -> int:
        return n + 2 * self.by

    def needs(self, span: Span, n: int) -> Span:
        if self.by <= span.start and span.end <= n + self.by:
            return Span(span.start - self.by, span.end - self.by)
        places = self._places(span, n)
        return Span(int(places.min()), int(places.max()) + 1)

    def apply(self, inputs: Sequence[Tensor], part: Part, whole: Shape) -> Tensor:
        (x,) = inputs
        for axis, span, n in ((2, part.rows, whole.height), (3, part.columns, whole.width)):
            if span.start < self.by or span.end > n + self.by:
                places = self._places(span, n)
                x = x.index_select(axis, (places - places.min()).to(x.device))
        return x

    def _places(self, span: Span, n: int) -> Tensor:
        if self.mode == "reflect":
            return reflected(span.start - self.by, span.end - self.by, n)
        return torch.arange(span.start - self.by, span.end - self.by).clamp(0, n - 1)


@dataclass(frozen=True)
class Window:
    """A convolution, zeros around the whole picture."""

    weight: Tensor
    bias: Tensor | None
    stride: int
    padding: int
    dilation: int = 1
    groups: int = 1

    @property
    def kernel(self) -> int:
        return self.dilation * (self.weight.shape[-1] - 1) + 1

    def channels(self, of: Sequence[int]) -> int:
        return self.weight.shape[0]

    def size(self, n: int) -> int:
        return (n + 2 * self.padding - self.kernel) // self.stride + 1

    def needs(self, span: Span, n: int) -> Span:
        start, end = self._wants(span)
        return Span(max(start, 0), min(end, n))

    def _wants(self, span: Span) -> Span:
        start = span.start * self.stride - self.padding
        return Span(start, (span.end - 1) * self.stride - self.padding + self.kernel)

    def apply(self, inputs: Sequence[Tensor], part: Part, whole: Shape) -> Tensor:
        (x,) = inputs
        missing = []
        for span, n in ((part.columns, whole.width), (part.rows, whole.height)):
            start, end = self._wants(span)
            missing += [max(0, -start), max(0, end - n)]
        x = F.pad(x, missing) if any(missing) else x
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


@dataclass(frozen=True)
class Spread:
    """A transposed convolution; its kernel is at least as long as its stride."""

    weight: Tensor
    bias: Tensor | None
    stride: int
    padding: int
    more: int = 0
    """Rows and columns added at the end (`output_padding`)."""
    groups: int = 1

    @property
    def kernel(self) -> int:
        return self.weight.shape[-1]

    def channels(self, of: Sequence[int]) -> int:
        return self.weight.shape[1] * self.groups

    def size(self, n: int) -> int:
        return (n - 1) * self.stride - 2 * self.padding + self.kernel + self.more

    def needs(self, span: Span, n: int) -> Span:
        start = -(-(span.start + self.padding - self.kernel + 1) // self.stride)
        end = (span.end - 1 + self.padding) // self.stride + 1
        start = min(max(start, 0), n - 1)  # the rows that `more` adds have no input of their own
        return Span(start, max(start + 1, min(end, n)))

    def apply(self, inputs: Sequence[Tensor], part: Part, whole: Shape) -> Tensor:
        (x,) = inputs
        y = F.conv_transpose2d(x, self.weight, None, self.stride, 0, 0, self.groups)
        for axis, span, n in ((2, part.rows, whole.height), (3, part.columns, whole.width)):
            first = self.needs(span, n).start * self.stride - self.padding  # where y begins in the whole
            short = span.end - first - y.shape[axis]
            if short > 0:
                y = F.pad(y, (0, short) if axis == 3 else (0, 0, 0, short))
            y = y.narrow(axis, span.start - first, span.end - span.start)
        return y if self.bias is None else y + self.bias[:, None, None]
