"""Depthwise convolution of 8-bit codes, channels last: a register of neighbouring channels at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.targets.tvm.kernels.instructions import Instructions
from qcompile.targets.tvm.kernels.parts import (
    BATCH,
    Accumulators,
    Argument,
    Codes,
    function,
    padded_copy,
    ramp,
    requantize,
    widen,
)
from qcompile.targets.tvm.kernels.shapes import Window
from qcompile.targets.tvm.tools import tir


def pack(weight: NDArray[np.int8]) -> NDArray[np.int8]:
    """Return ``[channels, 1, height, width]`` as ``[height, width, channels]``."""
    return np.ascontiguousarray(weight[:, 0].transpose(1, 2, 0))


def depthwise(window: Window, instructions: Instructions, zero_point: int, codes: Codes) -> Any:
    """Return the TIR function ``(x, weights, sums, multiplier, offset, y)``.

    As ``conv``, but each channel has a kernel of its own, and nothing is padded to whole registers.
    """
    dtype = "int8" if instructions.signed else "uint8"
    channels = window.channels
    arguments: dict[str, Argument] = {
        "x": ((BATCH, *window.image, channels), dtype),
        "weights": ((*window.kernel, channels), "int8"),
        "sums": ((channels,), "int32"),
        "multiplier": ((channels,), "float32"),
        "offset": ((channels,), "float32"),
        "y": ((BATCH, *window.output, channels), codes.dtype),
    }
    with function(arguments) as found, tir().serial(found.batch) as n:
        _image(window, instructions, zero_point, codes, n, *found.buffers)
    return found.result


def _image(
    window: Window, instructions: Instructions, zero_point: int, codes: Codes,
    n: Any, x: Any, weights: Any, sums: Any, multiplier: Any, offset: Any, y: Any,
) -> None:  # fmt: skip
    t = tir()
    channels, (rows, columns) = window.channels, window.output
    lanes = math.gcd(channels, instructions.lanes)
    size = (*window.image, channels)
    source = padded_copy(x, n, size, window.padding, zero_point, 0) if any(window.padding) else None
    pixels = _together(columns, instructions)
    with t.grid(rows, columns // pixels, channels // lanes) as (h, block, c):
        registers = Accumulators.make(pixels, lanes)
        channel = ramp(c * lanes, lanes)
        for p in range(pixels):
            registers.set(p, sums[channel])
        for kh in range(window.kernel[0]):
            for kw in range(window.kernel[1]):
                weight = widen(weights[kh, kw, channel], lanes)
                for p in range(pixels):
                    row = h * window.stride[0] + kh
                    column = (block * pixels + p) * window.stride[1] + kw
                    start = (row * window.padded[1] + column) * channels + c * lanes
                    code = (
                        x[n, row, column, channel] if source is None else source[ramp(start, lanes)]
                    )
                    registers.set(p, registers.get(p) + widen(code, lanes) * weight)
        for p in range(pixels):
            found = requantize(registers.get(p), multiplier[channel], offset[channel], codes, lanes)
            t.buffer_store(y, found, [n, h, block * pixels + p, channel])


def _together(columns: int, instructions: Instructions) -> int:
    """Return how many pixels are computed at a time: a third of the registers, for each is widened."""
    limit = instructions.registers // 3
    return max(p for p in range(1, limit + 1) if columns % p == 0)
