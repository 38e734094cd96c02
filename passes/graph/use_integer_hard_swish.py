"""Spell hard-swish and hard-sigmoid so that an integer engine has a kernel for every step.

Before:  y = hardswish(x)
After:   three = dequantize(255, 3/255, 0);  a = add(x, three)
         q = quantize(a, 6/255, 0);          g = dequantize(q, 1/255, 0);  y = mul(x, g)

hardswish(x) = x * g and hardsigmoid(x) = g, with g = relu6(x + 3) / 6. The quantizer saturates at 0
and 6, which is relu6; its codes are read back with a sixth of the scale, which is the division.
What is lost is the gate's rounding to 8 bits, at most 1/510. ONNX Runtime leaves HardSwish float
between two conversions, but has QLinearAdd and QLinearMul (FORMATS A.7). Runs right before
``insert-observers``, which takes the pair of q and g as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import DEQUANTIZE, QUANTIZE, aten
from qcompile.passes.base import Pass

_LEVELS = 255


@dataclass(frozen=True)
class UseIntegerHardSwish(Pass):
    """Rewrite every float32 hard-swish and hard-sigmoid.

    Args:
        signed: Codes are int8, else uint8.
    """

    name = "use-integer-hard-swish"
    signed: bool = False

    def run(self, graph: Graph) -> int:
        nodes = graph.calls(aten.hardswish.default, aten.hardsigmoid.default)
        found = [n for n in nodes if n.meta["val"].dtype == torch.float32]
        for node in found:
            with graph.before(node):
                new = self._gate(graph, node)
                if node.target == aten.hardswish.default:
                    new = graph.add_call(aten.mul.Tensor, node.args[0], new)
            graph.replace(node, new)
        return len(found)

    def _gate(self, graph: Graph, node: fx.Node) -> fx.Node:
        """Add relu6(x + 3) / 6."""
        dtype = torch.int8 if self.signed else torch.uint8
        low, high = torch.iinfo(dtype).min, torch.iinfo(dtype).max
        code_range = (low, low, high, dtype)  # zero point, smallest and largest code
        codes = graph.add_constant(f"{node.name}_three", torch.tensor(high, dtype=dtype))
        three = graph.add_call(DEQUANTIZE, codes, 3 / _LEVELS, *code_range)
        shifted = graph.add_call(aten.add.Tensor, node.args[0], three)
        q = graph.add_call(QUANTIZE, shifted, 6 / _LEVELS, *code_range)
        return graph.add_call(DEQUANTIZE, q, 1 / _LEVELS, *code_range)
