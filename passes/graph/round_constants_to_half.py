"""Give float constants the values that float16 holds; they stay float32 in the graph.

Before:  y = conv2d(x, w, b)         # w[0] = 0.1
After:   y = conv2d(x, w, b)         # w[0] = 0.0999755859375

A program that stores float16 then holds exactly the graph's constants. What is too small for float16
becomes 0; what is too large stays, as in a mask, and its op is left in float32 by the emitter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.storage import LARGEST_HALF, to_half
from qcompile.passes.base import Pass


@dataclass(frozen=True)
class RoundConstantsToHalf(Pass):
    """Round every float32 constant whose values are within float16's range."""

    name = "round-constants-to-half"

    def run(self, graph: Graph) -> int:
        names = [n for n in graph.weights if graph.weights.peek(n).dtype == torch.float32]
        return sum(_round(graph, name) for name in names)


def _round(graph: Graph, name: str) -> int:
    value = graph.weights[name]
    rounded = to_half(value)
    if not fits_half(value) or torch.equal(rounded, value):
        return 0
    if name in graph.weights.stored:
        graph.weights.round_stored(name, torch.float16)
    else:
        graph.weights[name] = rounded
    return 1


def fits_half(value: Tensor) -> bool:
    """Return whether no finite value overflows in float16."""
    finite = value[value.isfinite()]
    return bool((finite.abs() <= LARGEST_HALF).all())
