"""The 1-D U-Net of audio super-resolution (Kuleshov, Enam & Ermon 2017, https://arxiv.org/abs/1708.00853).

    B  recordings or channels in the batch      T  samples      C  filters      W  width, samples at a level

    down b          convolution of stride 2, LeakyReLU 0.2
    bottleneck      convolution of stride 2, dropout 0.5, LeakyReLU 0.2
    up b            convolution to twice the filters, dropout 0.5, ReLU, sub-pixel x2, the output of down b beside it
    last            convolution to two filters, sub-pixel x2, the input added

Kernels are 65, 33, 17, then 9. The published filters are 128, 384, 512, 512 and on, here `width` times 1, 3, 4, 4; the
paper's own text has 256 for the second block (`second=2`). Eight blocks have 118.2 million parameters.

Choices made here:
- Layout and order are the authors' code's (kuleshov/audio-super-res), which differs from its paper in places: no batch
  normalisation, no dropout on the way down.
- Padding is TensorFlow's `same`: with stride 2 and an odd kernel one zero fewer on the left than on the right.
- The input is at the new rate already, upsampled by whoever calls (as published: by cubic spline).
- Any length: zeros are appended to a multiple of 2^(blocks + 1) and cut off again (the authors cut the recording).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.audio_super_resolution.networks import check_bounds

__all__ = ["Config", "UNet", "sub_pixel"]

KERNELS = (65, 33, 17, 9)  # of the first blocks; those that follow have the last
SLOPE = 0.2


@dataclass(frozen=True)
class Config:
    """The shape of a network; what a model file's header holds. Raises ValueError for values out of bounds."""

    BOUNDS: ClassVar[dict[str, tuple[float, float]]] = {
        "blocks": (2, 8),
        "width": (1, 1024),
        "second": (1, 8),
        "dropout": (0, 0.95),
    }

    blocks: int = 8
    width: int = 128
    """Filters of the first block."""
    second: int = 3
    """Filters of the second block, times `width`; the others have 4."""
    dropout: float = 0.5

    def __post_init__(self) -> None:
        check_bounds(self)

    def json(self) -> str:
        """Itself as JSON; `Config(**json.loads(text))` makes it again."""
        return json.dumps(asdict(self))

    @property
    def filters(self) -> list[int]:
        """Of each block on the way down."""
        return [self.width * (1, self.second, 4)[min(block, 2)] for block in range(self.blocks)]

    @property
    def kernels(self) -> list[int]:
        """Of each block, down and up."""
        return [KERNELS[min(block, len(KERNELS) - 1)] for block in range(self.blocks)]

    @property
    def bottleneck(self) -> tuple[int, int]:
        """Filters and kernel, those of an eighth block whatever the depth."""
        return 4 * self.width, KERNELS[-1]


def sub_pixel(x: Tensor, r: int = 2) -> Tensor:
    """[B, r C, W] -> [B, C, r W]; block-major, as published: out[c, r w + o] = in[o C + c, w].

    PyTorch's pixel shuffle is channel-major: weights that come from there need their filters permuted.
    """
    b, rc, w = x.shape
    return x.view(b, r, rc // r, w).permute(0, 2, 3, 1).reshape(b, rc // r, r * w)


class Halve(nn.Conv1d):
    """Convolution of stride 2, [B, C, W] -> [B, C', W / 2], W even, padded as TensorFlow's `same`."""

    def __init__(self, channels: int, filters: int, kernel: int) -> None:
        super().__init__(channels, filters, kernel, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel_size[0]
        return super().forward(F.pad(x, ((kernel - 3) // 2, (kernel - 1) // 2)))


class UNet(nn.Module):
    """The network. See the module's docstring; `Config` says what it is made of."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        filters, kernels = config.filters, config.kernels
        widest, kernel = config.bottleneck
        self.down = nn.ModuleList(map(Halve, [1, *filters], filters, kernels))
        self.bottleneck = Halve(filters[-1], widest, kernel)
        below = [*(2 * f for f in filters[1:]), widest]  # what comes up to block b: both halves of block b + 1
        self.up = nn.ModuleList(
            nn.Conv1d(c, 2 * f, k, padding=k // 2) for c, f, k in zip(below, filters, kernels, strict=True)
        )
        self.last = nn.Conv1d(2 * filters[0], 2, 9, padding=4)
        self.dropout = nn.Dropout(config.dropout)
        self.apply(_initialise)
        nn.init.normal_(self.last.weight, std=1e-3)  # begins as nearly the identity

    @property
    def multiple(self) -> int:
        """Samples of one step of the bottleneck, 2^(blocks + 1)."""
        return 2 ** (self.config.blocks + 1)

    @property
    def context(self) -> int:
        """Samples on each side that a chunk's own depend on, rounded up to `multiple`.

        Followed back from the output through every kernel and skip connection: `low` to `high` is what is needed of a
        level to compute one step of the bottleneck, samples 0 to `multiple` - 1.
        """
        kernels, (_, narrowest) = self.config.kernels, self.config.bottleneck
        low, high = -4, self.multiple // 2 - 1 + 4  # of the last convolution's input
        skips = []
        for kernel in kernels:
            skips.append((low, high))
            low, high = low // 2 - kernel // 2, high // 2 + kernel // 2
        for kernel, skip in zip([narrowest, *reversed(kernels)], [*reversed(skips), (0, 0)], strict=True):
            low, high = min(2 * low - (kernel - 3) // 2, skip[0]), max(2 * high + (kernel + 1) // 2, skip[1])
        reach = max(-low, high - (self.multiple - 1))
        return -(-reach // self.multiple) * self.multiple

    def forward(self, samples: Tensor) -> Tensor:
        """[B, T] at the new rate -> [B, T], for any T from 1."""
        t = samples.shape[-1]
        x = start = F.pad(samples, (0, -t % self.multiple))[:, None]  # [B, 1, T']
        skips = []
        for down in self.down:
            x = F.leaky_relu(down(x), SLOPE)
            skips.append(x)
        x = F.leaky_relu(self.dropout(self.bottleneck(x)), SLOPE)  # [B, 4 width, T' / multiple]
        for up, skip in zip(reversed(self.up), reversed(skips), strict=True):
            x = torch.cat([sub_pixel(F.relu(self.dropout(up(x)))), skip], 1)
        return (sub_pixel(self.last(x)) + start)[:, 0, :t]

    def restore(self, samples: Tensor) -> Tensor:
        """The same as calling it: what both networks have."""
        return self(samples)


def _initialise(module: nn.Module) -> None:
    """Orthogonal, without bias, as published."""
    if isinstance(module, nn.Conv1d) and module.bias is not None:
        if not module.weight.is_meta:  # no use there, and the decomposition takes its time
            nn.init.orthogonal_(module.weight)
        nn.init.zeros_(module.bias)
