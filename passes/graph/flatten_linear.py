"""Give linear layers a matrix as input: engines have an integer kernel with bias for that case only.

Before:  y = linear(x, w, b)                                    x: [batch, sequence, in]
After:   r = reshape(x, [-1, in]);  g = linear(r, w, b);  y = reshape(g, [batch, sequence, out])

(``torch.onnx`` spells the first as MatMul and Add, whose Add ONNX Runtime keeps float; the second as Gemm.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from qcompile.compiler.ir.graph import Graph, is_dynamic
from qcompile.compiler.ir.ops import aten
from qcompile.passes.base import Pass


@dataclass(frozen=True)
class FlattenLinear(Pass):
    """Rewrite linear layers with a constant weight and an input of rank 3 or more."""

    name = "flatten-linear"

    def run(self, graph: Graph) -> int:
        found = [n for n in graph.calls(aten.linear.default) if _is_batched(n)]
        for node in found:
            self._flatten(graph, node)
        return len(found)

    def _flatten(self, graph: Graph, node: fx.Node) -> None:
        x, weight = node.args[:2]
        assert isinstance(x, fx.Node)
        assert isinstance(weight, fx.Node)
        out, width = (int(s) for s in weight.meta["val"].shape)
        with graph.before(node):
            rows = graph.add_call(aten.reshape.default, x, [-1, width])
            product = graph.add_call(aten.linear.default, rows, *node.args[1:])
            sizes = [_size(graph, x, axis) for axis in range(x.meta["val"].dim() - 1)]
            new = graph.add_call(aten.reshape.default, product, [*sizes, out])
        graph.replace(node, new)


def _is_batched(node: fx.Node) -> bool:
    x, weight = node.args[:2]
    constant = isinstance(weight, fx.Node) and weight.op == "get_attr"
    return constant and isinstance(x, fx.Node) and x.meta["val"].dim() > 2


def _size(graph: Graph, x: fx.Node, axis: int) -> Any:
    size = x.meta["val"].shape[axis]
    return graph.add_call(aten.sym_size.int, x, axis) if is_dynamic(size) else int(size)
