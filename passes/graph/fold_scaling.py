"""Multiply codes by a positive number by giving them another scale: no arithmetic at all.

Before:  d = dequantize(q, s, z);  y = mul(d, c)
After:   y = dequantize(q, s * c, z)

Source: FORMATS A.7, "relabelling".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import fx

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import DEQUANTIZE, aten
from qcompile.passes.base import Pass

_SCALINGS = (aten.mul.Tensor, aten.div.Tensor)


@dataclass(frozen=True)
class FoldScaling(Pass):
    """Rewrite products and quotients of a dequantized value and a positive number."""

    name = "fold-scaling"

    def run(self, graph: Graph) -> int:
        folded = 0
        for node in graph.calls(*_SCALINGS):
            if _is_foldable(node):  # asked late: the product before it may have been folded
                self._fold(graph, node)
                folded += 1
        if folded:
            graph.erase_unused()
        return folded

    def _fold(self, graph: Graph, node: fx.Node) -> None:
        source: Any = node.args[0]
        codes, scale, *rest = source.args
        with graph.before(node):
            new = graph.add_call(DEQUANTIZE, codes, scale * factor(node), *rest)
        graph.replace(node, new)


def is_scaling(node: fx.Node) -> bool:
    """Return whether a node multiplies by, or divides by, a positive number."""
    number: Any = node.args[1] if node.target in _SCALINGS else None
    return isinstance(number, int | float) and 0 < number < math.inf and not node.kwargs


def factor(node: fx.Node) -> float:
    """Return what a scaling multiplies by."""
    number: Any = node.args[1]
    return float(number if node.target == aten.mul.Tensor else 1.0 / number)


def _is_foldable(node: fx.Node) -> bool:
    source = node.args[0]
    if not is_scaling(node) or not isinstance(source, fx.Node):
        return False
    return source.target == DEQUANTIZE and not source.kwargs
