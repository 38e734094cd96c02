"""From float layers to ops that ``kernels/float_*.py`` compute, with channels last from one to the next.

Before:  y = relu(conv2d(x, dequantize(w_codes, w_scale), b));  z = add(y, t)
After:   p = permute(x);  q = float_conv2d(p, w_codes, w_scale, b, ..., 0, inf);  z = permute(add(q, ...))

A function of values at one place is computed on permuted inputs, so that permutes meet and vanish.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import aten
from qcompile.passes.graph.fusion import fused_activation
from qcompile.targets.tvm import float_ops as ops
from qcompile.targets.tvm.capabilities import conv_settings, has_float_kernel
from qcompile.targets.tvm.codes import (
    TO_LAST,
    Stored,
    both,
    channels_first,
    is_fixed,
    is_shown_first,
    shown,
    stored,
)
from qcompile.targets.tvm.float_weights import FloatWeight, float_weight


def lower_floats(graph: Graph) -> dict[str, Stored]:
    """Rewrite in place; return what computes a layer's values, by their name in the graph."""
    lowering = _Lowering(graph)
    for node in graph.nodes:
        if node not in lowering.gone:
            lowering.visit(node)
    graph.erase_unused()
    kept = {node.name for node in graph.nodes}
    return {name: found for name, found in lowering.layers.items() if found.node in kept}


@dataclass
class _Lowering:
    graph: Graph
    layers: dict[str, Stored] = field(default_factory=dict)
    gone: set[fx.Node] = field(default_factory=set)
    permuted: dict[fx.Node, fx.Node] = field(default_factory=dict)

    def visit(self, node: fx.Node) -> None:
        if not _is_float(node):
            return
        handler = _HANDLERS.get(node.target)
        with self.graph.before(node):
            new = handler(self, node) if handler is not None else self.pointwise(node)
        if new is None:
            return
        last = node
        if _computed(new).target in _WITH_LIMITS:
            last = self.activation(node) or node
            self.layers[last.name] = stored(new)
        if last is not node:
            self.gone.add(last)
            self.graph.replace(last, new)
            self.graph.module.graph.erase_node(node)
        else:
            self.graph.replace(node, new)

    def activation(self, node: fx.Node) -> fx.Node | None:
        """Return the function that is all that reads a layer, if its kernel can apply it."""
        found = fused_activation(node)
        return found if found is not None and _limits(found) is not None else None

    def limits(self, node: fx.Node) -> tuple[float, float]:
        """Return the least and the greatest result of a layer."""
        found = self.activation(node)
        return (-math.inf, math.inf) if found is None else _limits(found) or (-math.inf, math.inf)

    def first(self, node: fx.Node) -> fx.Node:
        """Return ``[batch, height, width, channels]`` with channels first again."""
        return channels_first(self.graph, node)

    def last(self, node: fx.Node) -> fx.Node:
        """Return ``[batch, channels, height, width]`` with channels last; once for all that read it."""
        if (last := shown(node)) is not None:
            return last
        if node not in self.permuted:
            known = self.graph.constant(node)
            if known is not None:
                moved = known.permute(TO_LAST).contiguous()
                self.permuted[node] = self.graph.add_constant(f"{node.name}_last", moved)
            else:
                self.permuted[node] = self.graph.add_call(aten.permute.default, node, TO_LAST)
        return self.permuted[node]

    def constants(self, node: fx.Node, weight: FloatWeight) -> tuple[Any, Any, Any]:
        """Return a layer's arguments ``weight, scale, bias``."""
        scale = None
        if weight.scale is not None:
            scale = self.graph.add_constant(f"{node.name}_scale", weight.scale)
        bias = node.args[2] if len(node.args) > 2 else None
        return weight.node, scale, bias

    def conv(self, node: fx.Node) -> fx.Node | None:
        x, weight = node.args[0], float_weight(self.graph, node.args[1])
        if weight is None or not has_float_kernel(node):
            return None
        assert isinstance(x, fx.Node)
        stride, padding, _, groups = conv_settings(node)
        new = self.graph.add_call(
            ops.CONV, self.last(x), *self.constants(node, weight), both(stride), both(padding),
            groups, weight.bits, *self.limits(node),
        )  # fmt: skip
        return self.first(new)

    def linear(self, node: fx.Node) -> fx.Node | None:
        x, weight = node.args[0], float_weight(self.graph, node.args[1])
        if weight is None or not has_float_kernel(node):
            return None
        constants = self.constants(node, weight)
        return self.graph.add_call(ops.LINEAR, x, *constants, weight.bits, *self.limits(node))

    def add(self, node: fx.Node) -> fx.Node | None:
        """Return a sum of images of one size."""
        images = [n for n in node.args if isinstance(n, fx.Node)]
        if len(images) != 2 or node.kwargs or not _are_images(images):
            return self.pointwise(node)
        one, other = (n.meta["val"] for n in images)
        if one.shape != other.shape or one.dtype != other.dtype or not is_fixed(one):
            return self.pointwise(node)
        return self.first(self.graph.add_call(ops.ADD, *map(self.last, images), *self.limits(node)))

    def average(self, node: fx.Node) -> fx.Node | None:
        x = node.args[0]
        assert isinstance(x, fx.Node)
        if not is_shown_first(x) or both(node.args[1]) != [1, 1] or not is_fixed(x.meta["val"]):
            return None
        new = self.graph.add_call(ops.GLOBAL_AVERAGE, self.last(x))
        channels = self.graph.channels(x, 1)
        return self.graph.add_call(aten.reshape.default, new, [-1, channels, 1, 1])

    def max_pool(self, node: fx.Node) -> fx.Node | None:
        x = node.args[0]
        assert isinstance(x, fx.Node)
        given: list[Any] = list(node.args[1:])
        *sizes, ceil = given + [[], [], 0, 1, False][len(given) :]
        kernel, stride, padding, dilation = (both(g) for g in sizes)
        if not is_shown_first(x) or not is_fixed(x.meta["val"]) or dilation != [1, 1] or ceil:
            return None
        return self.first(
            self.graph.add_call(ops.MAX_POOL, self.last(x), kernel, stride or kernel, padding)
        )

    def cat(self, node: fx.Node) -> fx.Node | None:
        parts: list[fx.Node] = list(node.args[0])  # type: ignore[arg-type]
        axis = int(str(node.args[1])) if len(node.args) > 1 else 0
        if not _are_images(parts):
            return None
        new = self.graph.add_call(
            aten.cat.default, [self.last(p) for p in parts], TO_LAST.index(axis % 4)
        )
        return self.first(new)

    def pointwise(self, node: fx.Node) -> fx.Node | None:
        """Return a function of values at one place, of permuted values."""
        target = node.target
        if not isinstance(target, torch._ops.OpOverload):
            return None
        if torch.Tag.pointwise not in target.tags and target not in _UNTAGGED:
            return None
        if not _are_images([n for n in node.all_input_nodes if _rank(n) != 0]):
            return None
        args, kwargs = fx.map_arg(
            (node.args, node.kwargs), lambda n: self.last(n) if _rank(n) == 4 else n
        )
        new = self.graph.module.graph.create_node("call_function", target, args, kwargs)
        self.graph.infer(new)
        return self.first(new)


def _computed(node: fx.Node) -> fx.Node:
    """Return what computes a value, behind a permute."""
    source = node.args[0]
    return source if is_shown_first(node) and isinstance(source, fx.Node) else node


_HANDLERS: Mapping[Any, Callable[[_Lowering, fx.Node], fx.Node | None]] = {
    aten.conv2d.default: _Lowering.conv,
    aten.linear.default: _Lowering.linear,
    aten.add.Tensor: _Lowering.add,
    aten.adaptive_avg_pool2d.default: _Lowering.average,
    aten.max_pool2d.default: _Lowering.max_pool,
    aten.cat.default: _Lowering.cat,
}
_UNTAGGED = (aten.hardswish.default,)
"""Functions of values at one place that PyTorch does not tag as such."""
_WITH_LIMITS = (ops.CONV, ops.LINEAR, ops.ADD)


def _limits(node: fx.Node) -> tuple[float, float] | None:
    """Return what a ReLU or a clamp by numbers limits values to."""
    if node.target == aten.relu.default:
        return 0.0, math.inf
    if node.target != aten.clamp.default:
        return None
    given: list[Any] = [*node.args[1:], None, None][:2]
    low, high = (given[0], given[1])
    return (-math.inf if low is None else float(low), math.inf if high is None else float(high))


def _rank(node: fx.Node) -> int | None:
    value = node.meta.get("val")
    return value.dim() if isinstance(value, Tensor) else None


def _are_images(nodes: list[fx.Node]) -> bool:
    """Return whether all are of four axes, and one at least has its channels last already."""
    return all(_rank(n) == 4 for n in nodes) and any(map(is_shown_first, nodes))


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    if node.op != "call_function" or not isinstance(value, Tensor):
        return False
    return value.dtype == torch.float32
