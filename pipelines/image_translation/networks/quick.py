"""Layers in forms that a CPU is quicker at: the same numbers up to rounding, for pictures in one piece.

- Convolutions 3x3 of many channels, most of a ResNet generator's work, take half the multiplications: four rows at once
  as F(4, 3) of Winograd's minimal filtering (Lavin & Gray 2016), in float32 only. Along one axis, and about the points
  0, +-sqrt(1/2), +-sqrt(2) and infinity, it rounds hardly more than the plain convolution; along both it would not.
- Instance norm runs as group norm of one channel a group, which PyTorch has quicker code for. In bfloat16 its
  statistics are taken in float32.
- A transposed convolution makes even and odd rows and columns, each by an ordinary convolution (Shi et al. 2016).
- A convolution to three channels leaves most of a vector register empty: it makes four pixels at once. One of three
  channels reads the columns of its kernel as channels.

In float32 channels lie as PyTorch has them: oneDNN rounds four times as much where they lie side by side. In bfloat16
they lie side by side, which is quicker.

Legend: B pictures, C channels in, O channels out, H, W px, K side of a kernel.
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Doubling", "FewIn", "FewOut", "FourRows", "QuickNorm", "quicken"]

P, Q = math.sqrt(1 / 2), math.sqrt(2)
POINTS = (0.0, P, -P, Q, -Q)
LEAST = 96  # channels, in and out, from which on four rows at once pay,
SMALLEST = 32 * 32  # and pixels
FEW = 4  # channels that leave a register empty
HELD = 1 << 19  # numbers of one transformed row set that are held at once, 2 MB


def quicken(network: nn.Module) -> nn.Module:
    """Beside a network that is on the CPU, in eval mode and float32 or bfloat16, one that makes the same of it quicker.

    The network itself stays as it is, to be trained, saved or worked through in tiles; weights that both have as they
    are they share in float32.
    """
    relaxed = any(weight.dtype == torch.bfloat16 for weight in network.parameters())
    quick = copy.deepcopy(network, {} if relaxed else {id(weight): weight for weight in network.parameters()})
    for module in list(quick.modules()):
        for name, layer in list(module.named_children()):
            other = _quick(layer)
            if other is not None:
                setattr(module, name, other)
    return quick.to(memory_format=torch.channels_last) if relaxed else quick


def _quick(layer: nn.Module) -> nn.Module | None:
    if type(layer) is nn.InstanceNorm2d and not layer.track_running_stats:
        return QuickNorm(layer)
    if type(layer) is nn.ConvTranspose2d:
        wanted = (layer.kernel_size, layer.stride, layer.padding, layer.output_padding, layer.dilation, layer.groups)
        return Doubling(layer) if wanted == ((3, 3), (2, 2), (1, 1), (1, 1), (1, 1), 1) else None
    if type(layer) is not nn.Conv2d or (layer.stride, layer.dilation, layer.groups) != ((1, 1), (1, 1), 1):
        return None
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str) or layer.kernel_size[0] != layer.kernel_size[1]:
        return None
    if layer.kernel_size == (3, 3):
        many = min(layer.in_channels, layer.out_channels) >= LEAST
        return FourRows(layer) if many and layer.weight.dtype == torch.float32 else None
    if layer.kernel_size[0] < 5:
        return None
    if layer.out_channels <= FEW:
        return FewOut(layer)
    return FewIn(layer) if layer.in_channels <= FEW else None


class QuickNorm(nn.InstanceNorm2d):
    """Instance norm without running statistics, [B, C, H, W] -> the same."""

    def __init__(self, norm: nn.InstanceNorm2d) -> None:
        super().__init__(norm.num_features, norm.eps, affine=norm.affine)
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, x.shape[1], self.weight, self.bias, self.eps)


class Quick(nn.Module):
    """What the convolutions below have: weights that are buffers, and the padding."""

    bias: Tensor | None

    def __init__(self, layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
        super().__init__()
        self.padding = int(layer.padding[0])
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())


class FourRows(Quick):
    """A convolution 3x3 of stride 1, [B, C, H, W] -> [B, O, H, W] or without a border of one, four rows at once.

    A column of six rows x becomes A'((G w) * (B' x)), * a convolution along the row (Lavin & Gray, section 4.1).
    """

    weight: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv)
        self.plain = conv.weight  # for pictures that are too small to gain
        first, middle, last = conv.weight.detach().double().unbind(2)  # [O, C, 3], the rows of the kernel
        weights = []
        for x in POINTS:
            scale = math.prod(x - other for other in POINTS if other != x)
            weights.append((first + x * middle + x * x * last) / scale)
        self.register_buffer("weight", torch.stack([*weights, last])[:, :, :, None].float())  # [6, O, C, 1, 3]

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        h, w = (side + 2 * self.padding - 2 for side in (h, w))
        if h * w < SMALLEST:
            return F.conv2d(x, self.plain, self.bias, padding=self.padding)
        x = _padded(x, self.padding, below=-h % 4)
        quads = -(-h // 4)
        y = x.new_empty(b, self.weight.shape[1], 4 * quads, w)
        parts = -(-quads * x.shape[1] * x.shape[3] // HELD)
        rows = 4 * -(-quads // parts)
        for one, made in zip(x.split(1), y.split(1), strict=True):
            for top in range(0, 4 * quads, rows):
                self._rows(one[:, :, top : top + rows + 2], made[:, :, top : top + rows])
        y = y[:, :, :h]
        return y if self.bias is None else y.add_(self.bias[:, None, None])

    def _rows(self, x: Tensor, y: Tensor) -> None:
        """x: [1, C, 4 n + 2, W + 2]; y: [1, O, 4 n, W], is written."""
        phases = [x[:, :, i::4].contiguous() for i in range(4)]
        n = y.shape[2] // 4
        x0, x1, x2, x3, x4, x5 = (phases[i % 4][:, :, i // 4 : i // 4 + n] for i in range(6))
        # Products over the points: of 0 and infinity with x^4 - 5/2 x^2 + 1, of the others with halves of it.
        even, odd = torch.sub(x4, x2, alpha=Q * Q), torch.sub(x3, x1, alpha=Q * Q)
        inputs = [torch.sub(x4, x2, alpha=2.5).add_(x0), torch.add(even, odd, alpha=P), even.sub_(odd, alpha=P)]
        even, odd = torch.sub(x4, x2, alpha=P * P), torch.sub(x3, x1, alpha=P * P)
        inputs += [torch.add(even, odd, alpha=Q), even.sub_(odd, alpha=Q), torch.sub(x5, x3, alpha=2.5).add_(x1)]
        m = [F.conv2d(one, weight) for one, weight in zip(inputs, self.weight, strict=True)]
        # Row k of four: the sum over points x of x^k m, and infinity's in the last row.
        sum_p, sum_q = m[1] + m[2], m[3] + m[4]
        less_p, less_q = m[1].sub_(m[2]).mul_(P), m[3].sub_(m[4])
        torch.add(m[0].add_(sum_p), sum_q, out=y[:, :, 0::4])
        torch.add(less_p, less_q, alpha=Q, out=y[:, :, 1::4])
        torch.add(sum_p.mul_(P * P), sum_q, alpha=Q * Q, out=y[:, :, 2::4])
        torch.add(m[5].add_(less_p, alpha=P * P), less_q, alpha=Q**3, out=y[:, :, 3::4])


class Doubling(Quick):
    """A transposed convolution 3x3 that doubles the sides, [B, C, H, W] -> [B, O, 2 H, 2 W]."""

    def __init__(self, conv: nn.ConvTranspose2d) -> None:
        super().__init__(conv)
        kernel = conv.weight.detach().transpose(0, 1)  # [O, C, 3, 3]
        taps = ([1], [2, 0])  # of even pixels, and of odd ones, which see two
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
            self.register_buffer(f"weight{i}{j}", kernel[:, :, taps[i]][:, :, :, taps[j]].contiguous())

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        x = F.pad(x, (0, 1, 0, 1))
        layout = torch.contiguous_format if x.dtype == torch.float32 else torch.channels_last
        size = (b, self.get_buffer("weight00").shape[0], 2 * h, 2 * w)
        y = torch.empty(size, dtype=x.dtype, memory_format=layout)
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
            # A kernel of one has no dilation; but on one thread PyTorch keeps such from oneDNN without it.
            weight, dilation = self.get_buffer(f"weight{i}{j}"), 1 if i or j else 2
            y[:, :, i::2, j::2] = F.conv2d(x[:, :, : h + i, : w + j], weight, self.bias, dilation=dilation)
        return y


class FewOut(Quick):
    """A convolution K x K of stride 1 to few channels: squares of four pixels by a kernel of K + 1 that goes by two."""

    weight: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv)
        kernel = conv.weight.detach()
        o, c, k, _ = kernel.shape
        weight = kernel.new_zeros(o, 2, 2, c, k + 1, k + 1)
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
            weight[:, i, j, :, i : i + k, j : j + k] = kernel
        self.register_buffer("weight", weight.flatten(0, 2))  # [4 O, C, K + 1, K + 1]
        self.bias = None if self.bias is None else self.bias.repeat_interleave(4)

    def forward(self, x: Tensor) -> Tensor:
        h, w = (side + 2 * self.padding - self.weight.shape[2] + 2 for side in x.shape[2:])
        x = _padded(x, self.padding, below=h % 2, right=w % 2)
        return F.pixel_shuffle(F.conv2d(x, self.weight, self.bias, stride=2), 2)[:, :, :h, :w]


class FewIn(Quick):
    """A convolution K x K of stride 1 of few channels, as one K x 1 of K times as many."""

    weight: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv)
        self.register_buffer("weight", conv.weight.detach().permute(0, 3, 1, 2).flatten(1, 2)[..., None].contiguous())

    def forward(self, x: Tensor) -> Tensor:
        x = _padded(x, self.padding)
        k = self.weight.shape[2]
        w = x.shape[3] - k + 1
        columns = torch.cat([x[..., i : i + w] for i in range(k)], 1).contiguous(memory_format=torch.channels_last)
        made = F.conv2d(columns, self.weight, self.bias)
        return made.contiguous() if made.dtype == torch.float32 else made


def _padded(x: Tensor, around: int, *, below: int = 0, right: int = 0) -> Tensor:
    """With zeros at its borders; a picture without any is not copied."""
    if not (around or below or right):
        return x
    return F.pad(x, (around, around + right, around, around + below))
