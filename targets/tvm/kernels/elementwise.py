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


def sum_of_codes(
    pair: tuple[Any, Any], scales: tuple[float, float], offset: float, codes: Codes, lanes: int
) -> Any:
    """Return ``round(a * scales[0] + b * scales[1] + offset)`` of a pair of codes in a format."""
    t = tir()
    a, b = (widen(value, lanes) for value in pair)
    first, second, shift, one, zero = (
        spread(t.float32(number), lanes) for number in (*scales, offset, 1, 0)
    )
    left = t.cast(a, f"float32x{lanes}" if lanes > 1 else "float32")
    right = requantize(b, second, shift, Codes("float32"), lanes)
    return requantize(left * first + right, one, zero, codes, lanes)


def quantized(value: Any, scale: float, zero_point: int, codes: Codes) -> Any:
    """Return a float as a code; multiplies by the reciprocal, as the ``quantized_decomposed`` op does."""
    t = tir()
    code = t.nearbyint(value * t.float32(1 / scale)) + t.float32(zero_point)
    limited = t.max(t.min(code, t.float32(codes.high)), t.float32(codes.low))
    return t.cast(t.cast(limited, "int32"), codes.dtype)


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
            total = sum_of_codes((a[index], b[index]), scales, offset, codes, lanes)
            t.buffer_store(y, total, index)

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
    """Return the TIR function ``(x, y)``: codes of float32 ``[batch, channels, height, width]``."""
    t = tir()
    channels, height, width = shape
    arguments = {
        "x": ((BATCH, *shape), "float32"),
        "y": ((BATCH, height, width, channels), codes.dtype),
    }
    with function(arguments) as found:
        x, y = found.buffers
        with t.grid(found.batch, height, width, channels) as (n, h, w, c):
            t.buffer_store(y, quantized(x[n, c, h, w], scale, zero_point, codes), [n, h, w, c])
    return found.result
