"""Convolutions and linear layers in float32, channels last; weights may be codes."""

from __future__ import annotations

from typing import Any

from qcompile.targets.tvm.kernels.float_tile import Product, Tile, spans
from qcompile.targets.tvm.kernels.parts import BATCH, flat, function, padded_copy
from qcompile.targets.tvm.kernels.shapes import Window
from qcompile.targets.tvm.kernels.vectors import Limits, Vectors
from qcompile.targets.tvm.kernels.weights import Coding, segments_of
from qcompile.targets.tvm.tools import tir

MANY_ROWS = 64
"""Rows for which the large tiles of a linear layer are chosen."""


def conv(window: Window, vectors: Vectors, coding: Coding, limits: Limits) -> Any:
    """Return the TIR function ``(x, weights, scales, bias, y)``, without scales for float weights.

    ``x`` is ``[batch, height, width, channels]``, ``y`` the same of the output, both float32; the constants
    are as ``weights.pack`` and ``pack_scales`` make them, ``bias`` one a feature, padded to whole registers.
    """
    segments = segments_of(window.kernel[1], coding)
    length = window.kernel[1] * window.channels // segments
    shape = window.features, window.kernel[0], segments, length
    product = Product(vectors, coding, limits, *shape)
    arguments = {
        "x": ((BATCH, *window.image, window.channels), "float32"),
        **product.arguments(),
        "y": ((BATCH, *window.output, window.features), "float32"),
    }
    with function(arguments) as found, tir().serial(found.batch) as n:
        _image(window, product, n, *found.buffers)
    return found.result


def _image(window: Window, product: Product, n: Any, x: Any, *rest: Any) -> None:
    t = tir()
    has_border = any(window.padding)
    size = (*window.image, window.channels)
    source = padded_copy(x, n, size, window.padding, 0, 0) if has_border else flat(x)
    rows, columns = (1, _count(window.output)) if window.is_pointwise else window.output
    width = _count(window.image) if window.is_pointwise else window.padded[1]
    height = 1 if window.is_pointwise else window.padded[0]
    before = 0 if has_border else n * height
    tile = Tile(product, [*rest[:-1], flat(rest[-1])])
    pixels, blocks = product.tiles(columns)

    def emit(h: Any, w: Any, f: Any, p: int, b: int) -> None:
        def read(i: int, row: Any, k: Any) -> Any:
            down = before + h * window.stride[0] + row
            return source[(down * width + (w + i) * window.stride[1]) * window.channels + k]

        def place(i: int) -> Any:
            return ((n * rows + h) * columns + w + i) * product.features

        tile.emit(p, b, f, read, place)

    for first, many, b in spans(product.blocks, blocks):
        for left, across, p in spans(columns, pixels):
            if _weights_outside(window, product):
                with t.grid(many, rows, across) as (f, h, w):
                    emit(h, left + w * p, first + f * b, p, b)
            else:
                with t.grid(rows, across, many) as (h, w, f):
                    emit(h, left + w * p, first + f * b, p, b)


def _weights_outside(window: Window, product: Product) -> bool:
    """Return whether to go over the image once for each tile of weights: if these are more bytes."""
    weights = product.features * product.rows * window.kernel[1] * window.channels
    return weights * product.coding.bits > _count(window.padded) * window.channels * 32


def _count(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def linear(channels: int, features: int, vectors: Vectors, coding: Coding, limits: Limits) -> Any:
    """Return the TIR function ``(x, weights, scales, bias, y)`` of ``[rows, channels]``; see ``conv``.

    How many rows there are is known when it runs: tiles of many, then of half as many, down to one. Weights
    are read once for all rows that one size of tiles takes.
    """
    t = tir()
    product = Product(
        vectors, coding, limits, features, 1, coding.groups, channels // coding.groups
    )
    arguments = {
        "x": ((BATCH, channels), "float32"),
        **product.arguments(),
        "y": ((BATCH, features), "float32"),
    }
    most, _ = row_tiles(product)[0]
    with function(arguments) as found:
        x, *constants, y = found.buffers
        tile = Tile(product, [*constants, flat(y)])
        source, rows = flat(x), found.batch

        def emit(start: Any, f: Any, p: int, b: int) -> None:
            tile.emit(
                p, b, f,
                lambda i, row, k: source[(start + i) * channels + k],
                lambda i: (start + i) * features,
            )  # fmt: skip

        for size, blocks in row_tiles(product):
            for first, many, b in spans(product.blocks, blocks):
                if size == most:
                    with t.grid(many, rows // size) as (f, r):
                        emit(r * size, first + f * b, size, b)
                    continue
                with t.If(rows % (2 * size) >= size), t.Then(), t.serial(many) as f:
                    emit(rows // (2 * size) * (2 * size), first + f * b, size, b)
    return found.result


def row_tiles(product: Product) -> list[tuple[int, int]]:
    """Return tiles of rows and registers, each of half as many rows as the one before."""
    fitting = [p for p in (1, 2, 4, 8, 16) if product.fits(p, 1)]
    each = {p: _best_blocks(product, p) for p in fitting}
    most = min(fitting, key=lambda p: (MANY_ROWS // p * product._total(p, p, each[p]), -p))
    return [(p, each[p]) for p in reversed(fitting) if p <= most]


def _best_blocks(product: Product, pixels: int) -> int:
    possible = [b for b in range(1, product.blocks + 1) if product.fits(pixels, b)]
    return min(possible, key=lambda b: (product._total(pixels, pixels, b), -b))
