"""Convolution of 8-bit codes on NVIDIA GPUs, channels last; see ``cuda``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.targets.tvm.kernels.cuda import Grid, inside, places, registers
from qcompile.targets.tvm.kernels.parts import BATCH, Argument, Codes, function, requantize, widen
from qcompile.targets.tvm.kernels.shapes import Window
from qcompile.targets.tvm.tools import tir

STEP = 4
"""Codes that one DP4A takes."""
FEATURES = 4
"""That a thread computes: each code that it reads is of use so often."""
PIXELS = 4
"""That a thread computes where there are threads enough: each weight that it reads is of use so often."""
ENOUGH = 16384
"""Threads that keep a GPU busy: about 128 for each multiprocessor."""


def pack(weight: NDArray[np.int8]) -> NDArray[Any]:
    """Return the weights of a convolution as its kernel reads them.

    Args:
        weight: ``[out, in, height, width]``.

    Returns:
        int32 ``[height * width * in / 4, out]``, four neighbouring channels in each, or, where ``in`` is no
        multiple of four, int8 ``[height * width * in, out]``.
    """
    rows = weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])
    if weight.shape[1] % STEP:
        return np.ascontiguousarray(rows)
    fours = rows.reshape(-1, STEP, weight.shape[0]).transpose(0, 2, 1)
    return np.ascontiguousarray(fours).view(np.int32)[:, :, 0]


def conv(grid: Grid, window: Window, zero_point: int, codes: Codes) -> Any:
    """Return the TIR function ``(x, weights, sums, multiplier, offset, y)``; see ``conv.conv``.

    ``x`` is int8. Nothing is padded to whole registers.
    """
    return _Conv(grid, window, zero_point, codes).build()


@dataclass
class _Conv:
    grid: Grid
    window: Window
    zero_point: int
    codes: Codes

    def __post_init__(self) -> None:
        features, (rows, columns) = self.window.features, self.window.output
        self.step = 1 if self.window.channels % STEP else STEP
        self.features = next(n for n in (FEATURES, 2, 1) if features % n == 0)
        self.groups = features // self.features
        wanted = rows * columns * self.groups // ENOUGH
        self.pixels = next(n for n in (PIXELS, 2, 1) if columns % n == 0 and n <= max(wanted, 1))

    def build(self) -> Any:
        window = self.window
        rows, columns = window.output
        steps = window.kernel[0] * window.kernel[1] * window.channels // self.step
        weights = (steps, window.features), "int8" if self.step == 1 else "int32"
        arguments: dict[str, Argument] = {
            "x": ((BATCH, *window.image, window.channels), "int8"),
            "weights": weights,
            "sums": ((window.features,), "int32"),
            "multiplier": ((window.features,), "float32"),
            "offset": ((window.features,), "float32"),
            "y": ((BATCH, rows, columns, window.features), self.codes.dtype),
        }
        with function(arguments) as found:
            shape = rows, columns // self.pixels, self.groups
            self.grid.each(found.batch, shape, lambda index: self._thread(*index, *found.buffers))
        return found.result

    def _thread(
        self, n: Any, h: Any, block: Any, group: Any, x: Any, weights: Any, *rest: Any
    ) -> None:
        t = tir()
        sums, multiplier, offset, y = rest
        total, code = registers(self.pixels * self.features), registers(1)
        channels = [group + f * self.groups for f in range(self.features)]
        columns = [block * self.pixels + p for p in range(self.pixels)]
        for i in range(self.pixels * self.features):
            t.buffer_store(total, sums[channels[i % self.features]], [i])
        with t.grid(*self.window.kernel, self.window.channels // self.step) as (kh, kw, k):
            row = h * self.window.stride[0] + kh - self.window.padding[0]
            step = (kh * self.window.kernel[1] + kw) * (self.window.channels // self.step) + k
            for p, column in enumerate(columns):
                place = column * self.window.stride[1] + kw - self.window.padding[1]
                t.buffer_store(code, self._codes(x, n, row, place, k), [0])
                for f, channel in enumerate(channels):
                    i = p * self.features + f
                    t.buffer_store(total, self._dot(total[i], code[0], weights[step, channel]), [i])
        for p, column in enumerate(columns):
            for f, channel in enumerate(channels):
                factors = multiplier[channel], offset[channel]
                found = requantize(total[p * self.features + f], *factors, self.codes, 1)
                t.buffer_store(y, found, [n, h, column, channel])

    def _codes(self, x: Any, n: Any, row: Any, column: Any, k: Any) -> Any:
        """Return the codes of one step as one number; zeros' codes outside of the image."""
        t = tir()
        if self.step == 1:
            found, zero = widen(x[n, row, column, k], 1), self.zero_point
        else:
            found = t.reinterpret("int32", x[n, row, column, t.ramp(k * STEP, 1, STEP)])
            zero = int(np.full(STEP, self.zero_point, np.int8).view(np.int32)[0])
        if self.window.padding == (0, 0):
            return found
        return t.if_then_else(inside(self.window, row, column), found, t.int32(zero))

    def _dot(self, total: Any, codes: Any, weights: Any) -> Any:
        if self.step == 1:
            return total + codes * widen(weights, 1)
        return self.grid.dp4a(codes, weights, total)


def depthwise(grid: Grid, window: Window, zero_point: int, codes: Codes) -> Any:
    """Return the TIR function ``(x, weights, sums, multiplier, offset, y)``; see ``depthwise.depthwise``."""
    channels = window.channels
    arguments: dict[str, Argument] = {
        "x": ((BATCH, *window.image, channels), "int8"),
        "weights": ((*window.kernel, channels), "int8"),
        "sums": ((channels,), "int32"),
        "multiplier": ((channels,), "float32"),
        "offset": ((channels,), "float32"),
        "y": ((BATCH, *window.output, channels), codes.dtype),
    }
    with function(arguments) as found:
        x, weights, sums, multiplier, offset, y = found.buffers

        def body(index: list[Any]) -> None:
            t = tir()
            n, h, w, c = index
            zero = t.cast(t.int32(zero_point), "int8")
            total = sums[c]
            for at, (row, column) in enumerate(places(window, h, w)):
                kh, kw = divmod(at, window.kernel[1])
                code = t.if_then_else(inside(window, row, column), x[n, row, column, c], zero)
                total = total + widen(code, 1) * widen(weights[kh, kw, c], 1)
            t.buffer_store(y, requantize(total, multiplier[c], offset[c], codes, 1), index)

        grid.each(found.batch, (*window.output, channels), body)
    return found.result
