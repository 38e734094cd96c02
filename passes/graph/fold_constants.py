"""Compute at build time what depends on constants alone.

Before:  w = get_attr weight;  t = permute(w, [1, 0]);  y = matmul(x, t)
After:   t = get_attr weight_permute;  y = matmul(x, t)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import OBSERVE, QUANTIZE, WEIGHT_DECODERS
from qcompile.passes.base import Pass

_KEEP = (*WEIGHT_DECODERS, QUANTIZE, OBSERVE)


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Replace calls of constants by a constant.

    Args:
        max_growth: A result larger than its inputs by more than this many bytes stays a call: an
            expanded mask of ones does not belong in a file.
    """

    name = "fold-constants"
    max_growth: int = 1 << 16

    def run(self, graph: Graph) -> int:
        rewrites = 0
        for node in graph.nodes:
            if node.op == "call_function" and node.target not in _KEEP:
                rewrites += self._fold(graph, node)
        if rewrites:
            graph.erase_unused()
        return rewrites

    def _fold(self, graph: Graph, node: fx.Node) -> int:
        sources = node.all_input_nodes
        if node.is_impure() or any(n.op != "get_attr" for n in sources):
            return 0
        if not isinstance(node.meta.get("val"), Tensor):
            return 0
        args, kwargs = fx.map_arg((node.args, node.kwargs), graph.constant)
        assert callable(node.target)
        with torch.no_grad():
            value = node.target(*args, **kwargs)
        size = sum(t.nbytes for t in map(graph.constant, sources) if t is not None)
        if value.nbytes > size + self.max_growth:
            return 0
        base = str(sources[0].target) if sources else "constant"
        with graph.before(node):
            constant = graph.add_constant(f"{base}_{node.name}", value.contiguous())
        graph.replace(node, constant)
        return 1
