"""Precisions of Core ML -> number formats, for a device and its oldest system."""

from __future__ import annotations

from qcompile.compiler.ir.errors import TargetError
from qcompile.compiler.ir.palette import Entries, PaletteSpec
from qcompile.compiler.ir.quant import Granularity, QuantSpec, WeightSpec
from qcompile.targets.coreml.deployment import NEEDS, opset, refusal
from qcompile.targets.device import Device
from qcompile.targets.options import WeightOptions
from qcompile.targets.order import Scheme

INT4_BLOCK = 32
"""Weights of one output channel that share a scale: coremltools' default too."""
PALETTE_GROUP = 16
"""Output channels that share a table; Apple's guide recommends 8 to 16 (FORMATS A.8)."""


def scheme(precision: str, device: Device, options: WeightOptions) -> Scheme:
    """Return the formats of a precision.

    Raises:
        TargetError: The device's system is too old, or the options do not fit the precision.
    """
    is_palette = precision.startswith("palette-")
    needed = [precision]
    if is_palette:
        palette = _palette(int(precision[8:]), device, options)
        weight: WeightSpec | None = palette
        needed += _palette_needs(palette)
    else:
        _refuse_palette_options(precision, options)
        weight = _integers(precision, options)
    for name in needed:
        if why := refusal(name, device):
            raise TargetError(f"{device.name}: {why}")
    activation = (
        QuantSpec(signed=True, symmetric=True, scale_bits=16) if precision == "w8a8" else None
    )
    return Scheme(precision, weight, activation, 32 if precision == "fp32" else 16)


def _integers(precision: str, options: WeightOptions) -> QuantSpec | None:
    if precision in ("fp16", "fp32"):
        if options != WeightOptions():
            raise TargetError(
                f"{precision} has no scales: leave out --granularity and --group-size"
            )
        return None
    bits = 4 if precision == "int4" else 8
    granularity = Granularity((options.granularity or _default(precision)).replace("-", "_"))
    if granularity is Granularity.PER_GROUP:
        size = options.group_size or INT4_BLOCK
        return QuantSpec(
            bits=bits, granularity=granularity, axis=1, group_size=size, full_range=bits == 4,
            scale_bits=16,
        )  # fmt: skip
    if options.group_size is not None:
        raise TargetError(f"--group-size needs --granularity per-group, not {granularity}")
    axis = 0 if granularity is Granularity.PER_CHANNEL else None
    return QuantSpec(
        bits=bits, granularity=granularity, axis=axis, full_range=bits == 4, scale_bits=16
    )


def _default(precision: str) -> str:
    return "per-group" if precision == "int4" else "per-channel"


def _palette(bits: int, device: Device, options: WeightOptions) -> PaletteSpec:
    granularity = options.granularity or ("per-group" if opset(device) >= 18 else "per-tensor")
    if granularity == "per-channel":
        raise TargetError(
            "a palette is per-tensor or per-group; --group-size 1 gives one a channel"
        )
    if options.group_size is not None and granularity != "per-group":
        raise TargetError("--group-size needs --granularity per-group")
    if options.palette_entries == "int8" and granularity == "per-group":
        if options.granularity is not None:
            raise TargetError("int8 palette entries need --granularity per-tensor")
        granularity = "per-tensor"
    group = options.group_size or PALETTE_GROUP if granularity == "per-group" else None
    return PaletteSpec(bits, group, options.channel_scales, Entries(options.palette_entries))


def _palette_needs(spec: PaletteSpec) -> list[str]:
    wanted = {
        "palette-per-group": spec.group_size is not None,
        "palette-with-scales": spec.channel_scale,
        "palette-of-int8": spec.entries is Entries.INT8,
    }
    assert wanted.keys() <= NEEDS.keys()
    return [name for name, needed in wanted.items() if needed]


def _refuse_palette_options(precision: str, options: WeightOptions) -> None:
    if options.channel_scales or options.palette_entries != "fp16":
        raise TargetError(
            f"{precision} has no palette: --channel-scales and --palette-entries are for palette-N"
        )
