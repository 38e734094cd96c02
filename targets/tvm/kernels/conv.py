"""Convolution of 8-bit codes, channels last: dots of four neighbours in memory at a time.

In a row of pixels whose channels lie together, the ``kernel width x channels`` codes that one output pixel
reads of one input row are neighbours; they are taken four at a time, the rest multiplied by weights of zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.targets.tvm.kernels.instructions import Instructions
from qcompile.targets.tvm.kernels.parts import (
    BATCH,
    Accumulators,
    Argument,
    Codes,
    flat,
    function,
    padded_copy,
    ramp,
    requantize,
    store_features,
)
from qcompile.targets.tvm.kernels.shapes import Window, round_up
from qcompile.targets.tvm.tools import tir

STEP = 4
"""Codes that one dot takes."""


def pack(weight: NDArray[np.int8], instructions: Instructions) -> NDArray[np.int8]:
    """Return the weights as the kernel reads them.

    Args:
        weight: ``[out, in, height, width]``.
        instructions: For whom.

    Returns:
        ``[out / lanes, height, width * in / 4, lanes * 4]``, zeros where the sizes do not divide.
    """
    out, channels, height, width = weight.shape
    lanes = instructions.lanes
    run = round_up(width * channels, STEP)
    flat = np.zeros((round_up(out, lanes), height, run), np.int8)
    flat[:out, :, : width * channels] = weight.transpose(0, 2, 3, 1).reshape(out, height, -1)
    blocks = flat.reshape(-1, lanes, height, run // STEP, STEP)
    return np.ascontiguousarray(blocks.transpose(0, 2, 3, 1, 4)).reshape(
        -1, height, run // STEP, lanes * STEP
    )


def pad_features(values: NDArray[Any], instructions: Instructions) -> NDArray[Any]:
    """Return one number a feature with zeros up to whole registers."""
    return np.pad(values, (0, round_up(len(values), instructions.lanes) - len(values)))


def tile(window: Window, instructions: Instructions) -> tuple[int, int]:
    """Return how many pixels and how many registers of features are computed together.

    Both divide what there is. Of all that fit the registers the one with the fewest loads for each dot.
    """
    blocks = round_up(window.features, instructions.lanes) // instructions.lanes
    width = _places(window)[1]
    pairs = [
        (p, f)
        for p in range(1, width + 1)
        for f in range(1, blocks + 1)
        if width % p == 0 and blocks % f == 0 and _fits(p, f, instructions)
    ]
    return min(pairs, key=lambda t: (1 / t[0] + 1 / t[1], t))


def _fits(pixels: int, blocks: int, instructions: Instructions) -> bool:
    """Return whether accumulators, one pixel's codes, and weights of more than one use have registers."""
    accumulators, weights = pixels * blocks, blocks if pixels > 1 else 1
    most = min(instructions.registers, instructions.vectors - 1 - weights)
    return accumulators <= most


def _places(window: Window) -> tuple[int, int]:
    """Return the rows and columns of output pixels; those of a pointwise layer are one row."""
    rows, columns = window.output
    return (1, rows * columns) if window.is_pointwise else (rows, columns)


def conv(window: Window, instructions: Instructions, zero_point: int, codes: Codes) -> Any:
    """Return the TIR function ``(x, weights, sums, multiplier, offset, y)``.

    ``x`` is ``[batch, height, width, channels]``, ``y`` the same of the output; ``sums`` int32 (what each
    feature starts from: minus the zero point times its weights), ``multiplier`` and ``offset`` float32, one a
    feature, padded to whole registers.
    """
    return _Conv(window, instructions, zero_point, codes).build()


class _Conv:
    def __init__(
        self, window: Window, instructions: Instructions, zero_point: int, codes: Codes
    ) -> None:
        self.window, self.instructions = window, instructions
        self.zero_point, self.codes = zero_point, codes
        self.lanes = instructions.lanes
        self.features = round_up(window.features, self.lanes)
        self.run = round_up(window.kernel[1] * window.channels, STEP)
        self.pixels, self.blocks = tile(window, instructions)

    def build(self) -> Any:
        window, lanes = self.window, self.lanes
        dtype = "int8" if self.instructions.signed else "uint8"
        blocks = (self.features // lanes, window.kernel[0], self.run // STEP, lanes * STEP)
        arguments: dict[str, Argument] = {
            "x": ((BATCH, *window.image, window.channels), dtype),
            "weights": (blocks, "int8"),
            "sums": ((self.features,), "int32"),
            "multiplier": ((self.features,), "float32"),
            "offset": ((self.features,), "float32"),
            "y": ((BATCH, *window.output, window.features), self.codes.dtype),
        }
        with function(arguments) as found, tir().serial(found.batch) as n:
            self._image(n, *found.buffers)
        return found.result

    def _image(self, n: Any, x: Any, *rest: Any) -> None:
        t = tir()
        window = self.window
        if window.padding != (0, 0) or self._overruns():
            size = (*window.image, window.channels)
            source = padded_copy(x, n, size, window.padding, self.zero_point, STEP)
        else:
            source = None
        rows, columns = _places(window)
        places, features = (rows, columns // self.pixels), (self._groups(),)
        outer, inner = (features, places) if self._weights_outside() else (places, features)
        with t.grid(*outer, *inner) as indices:
            f, h, w = indices if outer is features else (indices[2], *indices[:2])
            self._tile(n, h, w * self.pixels, f * self.blocks, x, source, *rest)

    def _weights_outside(self) -> bool:
        """Return whether to go over the image once for each tile of weights: if these are more bytes."""
        height, width = self.window.padded
        weights = self.features * self.window.kernel[0] * self.run
        return weights > height * width * self.window.channels

    def _overruns(self) -> bool:
        """Return whether dots read beyond the pixels that they need."""
        return self.run != self.window.kernel[1] * self.window.channels

    def _groups(self) -> int:
        return self.features // self.lanes // self.blocks

    def _tile(
        self, n: Any, h: Any, w: Any, f: Any, x: Any, source: Any,
        weights: Any, sums: Any, multiplier: Any, offset: Any, y: Any,
    ) -> None:  # fmt: skip
        t = tir()
        lanes = self.lanes
        registers = Accumulators.make(self.pixels * self.blocks, lanes)
        for p in range(self.pixels):
            for b in range(self.blocks):
                registers.set(p * self.blocks + b, sums[ramp((f + b) * lanes, lanes)])
        with t.grid(self.window.kernel[0], self.run // STEP) as (kh, k):
            for p in range(self.pixels):
                four = self._codes(x, source, n, h, w + p, kh, k)
                for b in range(self.blocks):
                    i = p * self.blocks + b
                    part = weights[f + b, kh, k, ramp(0, lanes * STEP)]
                    registers.set(i, self.instructions.dot(registers.get(i), four, part))
        for p in range(self.pixels):
            for b in range(self.blocks):
                channel = (f + b) * lanes
                self._store(
                    registers.get(p * self.blocks + b), n, h, w + p, channel, multiplier, offset, y
                )

    def _codes(self, x: Any, source: Any, n: Any, h: Any, w: Any, kh: Any, k: Any) -> Any:
        window = self.window
        row, column = h * window.stride[0] + kh, w * window.stride[1]
        if source is None:
            height, width = _places(window) if window.is_pointwise else window.image
            place = (n * height + row) * width + column
            return flat(x)[ramp(place * window.channels + k * STEP, STEP)]
        start = (row * window.padded[1] + column) * window.channels + k * STEP
        return source[ramp(start, STEP)]

    def _store(
        self, sums: Any, n: Any, h: Any, w: Any, channel: Any, multiplier: Any, offset: Any, y: Any
    ) -> None:
        lanes, features = self.lanes, self.window.features
        whole = ramp(channel, lanes)
        found = requantize(sums, multiplier[whole], offset[whole], self.codes, lanes)
        rows, columns = _places(self.window)
        start = ((n * rows + h) * columns + w) * features + channel
        store_features(flat(y), start, found, channel, features, lanes)
