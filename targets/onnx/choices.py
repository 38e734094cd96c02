"""Which formats each weight of an ONNX model may have under a budget, and what it takes there."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import fx

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import aten
from qcompile.compiler.ir.quant import FloatSpec, Granularity, QuantSpec, WeightFormat
from qcompile.targets.order import Scheme
from qcompile.targets.plans import TensorChoices
from qcompile.targets.weight_choices import LAYERS, Shape, weight_choices

MIXED = "mixed"
"""What the precision of a model is called whose weights have formats of their own."""
INT8 = QuantSpec(granularity=Granularity.PER_CHANNEL, axis=0)
BLOCK = 32
"""Input channels that share a scale: ONNX Runtime's default for MatMulNBits too."""
OP_BYTES = {8: 120, 4: 200, 2: 260}
"""By bits: what a DequantizeLinear and its constants take in the file beside their values; measured."""


def mixed_scheme() -> Scheme:
    """Return the scheme of a plan: float arithmetic on weights of many formats."""
    return Scheme(MIXED, INT8, None, 32)


def onnx_choices(
    graph: Graph, pins: Sequence[tuple[str, str]], keep_float: frozenset[str]
) -> tuple[TensorChoices, ...]:
    """Return the choices of each weight; see ``weight_choices``."""
    return weight_choices(graph, _offer, _bytes, FloatSpec(32), pins, keep_float)


def _bytes(users: Sequence[fx.Node], format: WeightFormat, shape: Shape) -> int:
    """Return the same whatever reads it."""
    return stored_bytes(format, shape)


def stored_bytes(format: WeightFormat, shape: Shape) -> int:
    """Return what a weight takes in the file.

    Args:
        format: Its format.
        shape: ``[out, in / groups, ...]``.
    """
    if isinstance(format.spec, FloatSpec):
        return math.prod(shape) * format.spec.bits // 8
    assert isinstance(format.spec, QuantSpec)
    return format.spec.storage_bytes(shape) + OP_BYTES[format.spec.bits]


def _offer(users: Sequence[fx.Node], shape: Shape) -> list[WeightFormat]:
    """Return codes of 8, 4 and 2 bits for layers, of 8 for rows of tables and recurrent weights.

    A weight that several calls read stays float: each would store its own codes.
    """
    if len(users) > 1:
        only_looked_up = all(user.target == aten.embedding.default for user in users)
        return [WeightFormat("int8", INT8)] if only_looked_up else []
    found = [WeightFormat("int8", INT8)]
    if users[0].target not in LAYERS:
        return found
    for bits in (4, 2):
        for name, size in ((f"int{bits}", _block(shape[1])), (f"int{bits}-per-channel", shape[1])):
            spec = block_spec(bits, size)
            if all(spec != other.spec for other in found):
                found.append(WeightFormat(name, spec))
    return found


def block_spec(bits: int, size: int) -> QuantSpec:
    """Return codes with a scale for so many input channels; of two bits with a zero point besides."""
    return QuantSpec(
        bits=bits,
        signed=bits > 2,
        symmetric=bits > 2,
        full_range=bits > 2,
        granularity=Granularity.PER_GROUP,
        axis=1,
        group_size=size,
    )


def _block(channels: int) -> int:
    """Return the largest block that divides the channels."""
    return max(d for d in range(1, min(BLOCK, channels) + 1) if channels % d == 0)
