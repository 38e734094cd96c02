"""Which values of a graph an integer engine stores: an activation function is part of its layer."""

from __future__ import annotations

from torch import fx

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import aten

ACTIVATIONS = (aten.relu.default, aten.clamp.default, aten.clamp.Tensor)


def fused_activation(node: fx.Node) -> fx.Node | None:
    """Return the ReLU or clamp that is all that reads ``node``, which then is never stored."""
    users = list(node.users)
    if len(users) == 1 and users[0].target in ACTIVATIONS and users[0].args[0] is node:
        return users[0]
    return None


def stored_values(graph: Graph) -> list[fx.Node]:
    """Return the calls whose results are stored."""
    return [n for n in graph.nodes if n.op == "call_function" and fused_activation(n) is None]
