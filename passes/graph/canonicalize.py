"""Give each activation and each layer one spelling, so that later passes need to know only that one.

Before:  y = hardtanh(x, 0, 6);  z = threshold(a, 0, 0);  v = addmm(b, c, permute(w, [1, 0]))
After:   y = clamp(x, 0, 6);     z = relu(a);             v = linear(c, w, b)

Likewise relu6, clamp and clamp_min; mm and matmul; pad by a constant becomes constant_pad_nd. A view
becomes a reshape, which also holds where a later pass removes a copy before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import aten
from qcompile.passes.base import Pass

_CLAMP = aten.clamp.default
_LINEAR = aten.linear.default
_TRANSPOSES = (aten.t.default, aten.transpose.int, aten.permute.default)


@dataclass(frozen=True)
class Canonicalize(Pass):
    """Spell bounds as clamp or relu, products with a transposed weight as linear, views as reshape."""

    name = "canonicalize"

    def run(self, graph: Graph) -> int:
        rewrites = 0
        for target, spell in _SPELLINGS.items():
            for node in graph.calls(target):
                if (new := spell(node)) is not None:
                    with graph.before(node):
                        graph.replace(node, graph.add_call(*new))
                    rewrites += 1
        if rewrites:
            graph.erase_unused()
        return rewrites


def _argument(node: fx.Node, index: int, name: str, default: Any) -> Any:
    if index < len(node.args):
        return node.args[index]
    return node.kwargs.get(name, default)


def _hardtanh(node: fx.Node) -> tuple[Any, ...]:
    low, high = _argument(node, 1, "min_val", -1.0), _argument(node, 2, "max_val", 1.0)
    return _CLAMP, node.args[0], low, high


def _clamp_min(node: fx.Node) -> tuple[Any, ...] | None:
    if node.args[1] == 0:
        return aten.relu.default, node.args[0]
    return None


def _clamp(node: fx.Node) -> tuple[Any, ...] | None:
    if _argument(node, 1, "min", None) == 0 and _argument(node, 2, "max", None) is None:
        return aten.relu.default, node.args[0]
    return None


def _threshold(node: fx.Node) -> tuple[Any, ...] | None:
    return (aten.relu.default, node.args[0]) if tuple(node.args[1:]) == (0, 0) else None


def _pad(node: fx.Node) -> tuple[Any, ...] | None:
    if _argument(node, 2, "mode", "constant") != "constant":
        return None
    return aten.constant_pad_nd.default, *node.args[:2], _argument(node, 3, "value", None) or 0


def _addmm(node: fx.Node) -> tuple[Any, ...] | None:
    bias, x, weight = node.args[:3]
    if node.kwargs or (transposed := _transposed(weight)) is None:
        return None
    return _LINEAR, x, transposed, bias


def _mm(node: fx.Node) -> tuple[Any, ...] | None:
    transposed = _transposed(node.args[1])
    return None if transposed is None else (_LINEAR, node.args[0], transposed)


def _transposed(node: Any) -> fx.Node | None:
    """Return the constant matrix whose transpose this node is."""
    if not isinstance(node, fx.Node) or node.target not in _TRANSPOSES:
        return None
    source = node.args[0]
    if not isinstance(source, fx.Node) or source.op != "get_attr" or node.meta["val"].dim() != 2:
        return None
    given: Any = node.args[1:]
    if node.target == aten.permute.default:
        swaps = [axis % 2 for axis in given[0]] == [1, 0]
    else:
        swaps = not given or given[0] % 2 != given[1] % 2
    return source if swaps else None


_SPELLINGS: dict[Any, Callable[[fx.Node], tuple[Any, ...] | None]] = {
    aten.hardtanh.default: _hardtanh,
    aten.relu6.default: lambda node: (_CLAMP, node.args[0], 0.0, 6.0),
    aten.clamp_min.default: _clamp_min,
    aten.clamp.default: _clamp,
    aten.addmm.default: _addmm,
    aten.mm.default: _mm,
    aten.matmul.default: _mm,
    aten.threshold.default: _threshold,
    aten.pad.default: _pad,
    aten.view.default: lambda node: (aten.reshape.default, *node.args),
    aten._unsafe_view.default: lambda node: (aten.reshape.default, *node.args),
}
