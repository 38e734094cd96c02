"""Pooling of 8-bit codes, channels last."""

from __future__ import annotations

import math
from typing import Any

from qcompile.targets.tvm.kernels.instructions import Instructions
from qcompile.targets.tvm.kernels.parts import (
    BATCH,
    Accumulators,
    Codes,
    function,
    padded_copy,
    ramp,
    requantize,
    spread,
    widen,
)
from qcompile.targets.tvm.kernels.shapes import Window
from qcompile.targets.tvm.tools import tir


def global_average(
    size: tuple[int, int, int],
    instructions: Instructions,
    multiplier: float,
    offset: float,
    codes: Codes,
) -> Any:
    """Return the TIR function ``(x, y)``: ``round(sum over the image * multiplier + offset)``.

    Args:
        size: Height, width, channels.
        instructions: For their lanes and the sign of the codes.
        multiplier: The scales' quotient over the number of pixels.
        offset: What the zero points make.
        codes: The output's format.
    """
    t = tir()
    height, width, channels = size
    dtype = "int8" if instructions.signed else "uint8"
    lanes = math.gcd(channels, instructions.lanes)
    arguments = {"x": ((BATCH, *size), dtype), "y": ((BATCH, 1, 1, channels), codes.dtype)}
    with function(arguments) as found:
        x, y = found.buffers
        with t.grid(found.batch, channels // lanes) as (n, block):
            channel = ramp(block * lanes, lanes)
            total = Accumulators.make(1, lanes)
            total.set(0, spread(t.int32(0), lanes))
            with t.grid(height, width) as (h, w):
                total.set(0, total.get(0) + widen(x[n, h, w, channel], lanes))
            factor, shift = (spread(t.float32(f), lanes) for f in (multiplier, offset))
            average = requantize(total.get(0), factor, shift, codes, lanes)
            t.buffer_store(y, average, [n, 0, 0, channel])
    return found.result


def maximum(window: Window, instructions: Instructions, codes: Codes) -> Any:
    """Return the TIR function ``(x, y)``: the greatest code of each window; the border has the least."""
    t = tir()
    channels = window.channels
    dtype = "int8" if instructions.signed else "uint8"
    lanes = math.gcd(channels, 4 * instructions.lanes)
    arguments = {
        "x": ((BATCH, *window.image, channels), dtype),
        "y": ((BATCH, *window.output, channels), dtype),
    }
    with function(arguments) as found, t.serial(found.batch) as n:
        x, y = found.buffers
        size = (*window.image, channels)
        source = padded_copy(x, n, size, window.padding, codes.low, 0)
        with t.grid(*window.output, channels // lanes) as (h, w, block):
            best = None
            for kh in range(window.kernel[0]):
                for kw in range(window.kernel[1]):
                    row, column = h * window.stride[0] + kh, w * window.stride[1] + kw
                    start = (row * window.padded[1] + column) * channels + block * lanes
                    code = source[ramp(start, lanes)]
                    best = code if best is None else t.max(best, code)
            t.buffer_store(y, best, [n, h, w, ramp(block * lanes, lanes)])
    return found.result
