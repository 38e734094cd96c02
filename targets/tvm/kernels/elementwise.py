"""Kernels that compute each code from the codes at the same place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qcompile.targets.tvm.kernels.parts import (
    BATCH,
    Codes,
    each_vector,
    function,
    requantize,
    spread,
    widen,
)
from qcompile.targets.tvm.tools import tir

LANES = 16


def add(
    shape: Sequence[int],
    dtypes: tuple[str, str],
    scales: tuple[float, float],
    offset: float,
    codes: Codes,
) -> Any:
    """Return the TIR function ``(a, b, y)``: ``round(a * scales[0] + b * scales[1] + offset)``.

    Args:
        shape: Of all three, without the batch.
        dtypes: Of the inputs.
        scales: The inputs' scales, each divided by the output's.
        offset: What the zero points make.
        codes: The output's format.
    """
    t = tir()
    tensor = (BATCH, *shape)
    arguments = {"a": (tensor, dtypes[0]), "b": (tensor, dtypes[1]), "y": (tensor, codes.dtype)}
    with function(arguments) as found:
        a, b, y = found.buffers

        def body(index: list[Any], lanes: int) -> None:
            left = t.cast(widen(a[index], lanes), f"float32x{lanes}" if lanes > 1 else "float32")
            second = spread(t.float32(scales[1]), lanes)
            right = requantize(
                widen(b[index], lanes),
                second,
                spread(t.float32(offset), lanes),
                Codes("float32"),
                lanes,
            )
            one = spread(t.float32(1), lanes)
            total = left * spread(t.float32(scales[0]), lanes) + right
            zero = spread(t.float32(0), lanes)
            t.buffer_store(y, requantize(total, one, zero, codes, lanes), index)

        each_vector(found.batch, shape, LANES, body)
    return found.result


def table(shape: Sequence[int], dtype: str, result: str) -> Any:
    """Return the TIR function ``(x, table, y)``: ``table[x]``, 256 codes from the least ``x`` on."""
    t = tir()
    arguments = {
        "x": ((BATCH, *shape), dtype),
        "table": ((256,), result),
        "y": ((BATCH, *shape), result),
    }
    first = -128 if dtype == "int8" else 0
    with function(arguments) as found:
        x, codes, y = found.buffers
        with t.grid(found.batch, *shape) as index:
            indices = list(index)
            t.buffer_store(y, codes[t.cast(x[indices], "int32") - first], indices)
    return found.result


def quantize_channels_last(
    shape: Sequence[int], scale: float, zero_point: int, codes: Codes
) -> Any:
    """Return the TIR function ``(x, y)``: float32 ``[batch, channels, height, width]`` to codes, transposed.

    Multiplies by the reciprocal, as the ``quantized_decomposed`` op does.
    """
    t = tir()
    channels, height, width = shape
    arguments = {
        "x": ((BATCH, *shape), "float32"),
        "y": ((BATCH, height, width, channels), codes.dtype),
    }
    with function(arguments) as found:
        x, y = found.buffers
        with t.grid(found.batch, height, width, channels) as (n, h, w, c):
            value = t.nearbyint(x[n, c, h, w] * t.float32(1 / scale)) + t.float32(zero_point)
            limited = t.max(t.min(value, t.float32(codes.high)), t.float32(codes.low))
            t.buffer_store(y, t.cast(t.cast(limited, "int32"), codes.dtype), [n, h, w, c])
    return found.result
