"""Groups of linear layers whose inputs can be rescaled: what makes the inputs takes up the factors.

Factors s are kept out of the function: what makes a channel is divided by s, and the columns of all layers
that read it are multiplied. What can be divided:
- a norm's weight, ``mul(weight, x)``; gemma's, ``mul(x, weight + 1)``, where w becomes (1 + w) / s - 1;
- weight and bias of ``layer_norm``, the weight of ``rms_norm``;
- rows and bias of a linear layer: ``up`` before ``down``, ``v`` before ``o``.

Source: FORMATS B.2 (AWQ, https://arxiv.org/abs/2306.00978) and B.3 (SmoothQuant).
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import aten
from qcompile.passes.quantization.channel_flow import CHECKS, Reader, follow, own_constant, sizes

LINEAR, ADDMM = aten.linear.default, aten.addmm.default
LAYER_NORM = aten.layer_norm.default
NORMS = (LAYER_NORM, aten.rms_norm.default)
MUL, ADD = aten.mul.Tensor, aten.add.Tensor


@dataclass(frozen=True)
class Part:
    """A constant that makes channels in proportion.

    Args:
        name: Of the constant.
        axis: That the channels lie along.
        shift: Number that is added to it before it is used.
    """

    name: str
    axis: int = 0
    shift: float = 0.0


@dataclass(frozen=True)
class Group:
    """Layers that read channels which can be rescaled.

    Args:
        node: What makes the channels, its last axis.
        parts: The constants that they are proportional to.
        readers: All layers that read them.
        free: Channels that nothing else reads, bool ``[channels]``.
    """

    node: fx.Node
    parts: tuple[Part, ...]
    readers: tuple[Reader, ...]
    free: Tensor

    @property
    def name(self) -> str:
        """Of the constant that takes up the factors."""
        return self.parts[0].name

    def apply(self, graph: Graph, factors: Tensor) -> None:
        """Divide the channels by factors, and multiply the columns of their readers.

        Args:
            graph: Changed: its constants alone.
            factors: float64 ``[channels]``, positive, 1 where not free.
        """
        for part in self.parts:
            graph.weights.scale(part.name, 1 / factors, part.axis, part.shift)
        for reader in self.readers:
            graph.weights.scale(reader.weight, factors[reader.channels], reader.axis)


def find_groups(graph: Graph, weights: Container[str]) -> list[Group]:
    """Return groups in order, a layer in one at most.

    Args:
        graph: The float graph.
        weights: Names of those that will be rounded: groups without any are left out.
    """
    found: list[Group] = []
    taken: set[fx.Node] = set()
    for node in graph.nodes:
        parts = _parts(graph, node)
        if not parts:
            continue
        flow = follow(graph, node)
        readers = [r for r in flow.readers if bool(flow.free[r.channels].any())]
        is_new = not any(r.node in taken for r in readers)
        if is_new and any(r.weight in weights for r in readers):
            read = torch.zeros_like(flow.free)
            for reader in readers:
                read[reader.channels] = True
            taken.update(reader.node for reader in readers)
            found.append(Group(node, parts, tuple(readers), flow.free & read))
    return found


def _parts(graph: Graph, node: fx.Node) -> tuple[Part, ...]:
    """Return the constants that a value's channels are proportional to; none if there are no such."""
    if node.target == MUL:
        return _norm(graph, node)
    if node.kwargs:
        return ()
    if node.target in NORMS:
        return _normalization(graph, node)
    if node.target == LINEAR:
        return _all_own(graph, [(a, 0) for a in node.args[1:3]])
    if node.target == ADDMM:
        bias, _, weight = node.args
        return _all_own(graph, [(weight, 1), (bias, 0)])
    return ()


def _normalization(graph: Graph, node: fx.Node) -> tuple[Part, ...]:
    """Return weight and bias of a norm over the last axis."""
    shape: Any = node.args[1]
    weight, bias = [*node.args[2:], None, None][:2]
    if weight is None or len(shape) != 1:
        return ()
    return _all_own(graph, [(weight, 0), (bias if node.target == LAYER_NORM else None, 0)])


def _all_own(graph: Graph, constants: list[tuple[Any, int]]) -> tuple[Part, ...]:
    given = [(node, axis) for node, axis in constants if node is not None]
    if not all(own_constant(graph, node) for node, _ in given):
        return ()
    return tuple(Part(str(node.target), axis) for node, axis in given)


def _norm(graph: Graph, node: fx.Node) -> tuple[Part, ...]:
    """Return the vector that a product's last axis is multiplied by."""
    for argument in node.args[:2]:
        constant, shift = _shifted(argument)
        if constant is None or not own_constant(graph, constant):
            continue
        if list(constant.meta["val"].shape) == sizes(node)[-1:]:
            return (Part(str(constant.target), 0, shift),)
    return ()


def _shifted(argument: Any) -> tuple[fx.Node | None, float]:
    """Return a constant and the number that is added to it."""
    if not isinstance(argument, fx.Node):
        return None, 0.0
    if argument.target != ADD:
        return argument, 0.0
    users = [user for user in argument.users if user.target not in CHECKS]
    pair = sorted(argument.args, key=lambda a: isinstance(a, int | float))
    if len(users) != 1 or argument.kwargs or not isinstance(pair[1], int | float):
        return None, 0.0
    return (pair[0], float(pair[1])) if isinstance(pair[0], fx.Node) else (None, 0.0)
