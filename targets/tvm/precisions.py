"""Precisions of TVM libraries -> number formats."""

from __future__ import annotations

from qcompile.compiler.ir.errors import TargetError
from qcompile.compiler.ir.quant import Granularity, QuantSpec
from qcompile.targets.device import Device
from qcompile.targets.integer_scheme import integer_weight, refuse_groups
from qcompile.targets.options import WeightOptions
from qcompile.targets.order import Scheme
from qcompile.targets.tvm.machine import Machine

GROUP = 32
"""4-bit weights of one feature that share a scale, as in the Core ML emitter."""


def scheme(precision: str, device: Device, options: WeightOptions) -> Scheme:
    """Return the formats of a precision.

    Raises:
        TargetError: The options do not fit the precision.
    """
    if precision == "int4":
        return Scheme(precision, _int4(options), None)
    refuse_groups("tvm", precision, options)
    if precision in ("fp32", "fp16"):
        return Scheme(precision, None, None, int(precision[2:]))
    if precision == "w8a16":
        return Scheme(precision, integer_weight(8, options), None)
    kernels = Machine.of(device).kernels()
    weight = integer_weight(kernels.weight_bits, options)
    return Scheme(precision, weight, QuantSpec(signed=kernels.signed, symmetric=False))


def _int4(options: WeightOptions) -> QuantSpec:
    """Return symmetric 4-bit codes that use -8 too, with a scale a group unless the user says otherwise."""
    if options.channel_scales:
        raise TargetError("int4 has no palette: --channel-scales is for palette-N")
    granularity = Granularity((options.granularity or "per-group").replace("-", "_"))
    if granularity is Granularity.PER_GROUP:
        size = options.group_size or GROUP
        return QuantSpec(
            bits=4, granularity=granularity, axis=1, group_size=size, full_range=True
        )  # fmt: skip
    if options.group_size is not None:
        raise TargetError(f"--group-size needs --granularity per-group, not {granularity}")
    axis = 0 if granularity is Granularity.PER_CHANNEL else None
    return QuantSpec(bits=4, granularity=granularity, axis=axis, full_range=True)
