"""Let a quantizer's saturation do the work of the ReLU or clamp before it.

Before:  y = clamp(x, 0, 6);  q = quantize(y, 6/255, 0, 0, 255, uint8)
After:   q = quantize(x, 6/255, 0, 0, 255, uint8)

Runs after ``quantize``. The codes are exactly equal. Q(x) = clip(round(x / scale) + zp, qmin, qmax)
never falls as x rises. Let l be a lower bound with l <= scale * (qmin - zp): then Q(l) = qmin, and
any x < l has Q(x) <= Q(l) = qmin, the lowest code, so Q(x) = Q(max(x, l)). Upper bounds likewise.
That the scale was rounded moves l / scale by far less than the half code that ``round`` takes to
notice.

An engine that fuses only plain ReLU leaves a clamp float between two conversions (FORMATS A.7).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import QUANTIZE, aten
from qcompile.passes.base import Pass
from qcompile.passes.graph.fusion import ACTIVATIONS

TOLERANCE = 1e-6
"""How far, relatively, a range may reach beyond a bound: its scale was rounded to float32."""


@dataclass(frozen=True)
class FoldActivation(Pass):
    """Remove activations whose only users are quantizers that saturate within their bounds."""

    name = "fold-activation"

    def run(self, graph: Graph) -> int:
        folded = 0
        for node in reversed(graph.calls(*ACTIVATIONS)):  # of two in a row the second goes first
            if _is_implied(graph, node):
                source = node.args[0]
                assert isinstance(source, fx.Node)
                graph.replace(node, source)
                folded += 1
        if folded:
            graph.erase_unused()  # the bounds that were constants
        return folded


def _is_implied(graph: Graph, node: fx.Node) -> bool:
    if not node.users or any(user.target != QUANTIZE for user in node.users):
        return False
    if not _keeps_type(node) or (bounds := _bounds(graph, node)) is None:
        return False
    return all(_saturates_within(user, *bounds) for user in node.users)


def _keeps_type(node: fx.Node) -> bool:
    """Return whether input and output have one shape and dtype: a bound may broadcast its input."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    before, after = source.meta["val"], node.meta["val"]
    same_shape = [str(s) for s in before.shape] == [str(s) for s in after.shape]
    return same_shape and before.dtype == after.dtype


def _bounds(graph: Graph, node: fx.Node) -> tuple[float, float] | None:
    """Return the highest lower and the lowest upper bound; ``None`` if one is no constant."""
    if node.target == aten.relu.default:
        return 0.0, torch.inf
    low, high = _argument(node, 1, "min"), _argument(node, 2, "max")
    if any(isinstance(b, fx.Node) and graph.constant(b) is None for b in (low, high)):
        return None
    lows, highs = _values(graph, low, -torch.inf), _values(graph, high, torch.inf)
    return float(lows.max()), float(highs.min())


def _argument(node: fx.Node, index: int, name: str) -> Any:
    return node.args[index] if index < len(node.args) else node.kwargs.get(name)


def _values(graph: Graph, bound: Any, missing: float) -> Tensor:
    if isinstance(bound, fx.Node):
        bound = graph.constant(bound)
    return torch.as_tensor(missing if bound is None else bound, dtype=torch.float64)


def _saturates_within(quantize: fx.Node, low: float, high: float) -> bool:
    """Return whether every code stands for a value within the bounds."""
    scale, zero_point, qmin, qmax = (float(a) for a in quantize.args[1:5])  # type: ignore[arg-type]
    least, most = scale * (qmin - zero_point), scale * (qmax - zero_point)
    return least >= low - TOLERANCE * abs(low) and most <= high + TOLERANCE * abs(high)
