"""What reads a weight that is stored in rows: linear layers, those of experts among them, and look-ups."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as functional
from torch import Tensor, fx

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import EXPERT_LINEAR, aten

_ARGUMENTS = {
    aten.linear.default: (1, 0, 2),
    aten.embedding.default: (0, 1),
}
"""Where weight, input and bias stand among the arguments."""


@dataclass(frozen=True)
class Reader:
    """A node that multiplies by a weight or looks up its rows.

    Args:
        node: The call.
        weight: What it reads the weight from: a constant, or what decodes one.
        source: Its input.
        bias: If it has one.
        expert: Its number, where a node has a weight for each expert.
    """

    node: fx.Node
    weight: fx.Node
    source: fx.Node
    bias: fx.Node | None
    expert: int | None = None

    @property
    def looks_up(self) -> bool:
        """Whether it takes rows, and does not multiply."""
        return self.node.target == aten.embedding.default

    @property
    def name(self) -> str:
        """The name of its weight; nothing if that is decoded."""
        return str(self.weight.target) if self.weight.op == "get_attr" else ""

    def __call__(self, x: Tensor, rows: Tensor, bias: Tensor | None) -> Tensor:
        """Return its output with another weight, ``[rows, columns]``."""
        return rows[x] if self.looks_up else functional.linear(x, rows, bias)


def reader(node: fx.Node) -> Reader | None:
    """Return a node as a reader of one weight, if it is one."""
    if node.target not in _ARGUMENTS:
        return None
    places = _ARGUMENTS[node.target]
    found = [node.args[i] if i < len(node.args) else None for i in places]
    weight, source, bias = [*found, None][:3]
    if not isinstance(weight, fx.Node) or not isinstance(source, fx.Node):
        return None
    return Reader(node, weight, source, bias if isinstance(bias, fx.Node) else None)


def readers_of(node: fx.Node) -> list[Reader]:
    """Return a node as a reader of each of its weights."""
    if node.target != EXPERT_LINEAR:
        return [layer for layer in [reader(node)] if layer is not None]
    source, _, _, weights = node.args
    return [
        Reader(node, weight, source, None, expert)  # type: ignore[arg-type]
        for expert, weight in enumerate(weights)  # type: ignore[arg-type]
    ]


def readers(graph: Graph, name: str) -> list[Reader]:
    """Return all that read a constant, in order."""
    found = graph.module.graph.find_nodes(op="get_attr", target=name)
    users = sorted({user for node in found for user in node.users})
    return [layer for user in users for layer in readers_of(user) if layer.name == name]
