"""A network as a list of steps, each with a rule of `regions`: what `tiling` computes it by, part by part.

The network itself says what its steps are: torch.fx goes through its forward and notes every layer, sum and
concatenation. So the list cannot part from the code, and every generator here is taken as it is.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.image_translation.networks.modes import Dropout
from pipelines.image_translation.networks.resnet import Down, Up
from pipelines.image_translation.regions import Beside, Drop, Norm, Pad, Pointwise, Rule, Shape, Spread, Window

__all__ = ["Program"]


class Program:
    """A network as steps, each with a rule and the places of the steps it takes from; step 0 is the picture."""

    def __init__(self, network: nn.Module, channels: int) -> None:
        """network: [B, channels, H, W] -> [B, C, H, W], in eval mode and in the state that it is to run in
        (`as_published`)."""
        self.rules: list[Rule] = [Pointwise(lambda x: x)]
        self.parents: list[tuple[int, ...]] = [()]
        self.picture_channels = channels
        tracer = _Tracer()
        graph = tracer.trace(network)
        places: dict[torch.fx.Node, int] = {}
        for node in graph.nodes:
            if node.op == "placeholder":
                places[node] = 0
            elif node.op == "output":
                self.result = places[node.args[0]]
            else:
                place = [places[one] for one in node.all_input_nodes]
                for rule in _rules(node, tracer.root):
                    self.rules.append(rule)
                    self.parents.append(tuple(place))
                    place = [len(self.rules) - 1]
                places[node] = place[0]
        self.readers = [[i for i, of in enumerate(self.parents) if n in of] for n in range(len(self.rules))]

    def shapes(self, height: int, width: int) -> list[Shape]:
        """Of every step's output, for a picture of this size."""
        shapes = [Shape(self.picture_channels, height, width)]
        for rule, parents in zip(self.rules[1:], self.parents[1:], strict=True):
            of = [shapes[parent] for parent in parents]
            size = rule.size(of[0].height), rule.size(of[0].width)
            shapes.append(Shape(rule.channels([one.channels for one in of]), *size))
        return shapes


class _Tracer(torch.fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Down | Up) or not list(m.children())


def _rules(node: torch.fx.Node, root: nn.Module) -> list[Rule]:
    """One step of the traced network; a few are two. Raises TypeError for one that has no rule."""
    if node.op == "call_module":
        return _of_layer(root.get_submodule(str(node.target)))
    if node.target is operator.add:
        return [Pointwise(operator.add)]
    if node.target is torch.cat:
        return [Beside()]
    if node.op == "call_method" and node.target == "clamp":
        low, high = node.args[1:]
        return [Pointwise(lambda x: x.clamp(low, high))]
    raise TypeError(f"no rule for {node.op} {node.target}")


def _of_layer(layer: nn.Module) -> list[Rule]:
    if isinstance(layer, nn.Conv2d):
        assert isinstance(layer.padding, tuple)
        sizes = layer.stride[0], layer.padding[0], layer.dilation[0]
        return [Window(layer.weight, layer.bias, *sizes, layer.groups)]
    if isinstance(layer, nn.ConvTranspose2d):
        assert isinstance(layer.padding, tuple)
        sizes = layer.stride[0], layer.padding[0], layer.output_padding[0]
        return [Spread(layer.weight, layer.bias, *sizes, layer.groups)]
    if isinstance(layer, nn.ReflectionPad2d):
        return [Pad(layer.padding[0], "reflect")]
    if isinstance(layer, Down):
        return [Pad(1, "reflect"), Window(layer.filt, None, 2, 0, groups=layer.filt.shape[0])]
    if isinstance(layer, Up):  # what it cuts off its sides is one row more of padding
        return [Pad(1, "replicate"), Spread(layer.filt, None, 2, 3, groups=layer.filt.shape[0])]
    if isinstance(layer, nn.BatchNorm2d | nn.InstanceNorm2d):
        return [Norm(layer)]
    if isinstance(layer, Dropout):
        return [Drop(layer)]
    return [Pointwise(_PLAIN[type(layer)](layer))]


_PLAIN: dict[type[nn.Module], Callable[[Any], Callable[[Tensor], Tensor]]] = {
    nn.ReLU: lambda _: F.relu,
    nn.LeakyReLU: lambda layer: lambda x: F.leaky_relu(x, layer.negative_slope),
    nn.Tanh: lambda _: torch.tanh,
    nn.Identity: lambda _: lambda x: x,
    nn.Dropout: lambda _: lambda x: x,
}
