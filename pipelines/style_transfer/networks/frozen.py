"""Layers of a network that is not trained: the gradient goes through to the picture, and little is kept for it.

Autograd keeps the input of every convolution for a weight gradient that nobody asks for, the padded copy beside the
unpadded one, and the input of every pooling. Going through to the input needs none of them: a convolution needs its
weights, a ReLU the places where it let something pass (a byte each), a pooling the shape. The arithmetic is torch's
own, so the numbers are the same to the bit; how much less memory that takes is in
benchmarks/results.md.

While weights are trained the ordinary operations are used.

Shapes: x [B, C, H, W].
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["average_pool", "conv_relu"]


def conv_relu(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """relu(conv(x)), in any padding mode of `conv` that torch pads by edge values ("replicate") or zeros."""
    if conv.weight.requires_grad or not x.requires_grad:
        return F.relu(conv(x))
    return _ConvRelu.apply(x, conv)


def average_pool(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Average pooling without padding; the last windows may reach over the edge and average what is there."""
    if not x.requires_grad:
        return F.avg_pool2d(x, kernel, stride, ceil_mode=True)
    return _AveragePool.apply(x, kernel, stride)


class _ConvRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, conv: nn.Conv2d) -> Tensor:
        y = F.relu_(conv(x))
        ctx.conv, ctx.shape = conv, x.shape
        ctx.save_for_backward(y > 0)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (passed,) = ctx.saved_tensors
        conv: nn.Conv2d = ctx.conv
        grad = grad * passed
        edges = conv.padding_mode == "replicate"
        pad_h, pad_w = (int(p) for p in conv.padding)
        b, c, h, w = ctx.shape
        shape = (b, c, h + 2 * pad_h, w + 2 * pad_w) if edges else ctx.shape
        # The input's values do not enter; torch asks for a tensor to read shape and layout from.
        like = grad.new_empty(shape).contiguous(memory_format=_layout(grad))
        padding = [0, 0] if edges else [pad_h, pad_w]
        arguments = (None, conv.stride, padding, conv.dilation, False, [0, 0], conv.groups, [True, False, False])
        grad = torch.ops.aten.convolution_backward(grad, like, conv.weight, *arguments)[0]
        if edges:
            inner = grad.new_empty(1).expand(ctx.shape)
            grad = torch.ops.aten.replication_pad2d_backward(grad, inner, [pad_w, pad_w, pad_h, pad_h])
        return grad, None


class _AveragePool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: int, stride: int) -> Tensor:
        ctx.shape, ctx.window = x.shape, ([kernel, kernel], [stride, stride])
        return F.avg_pool2d(x, kernel, stride, ceil_mode=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        like = grad.new_empty(ctx.shape).contiguous(memory_format=_layout(grad))
        grad = torch.ops.aten.avg_pool2d_backward(grad, like, *ctx.window, [0, 0], True, True, None)
        return grad, None, None


def _layout(x: Tensor) -> torch.memory_format:
    nhwc = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if nhwc else torch.contiguous_format
