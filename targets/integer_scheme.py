"""What emitters for engines with q/dq pairs have in common: formats of weights, and the quantizing passes."""

from __future__ import annotations

import math

from qcompile.compiler.ir.errors import TargetError
from qcompile.compiler.ir.quant import Granularity, QuantSpec
from qcompile.passes.base import Pass
from qcompile.passes.graph.absorb_high_bias import AbsorbHighBias
from qcompile.passes.graph.cross_layer_equalization import CrossLayerEqualization
from qcompile.passes.quantization.insert_observers import InsertObservers
from qcompile.passes.quantization.integer_ops import IntegerOps
from qcompile.passes.quantization.quantize import MIN_SQNR_DB, Quantize
from qcompile.targets.options import WeightOptions
from qcompile.targets.order import Recipe


def refuse_groups(format: str, precision: str, options: WeightOptions) -> None:
    """Raise for options about weights of a format that knows no groups.

    Raises:
        TargetError: There are such options.
    """
    if options.granularity == "per-group" or options.group_size or options.channel_scales:
        raise TargetError(
            f"{precision} in {format} has scales per channel or per tensor: "
            "use --granularity per-channel or per-tensor, without groups or channel scales"
        )


def integer_weight(bits: int, options: WeightOptions) -> QuantSpec:
    """Return symmetric int8 codes with a scale an output channel, or one for the tensor."""
    per_tensor = options.granularity == "per-tensor"
    return QuantSpec(
        bits=bits,
        granularity=Granularity.PER_TENSOR if per_tensor else Granularity.PER_CHANNEL,
        axis=None if per_tensor else 0,
    )


def equalized(recipe: Recipe) -> list[Pass]:
    """Return the passes that make channels alike before activations get one scale a tensor."""
    assert recipe.samples is not None
    assert isinstance(recipe.scheme.weight, QuantSpec)
    assert recipe.scheme.activation is not None
    return [
        CrossLayerEqualization(
            recipe.samples, recipe.scheme.weight, recipe.scheme.activation, stages=recipe.stages
        ),
        AbsorbHighBias(
            recipe.samples, stages=recipe.stages
        ),  # after equalization: ranges are compared across channels
    ]


def quantized(recipe: Recipe, ops: IntegerOps) -> list[Pass]:
    """Return the passes that put observers and quantize in one walk."""
    assert recipe.samples is not None
    scheme = recipe.scheme
    assert scheme.weight is not None
    return [
        InsertObservers(
            ops,
            scheme.activation,
            scheme.weight,
            recipe.keep_float,
            recipe.weights_alone,
            recipe.formats,
        ),
        Quantize(
            recipe.samples,
            recipe.log,
            recipe.rounding,
            ops.unit_range,
            min_layer_sqnr_db=MIN_SQNR_DB if recipe.formats is None else -math.inf,
            max_bytes=recipe.max_bytes,
            on_progress=recipe.on_progress,
            stages=recipe.stages,
        ),
    ]
