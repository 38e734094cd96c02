"""Erase calls whose results nobody uses, and calls made twice with the same arguments.

Before:  a = relu(x);  b = relu(x);  c = exp(x);  y = add(a, b)
After:   a = relu(x);  y = add(a, a)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from qcompile.compiler.ir.graph import Graph
from qcompile.passes.base import Pass


@dataclass(frozen=True)
class EliminateDeadCode(Pass):
    """Keep one of equal calls, then only what reaches an output."""

    name = "eliminate-dead-code"

    def run(self, graph: Graph) -> int:
        return self._merge_equal(graph) + graph.erase_unused()

    def _merge_equal(self, graph: Graph) -> int:
        first: dict[Any, fx.Node] = {}
        merged = 0
        for node in graph.nodes:
            if node.op not in ("call_function", "get_attr") or node.is_impure():
                continue
            key = (node.op, node.target, repr(node.args), repr(node.kwargs))
            if key in first:
                graph.replace(node, first[key])
                merged += 1
            else:
                first[key] = node
        return merged
