"""From quantize/dequantize pairs to ops on codes.

Before:  y = quantize(conv2d(dequantize(x), dequantize(w), bias))
After:   y = permute(integer_conv2d(permute(x), w, ...))    channels last; permutes between two such ops go

What has no op on codes keeps its conversions and computes in float.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import DEQUANTIZE, DEQUANTIZE_PER_CHANNEL, QUANTIZE, aten
from qcompile.targets.tvm import code_ops as ops
from qcompile.targets.tvm.capabilities import INTEGER_OPS, UNARY, conv_reason, conv_settings
from qcompile.targets.tvm.codes import (
    TO_LAST,
    Format,
    Stored,
    both,
    channels_first,
    coded,
    feeds_quantizer,
    is_fixed,
    is_shown_first,
    shown,
    stored,
)


def lower(graph: Graph) -> dict[str, Stored]:
    """Rewrite in place; return the codes by the name of the value that was quantized."""
    lowering = _Lowering(graph)
    for node in graph.nodes:
        lowering.visit(node)
    graph.erase_unused()
    kept = {node.name for node in graph.nodes}
    return {name: found for name, found in lowering.codes.items() if found.node in kept}


@dataclass
class _Lowering:
    graph: Graph
    codes: dict[str, Stored] = field(default_factory=dict)

    def visit(self, node: fx.Node) -> None:
        if node.target == QUANTIZE:
            source = node.args[0]
            assert isinstance(source, fx.Node)
            with self.graph.before(node):
                new = self.codes_of(node, source, Format.of(node))
            if new is not None:
                self.graph.replace(node, new)
            self.codes[source.name] = stored(new if new is not None else node)
        elif node.target == aten.linear.default and not feeds_quantizer(node):
            with self.graph.before(node):
                new = self.linear(node, None)
            if new is not None:
                self.graph.replace(node, new)

    def codes_of(self, node: fx.Node, source: fx.Node, to: Format) -> fx.Node | None:
        """Return the codes of ``quantize(source)``, computed from codes; ``None`` if that is not known."""
        handler = _HANDLERS.get(source.target)
        if handler is not None:
            return handler(self, source, to)
        if source.target in UNARY:
            return self.unary(source, to)
        if source.target in INTEGER_OPS.moves:
            return self.move(source, to)
        if source.target == DEQUANTIZE:
            return self.recode(source, to)
        value = source.meta.get("val")
        if isinstance(value, Tensor) and value.dim() == 4 and is_fixed(value):
            args = (source, to.scale, to.zero_point, *to.limits)
            return self.first(self.graph.add_call(ops.QUANTIZE_CHANNELS_LAST, *args))
        return None

    def first(self, node: fx.Node) -> fx.Node:
        """Return ``[batch, height, width, channels]`` with channels first again."""
        return channels_first(self.graph, node)

    def last(self, node: fx.Node) -> fx.Node:
        """Return ``[batch, channels, height, width]`` with channels last."""
        return shown(node) or self.graph.add_call(aten.permute.default, node, TO_LAST)

    def pair(self, *nodes: fx.Node) -> tuple[list[fx.Node], bool]:
        """Return nodes of one shape in one layout, and whether that is channels last."""
        is_last = any(map(is_shown_first, nodes))
        return ([self.last(n) for n in nodes] if is_last else list(nodes)), is_last

    def conv(self, node: fx.Node, to: Format) -> fx.Node | None:
        x, weight = coded(node.args[0]), self.weight(node.args[1])
        if x is None or weight is None or conv_reason(node):
            return None
        codes, scale = weight
        stride, padding, _, groups = conv_settings(node)
        bias = node.args[2] if len(node.args) > 2 else None
        constants = self.factors(node, x[1], scale, bias, to)
        new = self.graph.add_call(
            ops.CONV, self.last(x[0]), codes, *constants, both(stride), both(padding), groups,
            x[1].zero_point, *to.limits,
        )  # fmt: skip
        return self.first(new)

    def linear(self, node: fx.Node, to: Format | None) -> fx.Node | None:
        x, weight = coded(node.args[0]), self.weight(node.args[1])
        if x is None or weight is None or x[0].meta["val"].dim() != 2:
            return None
        bias = node.args[2] if len(node.args) > 2 else None
        constants = self.factors(node, x[1], weight[1], bias, to)
        limits = to.limits if to is not None else (0, 0, "float32")
        return self.graph.add_call(
            ops.LINEAR, x[0], weight[0], *constants, x[1].zero_point, *limits
        )

    def weight(self, node: Any) -> tuple[fx.Node, Tensor] | None:
        """Return a weight's codes and its scales, one for each output channel."""
        if not isinstance(node, fx.Node) or node.target not in (DEQUANTIZE, DEQUANTIZE_PER_CHANNEL):
            return None
        codes = node.args[0]
        if not isinstance(codes, fx.Node) or codes.op != "get_attr":
            return None
        out = self.graph.channels(codes, 0)
        if node.target == DEQUANTIZE:
            return (codes, torch.full((out,), float(node.args[1]))) if node.args[2] == 0 else None  # type: ignore[arg-type]
        scale, zeros = (self.graph.constant(n) for n in node.args[1:3])
        assert scale is not None
        assert zeros is not None
        return (codes, scale.float()) if node.args[3] == 0 and not zeros.any() else None

    def factors(
        self, node: fx.Node, x: Format, scale: Tensor, bias: Any, to: Format | None
    ) -> tuple[fx.Node, fx.Node]:
        """Return the constants ``multiplier`` and ``offset`` of a layer."""
        step, zero = (to.scale, to.zero_point) if to is not None else (1.0, 0)
        known = self.graph.constant(bias) if bias is not None else None
        multiplier = scale.double() * x.scale / step
        offset = (torch.zeros_like(multiplier) if known is None else known.double() / step) + zero
        return (
            self.graph.add_constant(f"{node.name}_multiplier", multiplier.float()),
            self.graph.add_constant(f"{node.name}_offset", offset.float()),
        )

    def add(self, node: fx.Node, to: Format) -> fx.Node | None:
        found = [coded(a) for a in node.args[:2]]
        if None in found or node.kwargs or len(node.args) > 2:
            return None
        (a, of_a), (b, of_b) = found  # type: ignore[misc]
        if a.meta["val"].shape != b.meta["val"].shape or not is_fixed(a.meta["val"]):
            return None
        scales = of_a.scale / to.scale, of_b.scale / to.scale
        offset = to.zero_point - scales[0] * of_a.zero_point - scales[1] * of_b.zero_point
        both, is_last = self.pair(a, b)
        new = self.graph.add_call(ops.ADD, *both, *scales, offset, *to.limits)
        return self.first(new) if is_last else new

    def unary(self, node: fx.Node, to: Format) -> fx.Node | None:
        x = coded(node.args[0])
        if x is None:
            return None

        def apply(values: Tensor) -> Tensor:
            args, kwargs = fx.map_arg(
                (node.args, node.kwargs), lambda n: values if n is node.args[0] else n
            )
            result: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
            return result

        return self.table(node, x, apply, to)

    def recode(self, node: fx.Node, to: Format) -> fx.Node | None:
        """Return codes in another format; as they are if it is the same."""
        x = coded(node)
        if x is None or x[1] == to:
            return None if x is None else x[0]
        return self.table(node, x, lambda values: values, to)

    def table(
        self,
        node: fx.Node,
        x: tuple[fx.Node, Format],
        apply: Callable[[Tensor], Tensor],
        to: Format,
    ) -> fx.Node | None:
        codes, of = x
        if not is_fixed(codes.meta["val"]):
            return None
        first = -128 if of.dtype == torch.int8 else 0
        all_codes = torch.arange(first, first + 256)
        values = apply((all_codes - of.zero_point).float() * torch.tensor(of.scale))
        entries = QUANTIZE(values, to.scale, to.zero_point, to.low, to.high, to.dtype)
        constant = self.graph.add_constant(f"{node.name}_table", entries)
        (source,), is_last = self.pair(codes)
        new = self.graph.add_call(ops.TABLE, source, constant)
        return self.first(new) if is_last else new

    def average(self, node: fx.Node, to: Format) -> fx.Node | None:
        x = coded(node.args[0])
        if x is None or both(node.args[1]) != [1, 1] or not is_fixed(x[0].meta["val"]):
            return None
        codes, of = x
        count = self.graph.channels(codes, 2) * self.graph.channels(codes, 3)
        ratio = of.scale / to.scale
        args = (ratio / count, to.zero_point - ratio * of.zero_point, *to.limits)
        new = self.graph.add_call(ops.GLOBAL_AVERAGE, self.last(codes), *args)
        channels = self.graph.channels(codes, 1)
        return self.graph.add_call(aten.reshape.default, new, [-1, channels, 1, 1])

    def max_pool(self, node: fx.Node, to: Format) -> fx.Node | None:
        x = coded(node.args[0])
        given: list[Any] = list(node.args[1:])
        *sizes, ceil = given + [[], [], 0, 1, False][len(given) :]
        kernel, stride, padding, dilation = (both(g) for g in sizes)
        if x is None or x[1] != to or dilation != [1, 1] or ceil:
            return None
        if not is_fixed(x[0].meta["val"]):
            return None
        args = (kernel, stride or kernel, padding, to.low, to.high)
        return self.first(self.graph.add_call(ops.MAX_POOL, self.last(x[0]), *args))

    def cat(self, node: fx.Node, to: Format) -> fx.Node | None:
        parts, axis = node.args[0], node.args[1] if len(node.args) > 1 else 0
        codes = [self.recode(p, to) for p in parts]  # type: ignore[union-attr, arg-type]
        if None in codes:
            return None
        nodes, is_last = self.pair(*(c for c in codes if c is not None))
        if not is_last:
            return self.graph.add_call(aten.cat.default, nodes, axis)
        new = self.graph.add_call(aten.cat.default, nodes, TO_LAST.index(int(str(axis)) % 4))
        return self.first(new)

    def move(self, node: fx.Node, to: Format) -> fx.Node | None:
        """Move codes instead of values."""
        if node.target == aten.max_pool2d.default:
            return self.max_pool(node, to)
        x = coded(node.args[0])
        if x is None or x[1] != to:
            return None
        assert callable(node.target)
        return self.graph.add_call(node.target, x[0], *node.args[1:])


_HANDLERS: Mapping[Any, Callable[[_Lowering, fx.Node, Format], fx.Node | None]] = {
    aten.conv2d.default: _Lowering.conv,
    aten.linear.default: _Lowering.linear,
    aten.add.Tensor: _Lowering.add,
    aten.adaptive_avg_pool2d.default: _Lowering.average,
    aten.cat.default: _Lowering.cat,
}
