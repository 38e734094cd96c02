"""Depthwise convolution in float32, channels last; weights may be codes."""

from __future__ import annotations

from typing import Any

from qcompile.targets.tvm.kernels.parts import (
    BATCH,
    Accumulators,
    Argument,
    flat,
    function,
    padded_copy,
    powers,
    ramp,
)
from qcompile.targets.tvm.kernels.shapes import Window
from qcompile.targets.tvm.kernels.vectors import Limits, Vectors, constant, multiply_add
from qcompile.targets.tvm.kernels.weights import Coding
from qcompile.targets.tvm.tools import tir


def depthwise(window: Window, vectors: Vectors, coding: Coding, limits: Limits) -> Any:
    """Return the TIR function ``(x, weights, scales, bias, y)``, without scales for float weights.

    As ``float_conv.conv``, but each channel has a kernel of its own, as ``pack_depthwise`` makes it; nothing
    is padded to whole registers; ``scales`` are one a channel.
    """
    channels = window.channels
    positions = -(-window.kernel[0] * window.kernel[1] // coding.pair)
    scales: dict[str, Argument] = {"scales": ((channels,), "float32")} if coding.is_scaled else {}
    arguments: dict[str, Argument] = {
        "x": ((BATCH, *window.image, channels), "float32"),
        "weights": ((positions, channels), coding.dtype),
        **scales,
        "bias": ((channels,), "float32"),
        "y": ((BATCH, *window.output, channels), "float32"),
    }
    with function(arguments) as found, tir().serial(found.batch) as n:
        x, *constants, y = found.buffers
        layer = _Depthwise(window, vectors, coding, limits, constants)
        layer.image(n, x, flat(y))
    return found.result


class _Depthwise:
    def __init__(
        self, window: Window, vectors: Vectors, coding: Coding, limits: Limits, constants: list[Any]
    ) -> None:
        self.window, self.vectors, self.coding, self.limits = window, vectors, coding, limits
        self.weights, *scales, self.bias = constants
        self.scales = scales[0] if scales else None

    def image(self, n: Any, x: Any, y: Any) -> None:
        t = tir()
        window = self.window
        size = (*window.image, window.channels)
        has_border = any(window.padding)
        source = padded_copy(x, n, size, window.padding, 0, 0) if has_border else flat(x)
        before = 0 if has_border else n * window.image[0]
        rows, columns = window.output
        pixels = self._together(columns)
        with t.grid(rows, columns // pixels) as (h, block):
            done = 0
            for lanes, count in self._registers():
                with t.serial(count) as c:
                    start = done + c * lanes
                    self._tile(source, y, before, n, h, block * pixels, start, pixels, lanes)
                done += lanes * count

    def _registers(self) -> list[tuple[int, int]]:
        """Return the widths of registers that make up the channels, and how many of each."""
        whole, rest = divmod(self.window.channels, self.vectors.lanes)
        found = [(self.vectors.lanes, whole)] if whole else []
        return found + [(width, 1) for width in powers(rest)]

    def _together(self, columns: int) -> int:
        """Return how many pixels are computed at a time: so that a row of the kernel has registers too."""
        limit = min(8, self.vectors.count // 2 - 1)
        return max(p for p in range(1, limit + 1) if columns % p == 0)

    def _tile(
        self, source: Any, y: Any, before: Any, n: Any, h: Any, w: Any, start: Any, pixels: int,
        lanes: int,
    ) -> None:  # fmt: skip
        t = tir()
        window = self.window
        sums = Accumulators.make(pixels, lanes, "float32")
        channel = ramp(start, lanes)
        for p in range(pixels):
            sums.set(p, constant(0.0, lanes) if self.scales is not None else self.bias[channel])
        for position in range(window.kernel[0] * window.kernel[1]):
            down, right = divmod(position, window.kernel[1])
            weight = Accumulators.make(1, lanes, "float32")
            weight.set(0, self._weight(position, channel, lanes))
            for p in range(pixels):
                row = before + h * window.stride[0] + down
                column = (w + p) * window.stride[1] + right
                place = (row * window.padded[1] + column) * window.channels + start
                x = source[ramp(place, lanes)]
                sums.set(p, multiply_add(x, weight.get(0), sums.get(p), lanes))
        rows, columns = window.output
        for p in range(pixels):
            value = sums.get(p)
            if self.scales is not None:
                value = multiply_add(value, self.scales[channel], self.bias[channel], lanes)
            place = ((n * rows + h) * columns + w + p) * window.channels + start
            t.buffer_store(y, self.limits.apply(value, lanes), [ramp(place, lanes)])

    def _weight(self, position: int, channel: Any, lanes: int) -> Any:
        stored = self.weights[position // self.coding.pair, channel]
        return self.coding.decode(stored, self.vectors, lanes)[position % self.coding.pair]
