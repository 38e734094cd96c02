"""Which channels of a graph must be scaled together: the analysis behind equalization.

Two channels are linked if scaling one by s > 0 asks for scaling the other by s: through ReLU, pooling,
padding, residual adds, concatenation, slices and flattening. Convolutions and linear layers end a link:
a factor on their output channel goes into a row of the weight, one on their input into a column. Links
are kept channel by channel, so concatenation and padding of channels need no special case.

Frozen channels must keep their scale: graph inputs and outputs, and whatever an op that is not
positively homogeneous (softmax, hard-swish, layer norm, ...) reads or writes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.compiler.ir.graph import Graph, is_dynamic
from qcompile.compiler.ir.ops import aten

CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
LAYERS = (*CONVOLUTIONS, aten.linear.default)
CLAMPS = (aten.clamp.default, aten.clamp.Tensor)
_SAME_SHAPE = (aten.relu.default, aten.leaky_relu.default)
_POOLS = (
    aten.max_pool2d.default,
    aten.avg_pool2d.default,
    aten.adaptive_avg_pool2d.default,
    aten.adaptive_max_pool2d.default,
    aten.upsample_nearest2d.vec,
    aten.upsample_bilinear2d.vec,
)
_FLATTENINGS = (aten.flatten.using_ints, aten.view.default, aten.reshape.default)
_SLICE = aten.slice.Tensor
_CUTS = (_SLICE, aten.constant_pad_nd.default)


@dataclass
class ChannelLinks:
    """The result of ``find_links``.

    Args:
        axes: Channel axis of every value that takes part.
        ids: For each such value, the class of each channel, int64 ``[channels]``.
        frozen: For each class, whether its scale is fixed at 1, bool ``[classes]``.
        layers: Layers with constant weights that may be rescaled.
    """

    axes: dict[fx.Node, int]
    ids: dict[fx.Node, Tensor]
    frozen: Tensor
    layers: list[fx.Node]

    def inputs(self, layer: fx.Node) -> Tensor | None:
        """Return the class of each input channel of a layer; ``None`` where they have none."""
        source = layer.args[0]
        if not isinstance(source, fx.Node) or self.axes.get(source) != self.axes[layer]:
            return None
        return self.ids[source]


def find_links(graph: Graph) -> ChannelLinks:
    """Return the classes of linked channels of a graph."""
    finder = _Finder(graph)
    for node in graph.nodes:
        finder.visit(node)
    return finder.result()


@dataclass
class _Finder:
    graph: Graph
    parents: list[int] = field(default_factory=list)
    frozen: set[int] = field(default_factory=set)
    axes: dict[fx.Node, int] = field(default_factory=dict)
    ids: dict[fx.Node, list[int]] = field(default_factory=dict)
    layers: list[fx.Node] = field(default_factory=list)

    def visit(self, node: fx.Node) -> None:
        if node.op != "call_function":
            self._freeze_arguments(node)
        elif node.target in LAYERS and self._is_rescalable(node):
            self._layer(node)
        elif not self._linked(node):
            self._freeze_arguments(node)

    def result(self) -> ChannelLinks:
        roots = [self._root(i) for i in range(len(self.parents))]
        order = {root: index for index, root in enumerate(dict.fromkeys(roots))}
        frozen = torch.zeros(len(order), dtype=torch.bool)
        for element in self.frozen:
            frozen[order[self._root(element)]] = True
        ids = {n: torch.tensor([order[roots[i]] for i in e]) for n, e in self.ids.items()}
        return ChannelLinks(self.axes, ids, frozen, self.layers)

    def _is_rescalable(self, node: fx.Node) -> bool:
        weight, bias = node.args[1], node.args[2] if len(node.args) > 2 else None
        own = [n for n in (weight, bias) if isinstance(n, fx.Node)]
        return all(n.op == "get_attr" and len(n.users) == 1 for n in own)

    def _layer(self, node: fx.Node) -> None:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        rank = source.meta["val"].dim()
        is_conv = node.target in CONVOLUTIONS
        weight = node.args[1]
        assert isinstance(weight, fx.Node)
        batched = not is_conv or rank == weight.meta["val"].dim()
        axis = (1 if batched else 0) if is_conv else rank - 1
        if source in self.axes and self.axes[source] != axis:
            self._freeze(source)
        self.layers.append(node)
        self._add(node, axis)

    def _linked(self, node: fx.Node) -> bool:
        if node.target in (*_SAME_SHAPE, *_POOLS):
            return self._like(node, node.args[0])
        if node.target in CLAMPS:
            return self._clamp(node)
        if node.target == aten.add.Tensor:
            return self._sum(node)
        if node.target == aten.cat.default:
            return self._concatenate(node)
        if node.target in _CUTS:
            return self._cut(node)
        if node.target in _FLATTENINGS:
            return self._flatten(node)
        return False

    def _like(self, node: fx.Node, source: Any) -> bool:
        if source not in self.ids:
            return False
        self.axes[node], self.ids[node] = self.axes[source], self.ids[source]
        return True

    def _clamp(self, node: fx.Node) -> bool:
        """Follow a clamp; a lower bound other than 0, or one that is computed, fixes the scale."""
        if not _same_shape(node, node.args[0]) or not self._like(node, node.args[0]):
            return False
        bounds = [n for n in node.args[1:] if isinstance(n, fx.Node)]
        low = node.args[1] if len(node.args) > 1 else None
        low = self.graph.constant(low) if isinstance(low, fx.Node) else low
        if any(self.graph.constant(n) is None for n in bounds):
            self._freeze_arguments(node)
        elif low is not None and bool(torch.as_tensor(low).any()):
            self._freeze(node)
        return True

    def _sum(self, node: fx.Node) -> bool:
        left, right = node.args[:2]
        if node.kwargs.get("alpha", 1) != 1 or left not in self.ids or right not in self.ids:
            return False
        assert isinstance(left, fx.Node)
        assert isinstance(right, fx.Node)
        same = len(self.ids[left]) == len(self.ids[right])
        if not same or self.axes[left] != self.axes[right] or not _same_shape(left, right):
            return False
        for a, b in zip(self.ids[left], self.ids[right], strict=True):
            self._union(a, b)
        return self._like(node, left)

    def _concatenate(self, node: fx.Node) -> bool:
        parts: Any = node.args[0]
        if any(p not in self.ids for p in parts) or len({self.axes[p] for p in parts}) != 1:
            return False
        axis = self.axes[parts[0]]
        rank = node.meta["val"].dim()
        dim: Any = node.args[1] if len(node.args) > 1 else 0
        if dim % rank == axis:
            self.axes[node], self.ids[node] = axis, [i for p in parts for i in self.ids[p]]
            return True
        for part in parts[1:]:
            for a, b in zip(self.ids[parts[0]], self.ids[part], strict=True):
                self._union(a, b)
        return self._like(node, parts[0])

    def _cut(self, node: fx.Node) -> bool:
        source: Any = node.args[0]
        if source not in self.ids:
            return False
        return self._slice(node, source) if node.target == _SLICE else self._pad(node, source)

    def _slice(self, node: fx.Node, source: fx.Node) -> bool:
        given: list[Any] = list(node.args[1:])
        defaults: list[Any] = [0, None, None, 1]
        dim, start, end, step = given + defaults[len(given) :]
        axis = self.axes[source]
        if dim % node.meta["val"].dim() != axis:
            return self._like(node, source)
        if any(isinstance(bound, fx.Node) for bound in (start, end, step)):
            return False
        self.axes[node], self.ids[node] = axis, self.ids[source][start:end:step]
        return True

    def _pad(self, node: fx.Node, source: fx.Node) -> bool:
        padding: Any = node.args[1]
        axis = self.axes[source]
        from_last = 2 * (node.meta["val"].dim() - 1 - axis)
        before, after = (*padding, *[0] * 16)[from_last : from_last + 2]
        is_zero = len(node.args) < 3 or node.args[2] == 0
        if not is_zero or isinstance(before, fx.Node) or isinstance(after, fx.Node):
            return False
        if min(before, after) < 0:
            return False
        self.axes[node] = axis
        self.ids[node] = [*self._new(before), *self.ids[source], *self._new(after)]
        return True

    def _flatten(self, node: fx.Node) -> bool:
        """Follow ``[N, C, positions...] -> [N, C * positions]``, spelled as flatten or as a view."""
        source: Any = node.args[0]
        if source not in self.ids or self.axes[source] != 1:
            return False
        before, after = source.meta["val"].shape, node.meta["val"].shape
        if len(after) != 2 or str(before[0]) != str(after[0]):
            return False
        if any(is_dynamic(s) for s in (*before[1:], after[1])):
            return False
        repeat = int(torch.Size(int(s) for s in before[2:]).numel())
        self.axes[node] = 1
        self.ids[node] = [i for i in self.ids[source] for _ in range(repeat)]
        return True

    def _new(self, count: int) -> list[int]:
        start = len(self.parents)
        self.parents.extend(range(start, start + count))
        return list(range(start, start + count))

    def _add(self, node: fx.Node, axis: int) -> None:
        self.axes[node] = axis
        self.ids[node] = self._new(self.graph.channels(node, axis))

    def _freeze(self, node: fx.Node) -> None:
        self.frozen.update(self.ids[node])

    def _freeze_arguments(self, node: fx.Node) -> None:
        for source in node.all_input_nodes:
            if source in self.ids:
                self._freeze(source)

    def _root(self, element: int) -> int:
        while self.parents[element] != element:
            self.parents[element] = self.parents[self.parents[element]]
            element = self.parents[element]
        return element

    def _union(self, a: int, b: int) -> None:
        low, high = sorted((self._root(a), self._root(b)))
        self.parents[high] = low


def layer_groups(layer: fx.Node) -> int:
    """Return into how many groups a layer divides its channels."""
    groups: Any = layer.args[6] if len(layer.args) > 6 else 1
    return int(groups)


def _same_shape(left: fx.Node, right: Any) -> bool:
    a, b = left.meta["val"], right.meta["val"]
    return isinstance(a, Tensor) and [str(s) for s in a.shape] == [str(s) for s in b.shape]
