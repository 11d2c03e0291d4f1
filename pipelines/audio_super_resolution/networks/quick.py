"""Layers in forms that a CPU is quicker at: the same numbers up to rounding, float32 only.

- Convolutions with long kernels run through the FFT by overlap-save (Oppenheim & Schafer, Discrete-Time Signal
  Processing, ch. 8): in a block of n samples a kernel of K taps costs as much as one of about 4 n / (n - K + 1), which
  for the 65 taps of a U-Net is a tenth, and rounds less.
- Linear layers run as 1 x 1 convolutions of channels that lie side by side. PyTorch hands these to oneDNN, which has
  code for the processor at hand; its matrix product is MKL's, which on other processors than Intel's takes twice as
  long.
- Other convolutions of stride 1 run with channels side by side too: between linear layers, nothing is turned round.

`quicken` puts them into a network in place of its own. They hold the same weights under other names: a network that is
trained or saved keeps its own layers.

B: rows; C, O: channels in and out; W: samples; N: frames; K: taps; F: frequencies, n / 2 + 1 of a block of n samples.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FFTConv", "SideBySide", "WideConv", "quicken"]

LEAST = 17  # taps from which on an FFT pays
SHORT = 9  # taps below which a convolution of all channels gains little: such a one stays as it is
LARGEST = 1 << 23  # coefficients of a kernel's spectrum, 67 MB: wider layers stay as they are
HELD = 1 << 21  # numbers of the spectra that are held at once, 17 MB


class FFTConv(nn.Module):
    """A convolution of stride 1, [B, C, W] -> [B, O, W], by overlap-save. conv: with an odd kernel and zeros to half of
    it at either side."""

    bias: Tensor
    kernel: Tensor

    def __init__(self, conv: nn.Conv1d) -> None:
        super().__init__()
        self.taps = conv.kernel_size[0]
        self.n = _block(self.taps)
        assert conv.bias is not None
        self.register_buffer("bias", conv.bias.detach()[:, None].clone())
        # PyTorch's convolution correlates: the kernel is turned round by the conjugate. [F, C, O]
        spectrum = torch.fft.rfft(conv.weight.detach(), self.n).conj().resolve_conj()
        self.register_buffer("kernel", spectrum.permute(2, 1, 0).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self._row(row) for row in x])

    def _row(self, x: Tensor) -> Tensor:
        """[C, W] -> [O, W]"""
        w, step = x.shape[-1], self.n - self.taps + 1
        count = -(-w // step)
        half = self.taps // 2
        blocks = F.pad(x, (half, count * step + half - w)).unfold(-1, self.n, step)  # [C, count, n]
        some = max(1, HELD // (len(x) * len(self.kernel)))
        found = [self._blocks(part, step) for part in blocks.split(some, 1)]
        return torch.cat(found, 1).flatten(1)[:, :w] + self.bias

    def _blocks(self, blocks: Tensor, step: int) -> Tensor:
        """[C, some, n] -> [O, some, step]; what goes round the circle comes last, and is left out."""
        spectra = torch.fft.rfft(blocks).permute(2, 1, 0)
        return torch.fft.irfft(torch.bmm(spectra, self.kernel).permute(2, 1, 0), self.n)[..., :step]


class SideBySide(nn.Module):
    """A linear layer over the channels of each frame, [B, N, C] -> [B, N, O], as a convolution of 1 x 1."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()[:, :, None, None]
        self.register_buffer("weight", weight.to(memory_format=torch.channels_last))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        image = x.transpose(1, 2)[:, :, None]  # [B, C, 1, N], channels last
        # A kernel of one has no dilation; but on one thread PyTorch keeps small kernels without it from oneDNN.
        return F.conv2d(image, self.weight, self.bias, dilation=2)[:, :, 0].transpose(1, 2)


class WideConv(nn.Module):
    """A convolution of stride 1, [B, C, W] -> [B, O, W], over channels that lie side by side; what comes in otherwise
    goes out otherwise."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, conv: nn.Conv1d) -> None:
        super().__init__()
        self.padding, self.groups = (0, int(conv.padding[0])), conv.groups
        weight = conv.weight.detach()[:, :, None]
        self.register_buffer("weight", weight.to(memory_format=torch.channels_last))
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        image = x[:, :, None].contiguous(memory_format=torch.channels_last)
        made = F.conv2d(image, self.weight, self.bias, padding=self.padding, groups=self.groups)[:, :, 0]
        return made.contiguous() if x.is_contiguous() else made


def quicken(network: nn.Module) -> None:
    """Puts the quick layers into a network that is on the CPU, in eval mode, float32 and not to be saved."""
    for module in list(network.modules()):
        for name, layer in list(module.named_children()):
            quick = _quick(layer)
            if quick is not None:
                setattr(module, name, quick)


def _quick(layer: nn.Module) -> nn.Module | None:
    if isinstance(layer, nn.Linear):
        return SideBySide(layer)
    if type(layer) is not nn.Conv1d:  # those of stride 2 are a class of their own
        return None
    taps = layer.kernel_size[0]
    coefficients = layer.in_channels * layer.out_channels * (_block(taps) // 2 + 1)
    if layer.groups == 1 and taps >= LEAST and coefficients <= LARGEST:
        return FFTConv(layer)
    return WideConv(layer) if layer.groups > 1 or taps >= SHORT else None


def _block(taps: int) -> int:
    """Samples of a block: a power of two, at least eight times the kernel."""
    return 1 << (8 * taps - 1).bit_length()
