"""Spell a product with a constant matrix as a linear layer (GPT-2's Conv1D holds its weights transposed).

Before:  y = addmm(b, x, w)      w: [in, out]
After:   y = linear(x, w, b)     w: [out, in], by the same name
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import aten
from qcompile.passes.base import Pass


@dataclass(frozen=True)
class UseLinear(Pass):
    """Rewrite ``addmm`` with a vector and a matrix that nothing else reads."""

    name = "use-linear"

    def run(self, graph: Graph) -> int:
        found = [n for n in graph.calls(aten.addmm.default) if _is_layer(graph, n)]
        for node in found:
            bias, x, weight = node.args
            assert isinstance(weight, fx.Node)
            _transpose(graph, str(weight.target))
            with graph.before(node):
                new = graph.add_call(aten.linear.default, x, weight, bias)
            graph.replace(node, new)
        return len(found)


def _is_layer(graph: Graph, node: fx.Node) -> bool:
    bias, _, weight = node.args
    plain = not node.kwargs and all(isinstance(n, fx.Node) for n in (bias, weight))
    if not plain or any(n.op != "get_attr" for n in (bias, weight)):  # type: ignore[union-attr]
        return False
    name = weight.target  # type: ignore[union-attr]
    readers = [n for n in graph.nodes if n.op == "get_attr" and n.target == name]
    is_vector = graph.weights.peek(str(bias.target)).dim() == 1  # type: ignore[union-attr]
    return is_vector and sum(len(reader.users) for reader in readers) == 1


def _transpose(graph: Graph, name: str) -> None:
    if name in graph.weights.stored:
        graph.weights.transpose_stored(name)
    else:
        graph.weights[name] = graph.weights[name].t().contiguous()
    for node in graph.nodes:
        if node.op == "get_attr" and node.target == name:
            node.meta["val"] = node.meta["val"].t()
