"""Which formats a weight may have, from the one asked for to what its shape and its error allow.

Engines that decode weights at load (Core ML, FORMATS A.8) want blocks that divide the weight exactly,
and take another format for each layer. So a group size that does not divide is replaced by its largest
divisor that is worth its scales, else by one scale a channel; and a weight that its format would harm
is tried in int8 before it stays float. Formats of integer engines are taken as they are.
"""

from __future__ import annotations

import math
from dataclasses import replace

from qcompile.compiler.ir.palette import PaletteSpec
from qcompile.compiler.ir.quant import FloatSpec, Granularity, QuantSpec, WeightSpec

SMALLEST_GROUP = 8
"""A float16 scale on fewer weights costs 2 bits a weight or more."""
HALF = FloatSpec(16)
INT8 = QuantSpec(granularity=Granularity.PER_CHANNEL, axis=0, scale_bits=16)


def fits_each_layer(spec: WeightSpec) -> bool:
    """Return whether each weight may have a format of its own."""
    return isinstance(spec, PaletteSpec) or spec.is_blockwise


def unfit(spec: WeightSpec) -> FloatSpec:
    """Return what a weight stays that no format fits: float16 where scales are."""
    is_half = isinstance(spec, PaletteSpec) or spec.scale_bits == 16
    return HALF if is_half else FloatSpec(32)


def fitting_spec(spec: WeightSpec, shape: tuple[int, ...]) -> tuple[WeightSpec, str]:
    """Return the nearest format that divides a weight exactly, and what is unlike what was asked for.

    Args:
        spec: What was asked for.
        shape: Of the weight, ``[out, in / groups, ...]``.
    """
    if not fits_each_layer(spec) or spec.group_size is None:
        return spec, ""
    axis = 0 if isinstance(spec, PaletteSpec) else spec.axis
    assert axis is not None
    size = shape[axis]
    divisor = max(d for d in range(1, min(spec.group_size, size) + 1) if size % d == 0)
    if divisor == spec.group_size:
        return spec, ""
    why = f"groups of {spec.group_size} do not divide {size}"
    weights = divisor * math.prod(shape[2:])
    if isinstance(spec, PaletteSpec) or (divisor < size and weights >= SMALLEST_GROUP):
        return replace(spec, group_size=divisor), f"{why}: groups of {divisor}"
    return _per_channel(spec, spec.bits), f"{why}: a scale a channel"


def formats(spec: WeightSpec, shape: tuple[int, ...]) -> list[tuple[WeightSpec, str]]:
    """Return the formats to try, best first, with notes; none where floats would be smaller.

    Args:
        spec: What was asked for.
        shape: Of the weight.
    """
    if not fits_each_layer(spec):
        return [(spec, "")]
    first, note = fitting_spec(spec, shape)
    found = [(first, note)]
    wide = INT8 if isinstance(first, PaletteSpec) else _per_channel(first, 8)
    if wide != first and first.bits < 8:
        found.append((wide, "int8" if wide.signed else "uint8"))
    return [(s, n) for s, n in found if s.storage_bytes(shape) < unfit(spec).storage_bytes(shape)]


def _per_channel(spec: QuantSpec, bits: int) -> QuantSpec:
    per_channel = Granularity.PER_CHANNEL
    return replace(spec, bits=bits, granularity=per_channel, axis=0, group_size=None)
