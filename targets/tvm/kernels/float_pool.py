"""Pooling in float32, channels last."""

from __future__ import annotations

import math
from typing import Any

from qcompile.targets.tvm.kernels.parts import (
    BATCH,
    Accumulators,
    flat,
    function,
    padded_copy,
    ramp,
)
from qcompile.targets.tvm.kernels.shapes import Window
from qcompile.targets.tvm.kernels.vectors import Vectors, constant, typed
from qcompile.targets.tvm.tools import tir

LEAST = float("-inf")


def global_average(size: tuple[int, int, int], vectors: Vectors) -> Any:
    """Return the TIR function ``(x, y)``: the mean over the image of ``[batch, height, width, channels]``."""
    t = tir()
    height, width, channels = size
    lanes = math.gcd(channels, vectors.lanes)
    tensors = ((BATCH, *size), "float32"), ((BATCH, 1, 1, channels), "float32")
    with function(dict(zip("xy", tensors, strict=True))) as found:
        x, y = found.buffers
        with t.grid(found.batch, channels // lanes) as (n, block):
            channel = ramp(block * lanes, lanes)
            total = Accumulators.make(1, lanes, "float32")
            total.set(0, constant(0.0, lanes))
            with t.grid(height, width) as (h, w):
                total.set(0, total.get(0) + x[n, h, w, channel])
            average = total.get(0) * constant(1 / (height * width), lanes)
            t.buffer_store(y, average, [n, 0, 0, channel])
    return found.result


def maximum(window: Window, vectors: Vectors) -> Any:
    """Return the TIR function ``(x, y)``: the greatest value of each window; a NaN is greater than all."""
    t = tir()
    channels = window.channels
    lanes = math.gcd(channels, vectors.lanes)
    tensors = (
        ((BATCH, *window.image, channels), "float32"),
        ((BATCH, *window.output, channels), "float32"),
    )
    with function(dict(zip("xy", tensors, strict=True))) as found, t.serial(found.batch) as n:
        x, y = found.buffers
        size = (*window.image, channels)
        has_border = any(window.padding)
        source = padded_copy(x, n, size, window.padding, LEAST, 0) if has_border else flat(x)
        before = 0 if has_border else n * window.image[0]
        with t.grid(*window.output, channels // lanes) as (h, w, block):
            best = Accumulators.make(1, lanes, "float32")
            best.set(0, constant(LEAST, lanes))
            for position in range(window.kernel[0] * window.kernel[1]):
                down, right = divmod(position, window.kernel[1])
                row, column = h * window.stride[0] + down, w * window.stride[1] + right
                start = ((before + row) * window.padded[1] + column) * channels + block * lanes
                value = source[ramp(start, lanes)]
                best.set(0, _greater(best.get(0), value, lanes))
            t.buffer_store(y, best.get(0), [n, h, w, ramp(block * lanes, lanes)])
    return found.result


def _greater(best: Any, value: Any, lanes: int) -> Any:
    """Return the greater of each lane, NaN if one of them is (LLVM Language Reference, "llvm.maximum.*")."""
    t = tir()
    name = t.llvm_lookup_intrinsic_id("llvm.maximum")
    return t.call_llvm_pure_intrin(typed("float32", lanes), name, best, value)
