"""Multiply codes by a positive number by giving them another scale: no arithmetic at all.

Before:  d = dequantize(q, s, z);  y = mul(d, c)
After:   y = dequantize(q, s * c, z)

Source: FORMATS A.7, "relabelling".
"""

from __future__ import annotations

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
        found = [n for n in graph.calls(*_SCALINGS) if _is_foldable(n)]
        for node in found:
            source = node.args[0]
            assert isinstance(source, fx.Node)
            codes, scale, *rest = source.args
            assert isinstance(scale, float)
            with graph.before(node):
                new = graph.add_call(DEQUANTIZE, codes, scale * factor(node), *rest)
            graph.replace(node, new)
        if found:
            graph.erase_unused()
        return len(found)


def is_scaling(node: fx.Node) -> bool:
    """Return whether a node multiplies by, or divides by, a positive number."""
    number: Any = node.args[1] if node.target in _SCALINGS else None
    return isinstance(number, int | float) and number > 0 and not node.kwargs


def factor(node: fx.Node) -> float:
    """Return what a scaling multiplies by."""
    number = float(node.args[1])  # type: ignore[arg-type]
    return number if node.target == aten.mul.Tensor else 1.0 / number


def _is_foldable(node: fx.Node) -> bool:
    source = node.args[0]
    return is_scaling(node) and isinstance(source, fx.Node) and source.target == DEQUANTIZE
