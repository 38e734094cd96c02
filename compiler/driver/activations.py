"""Memory that values take on their way through a graph."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, fx

from qcompile.compiler.ir.graph import Graph
from qcompile.passes.graph.fusion import fused_activation
from qcompile.targets.plans import NodePlan


def peak_activation_bytes(graph: Graph, nodes: Sequence[NodePlan], float_bytes: int) -> int:
    """Return the largest sum of values that are alive at once, as stored, at the example's size."""
    runs = {n.name: n.runs for n in nodes}
    live: dict[fx.Node, int] = {}
    peak = 0
    order = {node: i for i, node in enumerate(graph.nodes)}
    done = {node: order[fused_activation(node) or node] for node in order}
    for node, index in order.items():
        value = node.meta.get("val")
        if node.op in ("get_attr", "output") or not isinstance(value, Tensor):
            continue
        if fused_activation(node) is None:
            width = 1 if runs.get(node.name, "").endswith("int8") else float_bytes
            live[node] = width * _elements(graph, value)
        peak = max(peak, sum(live.values()))
        live = {n: b for n, b in live.items() if any(done[u] > index for u in n.users)}
    return peak


def _elements(graph: Graph, value: Tensor) -> int:
    count = 1
    for size in value.shape:
        count *= int(size) if isinstance(size, int) else int(size.node.hint)
    return count
