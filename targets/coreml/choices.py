"""Which formats each weight of a package may have under a budget, and what it takes there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import fx

from qcompile.compiler.ir.errors import TargetError
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import aten
from qcompile.compiler.ir.palette import PaletteSpec
from qcompile.compiler.ir.quant import FloatSpec, QuantSpec, WeightFormat, WeightSpec
from qcompile.passes.quantization.fitting import fitting_spec
from qcompile.targets.coreml import precisions
from qcompile.targets.coreml.deployment import refusal
from qcompile.targets.device import Device
from qcompile.targets.options import DEFAULT_WEIGHTS, WeightOptions
from qcompile.targets.order import Scheme
from qcompile.targets.plans import TensorChoices
from qcompile.targets.weight_choices import Shape, weight_choices

MIXED = "mixed"
"""What the precision of a package is called whose weights have formats of their own."""
OFFERED: dict[str, tuple[str, WeightOptions]] = {
    **{f"palette-{n}": (f"palette-{n}", DEFAULT_WEIGHTS) for n in (1, 2, 3, 4, 6)},
    **{
        f"palette-{n}-per-tensor": (f"palette-{n}", WeightOptions(granularity="per-tensor"))
        for n in (1, 2, 3, 4, 6, 8)
    },
    **{
        f"palette-{n}-channel-scales": (
            f"palette-{n}",
            WeightOptions(granularity="per-tensor", channel_scales=True),
        )
        for n in (2, 3, 4)
    },
    "int4": ("int4", DEFAULT_WEIGHTS),
    "int8": ("int8", DEFAULT_WEIGHTS),
}
"""Precision and options by the name in plans; an older system takes those that it can load."""
BLOB = 64
"""Bytes of metadata before each blob, and what its data is padded to (``reference/blob.py``)."""
PALETTE_BYTES, SCALES_BYTES, INTEGER_BYTES = 90, 260, 130
"""What a compressed constant takes in the program beyond a plain one, measured: a palette (67 to 113), its
scales (241 to 276), integers (106 to 151)."""
FEW = 10
"""Values of a table or of scales that coremltools writes into the program if they are fewer."""


def mixed_scheme() -> Scheme:
    """Return the scheme of a plan: what a weight without a plan of its own would have is never asked for."""
    return Scheme(MIXED, QuantSpec(scale_bits=16), None, 16)


def coreml_choices(
    graph: Graph, device: Device, pins: Sequence[tuple[str, str]], keep_float: frozenset[str]
) -> tuple[TensorChoices, ...]:
    """Return the choices of each weight; see ``weight_choices``."""
    formats = _formats(device)

    def offer(users: Sequence[fx.Node], shape: Shape) -> list[WeightFormat]:
        """Weights that several calls read are stored once if a table is among them, else as floats."""
        has_table = any(user.target == aten.embedding.default for user in users)
        return _fitting(formats, shape) if has_table or len(users) == 1 else []

    return weight_choices(graph, offer, _bytes, FloatSpec(16), pins, keep_float)


def _bytes(users: Sequence[fx.Node], format: WeightFormat, shape: Shape) -> int:
    """Return the same whatever reads it."""
    return stored_bytes(format, shape)


def stored_bytes(format: WeightFormat, shape: Shape) -> int:
    """Return what a weight takes in ``weight.bin`` and in the program.

    Args:
        format: Its format.
        shape: ``[out, in / groups, ...]``.
    """
    spec, count = format.spec, math.prod(shape)
    if isinstance(spec, FloatSpec):
        return _blob(count * spec.bits // 8)
    codes = _blob(-(-count * spec.bits // 8))
    if isinstance(spec, QuantSpec):
        return codes + _halves(spec.scale_count(shape)) + INTEGER_BYTES
    tables = _halves(spec.groups(shape) * spec.size) + PALETTE_BYTES
    return codes + tables + (_halves(shape[0]) + SCALES_BYTES if spec.channel_scale else 0)


def _halves(count: int) -> int:
    """Return what float16 numbers take beside a weight's codes."""
    return 2 * count if count < FEW else _blob(2 * count)


def _blob(size: int) -> int:
    return BLOB + -(-size // BLOB) * BLOB


def _formats(device: Device) -> dict[str, WeightSpec]:
    """Return what a device's oldest system can load; of equal formats the first name."""
    found: dict[str, WeightSpec] = {}
    for name, (precision, options) in OFFERED.items():
        if refusal(precision, device) is not None:
            continue
        try:
            spec = precisions.scheme(precision, device, options).weight
        except TargetError:  # an option that the system is too old for
            continue
        if spec is not None and spec not in found.values():
            found[name] = spec
    return found


def _fitting(formats: dict[str, WeightSpec], shape: Shape) -> list[WeightFormat]:
    found: list[WeightFormat] = []
    for name, spec in formats.items():
        fitted, _ = fitting_spec(spec, shape)
        if isinstance(fitted, PaletteSpec) and fitted.group_size == shape[0]:
            fitted = replace(fitted, group_size=None)
        if isinstance(fitted, PaletteSpec) and math.prod(shape) < fitted.size:
            continue
        if all(fitted != other.spec for other in found):
            found.append(WeightFormat(name, fitted))
    return found
