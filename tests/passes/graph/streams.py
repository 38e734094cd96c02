"""Nets whose channels are scaled, and what cross-layer equalization makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.quant import Granularity, QuantSpec
from qcompile.passes.base import run
from qcompile.passes.calibration.channel_statistics import channel_statistics
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.graph.canonicalize import Canonicalize
from qcompile.passes.graph.cross_layer_equalization import CrossLayerEqualization

PER_CHANNEL = QuantSpec(granularity=Granularity.PER_CHANNEL, axis=0)
ACTIVATION = QuantSpec(signed=False, symmetric=False)
POWERS = torch.tensor([1 / 16, 1 / 2, 4, 16, 1, 1 / 8, 2, 8])
"""Factors by which a stream of eight channels is put out of balance."""


class Applies(nn.Module):
    """Layers, and a function of the input and them."""

    def __init__(self, function: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.function = nn.ModuleList(layers), function

    def forward(self, x: Tensor) -> Any:
        return self.function(x, *self.layers)


def scale_rows(layer: nn.Module, factors: Tensor) -> None:
    """Multiply what a layer writes."""
    weight, bias = layer.weight.data, layer.bias.data  # type: ignore[union-attr]
    weight.mul_(factors.reshape(-1, *[1] * (weight.dim() - 1)))
    bias.mul_(factors)


def scale_columns(layer: nn.Module, factors: Tensor) -> None:
    """Divide what a layer reads."""
    weight = layer.weight.data  # type: ignore[union-attr]
    weight.div_(factors.reshape(1, -1, *[1] * (weight.dim() - 2)))  # type: ignore[operator]


def make_pass(graph: Graph, weight: QuantSpec = PER_CHANNEL) -> CrossLayerEqualization:
    return CrossLayerEqualization(Samples([graph.inputs], 4, "random"), weight, ACTIVATION)


def canonical(module: nn.Module, x: Tensor | None = None) -> Graph:
    graph = trace(module, torch.randn(4, 3, 8, 8) if x is None else x)
    run(graph, [Canonicalize()])
    return graph


def applied(function: Callable[..., Any], *layers: nn.Module) -> Graph:
    """Return the canonical graph of ``Applies``."""
    return canonical(Applies(function, *layers))


def assert_same_function(graph: Graph, before: Graph) -> None:
    """Compare on the calibration inputs and far beyond, where bounds clip everything.

    1e-5 of the largest output: a weight that is multiplied, then divided, is rounded twice.
    """
    for factor in (1.0, -1.0, 30.0):
        inputs = {name: value * factor for name, value in graph.inputs.items()}
        after, expected = graph.run(inputs), before.run(inputs)
        for name, value in expected.items():
            limit = 1e-5 * float(value.abs().max())
            torch.testing.assert_close(after[name], value, rtol=0, atol=limit)


def equalize(graph: Graph, weight: QuantSpec = PER_CHANNEL) -> int:
    """Run the pass, which must keep the function; return its count."""
    before = graph.copy()
    rewrites = run(graph, [make_pass(graph, weight)])[0].rewrites
    assert_same_function(graph, before)
    return rewrites


def imbalance(graph: Graph, node: Any) -> float:
    """Return the largest channel's range over the smallest's."""
    seen = channel_statistics(graph, Samples([graph.inputs], 4, "random"), {node: 1})[node]
    ranges = torch.maximum(seen.high, -seen.low)
    assert float(ranges.min()) > 0, "a dead channel has no range"
    return float(ranges.max() / ranges.min())
