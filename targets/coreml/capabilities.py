"""What Core ML computes from 8-bit activations when a program has quantize/dequantize pairs.

Source: Core ML Tools, "Quantization Overview" and "Performance": weights and activations in int8 take the
fast path of the Neural Engine of A17 Pro and M4 in convolutions and linear layers (FORMATS A.8).
"""

from __future__ import annotations

from qcompile.compiler.ir.ops import aten
from qcompile.passes.quantization.integer_ops import MOVES, IntegerOps

INTEGER_OPS = IntegerOps(
    layers=frozenset({aten.conv1d.default, aten.conv2d.default, aten.linear.default}),
    needs_output=frozenset(),
    arithmetic=frozenset(),
    products=frozenset(),
    moves=MOVES,
    unit_range=frozenset({aten.sigmoid.default, aten.softmax.int}),
)
