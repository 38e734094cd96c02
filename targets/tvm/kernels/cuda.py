"""Kernels on 8-bit codes for NVIDIA GPUs, channels last: a thread an output, or a few of them.

Products of four neighbouring channels are one DP4A (CUDA C++ Programming Guide, ``__dp4a``; compute
capability 6.1 on). Neighbouring threads take neighbouring features, so that what they read of the weights,
and what they store, lies together. No thread waits for another, so the same functions run on a CPU, one
thread after the other: that is how they are verified where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qcompile.targets.tvm.kernels.elementwise import quantized, sum_of_codes
from qcompile.targets.tvm.kernels.parts import (
    BATCH,
    Codes,
    function,
    requantize,
    widen,
)
from qcompile.targets.tvm.kernels.shapes import Window
from qcompile.targets.tvm.tools import tir

THREADS = 128
"""Of a block."""


@dataclass(frozen=True)
class Grid:
    """All threads of a kernel.

    Args:
        on_gpu: Whether they are a GPU's; loops of a CPU otherwise.
    """

    on_gpu: bool

    def each(self, batch: Any, shape: Sequence[int], body: Callable[[list[Any]], None]) -> None:
        """Give each index of ``[batch, *shape]`` a thread; neighbours in the last axis are neighbours.

        Args:
            batch: Size of the first axis.
            shape: Of the others.
            body: Given the indices.
        """
        t = tir()
        total = t.cast(batch, "int32")
        for size in shape:
            total = total * size
        blocks = t.floordiv(total + (THREADS - 1), THREADS)
        with (
            self._loop(blocks, "blockIdx.x") as block,
            self._loop(THREADS, "threadIdx.x") as thread,
            t.If(block * THREADS + thread < total),
            t.Then(),
        ):
            rest, indices = block * THREADS + thread, []
            for size in reversed(shape):
                indices.append(t.floormod(rest, size))
                rest = t.floordiv(rest, size)
            body([rest, *reversed(indices)])

    def _loop(self, count: Any, name: str) -> Any:
        t = tir()
        return t.thread_binding(0, count, thread=name) if self.on_gpu else t.serial(count)

    def dp4a(self, a: Any, b: Any, total: Any) -> Any:
        """Return ``total`` and the sum of four products of signed bytes; all three are int32."""
        t = tir()
        if self.on_gpu:
            return t.call_pure_extern("int32", "__dp4a", a, b, total)
        for place in (24, 16, 8, 0):
            left, right = ((v << t.int32(place)) >> t.int32(24) for v in (a, b))
            total = total + left * right
        return total


def add(
    grid: Grid,
    shape: Sequence[int],
    dtypes: tuple[str, str],
    scales: tuple[float, float],
    offset: float,
    codes: Codes,
) -> Any:
    """Return the TIR function ``(a, b, y)``; see ``elementwise.add``."""
    tensor = (BATCH, *shape)
    arguments = {"a": (tensor, dtypes[0]), "b": (tensor, dtypes[1]), "y": (tensor, codes.dtype)}
    with function(arguments) as found:
        a, b, y = found.buffers

        def body(index: list[Any]) -> None:
            total = sum_of_codes((a[index], b[index]), scales, offset, codes, 1)
            tir().buffer_store(y, total, index)

        grid.each(found.batch, shape, body)
    return found.result


def table(grid: Grid, shape: Sequence[int], dtype: str, result: str) -> Any:
    """Return the TIR function ``(x, table, y)``; see ``elementwise.table``."""
    t = tir()
    tensor = (BATCH, *shape)
    arguments = {"x": (tensor, dtype), "table": ((256,), result), "y": (tensor, result)}
    first = -128 if dtype == "int8" else 0
    with function(arguments) as found:
        x, entries, y = found.buffers
        grid.each(
            found.batch,
            shape,
            lambda i: t.buffer_store(y, entries[t.cast(x[i], "int32") - first], i),
        )
    return found.result


def quantize_channels_last(
    grid: Grid, shape: Sequence[int], scale: float, zero_point: int, codes: Codes
) -> Any:
    """Return the TIR function ``(x, y)``; see ``elementwise.quantize_channels_last``."""
    channels, height, width = shape
    last = (height, width, channels)
    arguments = {"x": ((BATCH, *shape), "float32"), "y": ((BATCH, *last), codes.dtype)}
    with function(arguments) as found:
        x, y = found.buffers

        def body(index: list[Any]) -> None:
            n, h, w, c = index
            tir().buffer_store(y, quantized(x[n, c, h, w], scale, zero_point, codes), index)

        grid.each(found.batch, last, body)
    return found.result


def global_average(
    grid: Grid, size: tuple[int, int, int], multiplier: float, offset: float, codes: Codes
) -> Any:
    """Return the TIR function ``(x, y)``; see ``pool.global_average``. ``x`` is int8."""
    t = tir()
    height, width, channels = size
    arguments = {"x": ((BATCH, *size), "int8"), "y": ((BATCH, 1, 1, channels), codes.dtype)}
    with function(arguments) as found:
        x, y = found.buffers

        def body(index: list[Any]) -> None:
            n, c = index
            total = registers(1)
            t.buffer_store(total, t.int32(0), [0])
            with t.grid(height, width) as (h, w):
                t.buffer_store(total, total[0] + widen(x[n, h, w, c], 1), [0])
            factors = t.float32(multiplier), t.float32(offset)
            t.buffer_store(y, requantize(total[0], *factors, codes, 1), [n, 0, 0, c])

        grid.each(found.batch, (channels,), body)
    return found.result


def maximum(grid: Grid, window: Window, codes: Codes) -> Any:
    """Return the TIR function ``(x, y)``; see ``pool.maximum``."""
    t = tir()
    channels = window.channels
    arguments = {
        "x": ((BATCH, *window.image, channels), codes.dtype),
        "y": ((BATCH, *window.output, channels), codes.dtype),
    }
    with function(arguments) as found:
        x, y = found.buffers

        def body(index: list[Any]) -> None:
            n, h, w, c = index
            border = t.cast(t.int32(codes.low), codes.dtype)
            best = border
            for row, column in places(window, h, w):
                code = t.if_then_else(inside(window, row, column), x[n, row, column, c], border)
                best = t.max(best, code)
            t.buffer_store(y, best, index)

        grid.each(found.batch, (*window.output, channels), body)
    return found.result


def places(window: Window, h: Any, w: Any) -> list[tuple[Any, Any]]:
    """Return the row and column of every input that an output reads."""
    (height, width), (down, right), (top, left) = window.kernel, window.stride, window.padding
    return [
        (h * down + kh - top, w * right + kw - left) for kh in range(height) for kw in range(width)
    ]


def inside(window: Window, row: Any, column: Any) -> Any:
    """Return whether a place is not of the border."""
    t = tir()
    height, width = window.image
    return t.And(t.And(row >= 0, row < height), t.And(column >= 0, column < width))


def registers(count: int) -> Any:
    """Return numbers of a thread's own; indices that are known beforehand make them registers."""
    return tir().alloc_buffer((count,), "int32", scope="local")
