"""Fold an inference-time batch norm into the convolution or linear layer before it.

Before:  c = conv2d(x, w);  y = batch_norm(c, gamma, beta, mean, var, eps)
After:   y = conv2d(x, w * k, beta - mean * k)      with k = gamma / sqrt(var + eps), an output channel
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import aten
from qcompile.passes.base import Pass

_NORM = aten._native_batch_norm_legit_no_training.default
_LAYERS: dict[Any, int] = {
    aten.conv1d.default: 0,
    aten.conv2d.default: 0,
    aten.conv3d.default: 0,
    aten.linear.default: 0,
    aten.conv_transpose2d.input: 1,
}
"""Layer -> the axis of its weight that counts output channels."""


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold where the norm alone reads the layer, both count the same axis, and all is constant.

    A grouped transposed convolution stays. Computed in float64.
    """

    name = "fold-batch-norm"

    def run(self, graph: Graph) -> int:
        return sum(self._fold(graph, node) for node in graph.calls(_NORM))

    def _fold(self, graph: Graph, norm: fx.Node) -> int:
        layer = norm.args[0]
        if not isinstance(layer, fx.Node) or not _is_foldable(graph, layer, norm):
            return 0
        results = list(norm.users)
        weight, axis = graph.constant(layer.args[1]), _LAYERS[layer.target]
        assert weight is not None
        factor, shift = _affine(graph, norm, weight.shape[axis])
        shape = [-1 if d == axis else 1 for d in range(weight.dim())]
        scaled = (weight.double() * factor.reshape(shape)).to(weight.dtype)
        bias = graph.constant(layer.args[2]) if len(layer.args) > 2 else None
        total = shift if bias is None else bias.double() * factor + shift
        self._rewrite(graph, layer, scaled, total.to(weight.dtype))
        for result in results:
            graph.replace(result, layer)
        graph.module.graph.erase_node(norm)
        graph.erase_unused()
        return 1

    def _rewrite(self, graph: Graph, layer: fx.Node, weight: Tensor, bias: Tensor) -> None:
        weight_node = layer.args[1]
        assert isinstance(weight_node, fx.Node)
        with graph.before(layer):
            own_weight = weight_node
            if len(weight_node.users) > 1:
                own_weight = graph.add_constant(str(weight_node.target), weight)
            else:
                graph.set_constant(weight_node, weight)
            name = str(weight_node.target).removesuffix("weight") + "bias"
            own_bias = graph.add_constant(name, bias)
        args = list(layer.args) + [None] * max(0, 3 - len(layer.args))
        args[1:3] = [own_weight, own_bias]
        layer.args = tuple(args)


def _is_foldable(graph: Graph, layer: fx.Node, norm: fx.Node) -> bool:
    if layer.target not in _LAYERS or len(layer.users) > 1:
        return False
    if any(u.target is not operator.getitem or u.args[1] != 0 for u in norm.users):
        return False
    constants = [*layer.args[2:3], *norm.args[1:5]]
    if any(n is not None and graph.constant(n) is None for n in constants):
        return False
    weight = graph.constant(layer.args[1])
    if weight is None or layer.meta["val"].dim() != weight.dim():
        return False  # then the layer's channels are not axis 1, which is the norm's
    return _LAYERS[layer.target] == 0 or len(layer.args) <= 6 or bool(layer.args[6] == 1)


def _affine(graph: Graph, norm: fx.Node, channels: int) -> tuple[Tensor, Tensor]:
    """Return the norm as ``x * factor + shift``, float64, ``[channels]`` each."""
    gamma, beta, mean, variance = (graph.constant(a) for a in norm.args[1:5])
    assert mean is not None
    assert variance is not None
    factor = 1.0 / torch.sqrt(variance.double() + float(norm.args[6]))  # type: ignore[arg-type]
    factor = factor if gamma is None else factor * gamma.double()
    shift = -mean.double() * factor
    return factor, shift if beta is None else shift + beta.double()
