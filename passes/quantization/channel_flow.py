"""Which inputs of linear layers are a channel of an earlier value times something else.

A factor on such a channel can be taken out again in the columns of the layers that read it. Followed are
ops that pass each channel on by itself and in proportion: views and transposes, products with other values,
attention from values to output (the heads that share them included), ReLU for factors above 0.

It is followed by example: the ops that only move elements run on numbers of channels instead of values, in
the shapes of the graph's example inputs. A channel that reaches anything else is frozen: no factor is
possible there.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import aten

MOVES = (
    *(aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints),
    *(aten.transpose.int, aten.permute.default, aten.unsqueeze.default, aten.squeeze.dim),
    *(aten.expand.default, aten.slice.Tensor, aten.select.int, aten.split.Tensor),
    *(aten.split_with_sizes.default, aten.chunk.default, operator.getitem),
)
KEEPS = (
    *(aten.clone.default, aten.contiguous.default, aten.alias.default, aten.dropout.default),
    *(aten.type_as.default, aten.to.dtype, aten._to_copy.default, aten.relu.default),
    aten.neg.default,
)
PRODUCTS = (aten.mul.Tensor, aten.mul.Scalar)
QUOTIENTS = (aten.div.Tensor, aten.div.Scalar)
MATMULS = (aten.matmul.default, aten.bmm.default)
ATTENTION = aten.scaled_dot_product_attention.default
CHECKS = (aten._assert_tensor_metadata.default, aten.sym_size.int)
LAYERS = {aten.linear.default: (0, 1, 1), aten.addmm.default: (1, 2, 0)}
"""Where a layer's arguments have its input and its weight, and which axis of the weight is of inputs."""


@dataclass(frozen=True)
class Reader:
    """A linear layer that reads channels.

    Args:
        node: The layer.
        weight: Name of its weight.
        axis: Of the weight, which its inputs lie along.
        channels: The channel that each input is made of, int64 ``[in]``.
    """

    node: fx.Node
    weight: str
    axis: int
    channels: Tensor

    @property
    def source(self) -> fx.Node:
        """What it reads."""
        source = self.node.args[LAYERS[self.node.target][0]]  # type: ignore[index]
        assert isinstance(source, fx.Node)
        return source


@dataclass
class Flow:
    """Where the channels of a value go.

    Args:
        free: Channels that reach nothing but layers, bool ``[channels]``.
        readers: Those layers.
    """

    free: Tensor
    readers: list[Reader] = field(default_factory=list)


def follow(graph: Graph, start: fx.Node) -> Flow:
    """Return where the channels of a value, its last axis, go."""
    shape = sizes(start)
    follower = _Follower(graph, Flow(torch.ones(shape[-1], dtype=torch.bool)))
    follower.ids[start] = torch.arange(shape[-1]).expand(shape)
    for node in graph.nodes:
        if any(source in follower.ids for source in node.all_input_nodes):
            follower.visit(node)
    return follower.flow


@dataclass
class _Follower:
    graph: Graph
    flow: Flow
    ids: dict[fx.Node, Any] = field(default_factory=dict)

    def visit(self, node: fx.Node) -> None:
        if node.target in CHECKS:
            return
        inputs = [n for n in node.all_input_nodes if n in self.ids]
        carriers = [n for n in inputs if _carries(node, n)]
        passed = len(carriers) == 1 and self._pass(node, carriers[0])
        self._freeze(n for n in inputs if not passed or n not in carriers)

    def _pass(self, node: fx.Node, source: fx.Node) -> bool:
        """Return whether an op keeps the channels of one of its inputs apart; note where they are."""
        if node.target in LAYERS:
            return self._layer(node, source)
        found = self._passed(node, source)
        if found is not None:
            self.ids[node] = found
        return found is not None

    def _passed(self, node: fx.Node, source: fx.Node) -> Any:
        """Return the channels in what an op gives; ``None`` where they are not kept apart."""
        ids = self.ids[source]
        if node.target in MOVES:
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: self._number(n))
            moved: Any = node.target
            return moved(*args, **kwargs)
        if node.target in (*PRODUCTS, *QUOTIENTS):
            return ids.expand(sizes(node))
        if node.target in (*MATMULS, ATTENTION):
            return _mixed(ids, node)
        same = sizes(source) == sizes(node) and node.meta["val"].is_floating_point()
        return ids if same else None

    def _number(self, node: fx.Node) -> Any:
        if node not in self.ids:
            return _number(node.meta["val"])
        ids = self.ids[node]
        return ids.contiguous() if isinstance(ids, Tensor) else ids  # every view is possible

    def _layer(self, node: fx.Node, source: fx.Node) -> bool:
        _, weight_at, axis = LAYERS[node.target]  # type: ignore[index]
        weight = node.args[weight_at]
        if not own_constant(self.graph, weight):
            return False
        channels = _last_axis(self.ids[source])
        if channels is not None:
            assert isinstance(weight, fx.Node)
            self.flow.readers.append(Reader(node, str(weight.target), axis, channels))
        return channels is not None

    def _freeze(self, sources: Any) -> None:
        for source in sources:
            ids = self.ids[source]
            for part in ids if isinstance(ids, list | tuple) else [ids]:
                self.flow.free[part.unique()] = False


def sizes(node: fx.Node) -> list[int]:
    """Return the shape that a value has for the graph's example inputs."""
    return [_number(size) for size in node.meta["val"].shape]


def own_constant(graph: Graph, node: Any) -> bool:
    """Return whether a node is a constant that nothing else reads."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return False
    same = graph.module.graph.find_nodes(op="get_attr")
    users = [u for n in same if n.target == node.target for u in n.users if u.target not in CHECKS]
    return len(users) == 1


def _carries(node: fx.Node, source: fx.Node) -> bool:
    """Return whether an op passes on what an input holds, in proportion to this input."""
    places = [i for i, argument in enumerate(node.args) if argument is source]
    return len(places) == 1 and places[0] in _carriers(node.target)


def _carriers(target: Any) -> Sequence[int]:
    """Return the arguments to which what an op gives is proportional."""
    if target in LAYERS:
        return LAYERS[target][:1]
    if target in (*MOVES, *KEEPS, *QUOTIENTS):
        return (0,)
    if target in PRODUCTS:
        return (0, 1)
    if target in MATMULS:
        return (1,)
    return (2,) if target == ATTENTION else ()


def _mixed(ids: Tensor, node: fx.Node) -> Tensor | None:
    """Return the channels in sums over positions, the last axis but one; heads may share values."""
    shape = sizes(node)
    if node.kwargs.get("enable_gqa"):
        ids = ids.repeat_interleave(shape[-3] // ids.shape[-3], -3)
    one = ids[..., :1, :]
    return one.expand(shape) if ids.dim() == len(shape) and bool((ids == one).all()) else None


def _number(value: Any) -> Any:
    return value.node.hint if isinstance(value, torch.SymInt) else value


def _last_axis(ids: Tensor) -> Tensor | None:
    """Return the channel of each entry of the last axis; ``None`` if positions differ."""
    rows = ids.reshape(-1, ids.shape[-1])
    return rows[0] if bool((rows == rows[0]).all()) else None
