"""Some rows of numbers times some registers of features: what convolutions and linear layers consist of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qcompile.targets.tvm.kernels.parts import (
    Accumulators,
    Argument,
    ramp,
    spread,
    store_features,
)
from qcompile.targets.tvm.kernels.shapes import round_up
from qcompile.targets.tvm.kernels.vectors import Limits, Vectors, constant, multiply_add
from qcompile.targets.tvm.kernels.weights import Coding
from qcompile.targets.tvm.tools import tir

Expr = Any
LATENCY = 8
"""Accumulators that keep the multipliers busy: four cycles, two at a time."""
ALONE = 6
"""Registers of features of one row: each is a stream from memory, and caches have few ways."""
MOST_PIXELS = 16
"""Of a tile: each may take a register for its address."""
SPARE = {32: 1, 8: 2, 4: 4}
"""Registers for one input, and while weights are decoded: by their bits."""
Read = Callable[[int, Expr, Expr], Expr]
"""The number of a pixel at a row of the kernel and a place in that row."""
Span = tuple[int, int, int]
"""``start, count, size``: so many tiles of one size, one after the other."""


@dataclass(frozen=True)
class Product:
    """The sums that give one pixel.

    Args:
        vectors: Registers.
        coding: Of the weights.
        limits: Of the results.
        features: Of the output.
        rows: Rows of the kernel.
        segments: Of a row, with scales of their own.
        length: Numbers of a segment.
    """

    vectors: Vectors
    coding: Coding
    limits: Limits
    features: int
    rows: int
    segments: int
    length: int

    @property
    def blocks(self) -> int:
        """Registers of features."""
        return round_up(self.features, self.vectors.lanes) // self.vectors.lanes

    def arguments(self) -> dict[str, Argument]:
        """Return the constants that a kernel takes: weights, scales if there are any, bias."""
        lanes, coding = self.vectors.lanes, self.coding
        steps = -(-self.length // coding.pair)
        weights = (self.blocks, self.rows, self.segments, steps, lanes)
        scales: dict[str, Argument] = {}
        if coding.is_scaled:
            scales = {"scales": ((self.blocks, coding.groups, lanes), "float32")}
        bias: Argument = ((self.blocks * lanes,), "float32")
        return {"weights": (weights, coding.dtype), **scales, "bias": bias}

    def fits(self, pixels: int, blocks: int) -> bool:
        """Return whether accumulators, weights, and what is decoded or read have registers."""
        if pixels == 1:
            return blocks <= ALONE
        taken = pixels * blocks + blocks * self.coding.pair
        return taken + SPARE[self.coding.bits] <= self.vectors.count

    def cost(self, pixels: int, blocks: int) -> float:
        """Return about how long a step of a tile takes: its products, and half as much for each load."""
        loads = pixels + blocks * self.coding.cost(self.vectors)
        return max(pixels * blocks, LATENCY) + loads / 2

    def tiles(self, places: int) -> tuple[int, int]:
        """Return how many pixels of so many, and registers of features, to compute together."""
        pairs = [
            (p, b)
            for p in range(1, min(places, MOST_PIXELS) + 1)
            for b in range(1, min(self.blocks, self.vectors.count) + 1)
            if self.fits(p, b)
        ]
        return min(pairs, key=lambda pair: (self._total(places, *pair), pair))

    def _total(self, places: int, pixels: int, blocks: int) -> float:
        return sum(
            m * n * self.cost(p, b)
            for _, m, p in spans(places, pixels)
            for _, n, b in spans(self.blocks, blocks)
        )


def spans(total: int, size: int) -> list[Span]:
    """Cut a range into tiles of one size, and a smaller one for what is left."""
    whole, rest = divmod(total, size)
    found = [(0, whole, size)] if whole else []
    return [*found, (whole * size, 1, rest)] if rest else found


class Tile:
    """Emits the code of one tile.

    Args:
        product: What is computed.
        buffers: As ``Product.arguments``, and the output.
    """

    def __init__(self, product: Product, buffers: Sequence[Any]) -> None:
        self.product, self.lanes = product, product.vectors.lanes
        self.weights, *scales, self.bias, self.out = buffers
        self.scales = scales[0] if scales else None

    def emit(
        self, pixels: int, blocks: int, first: Expr,
        read: Read, place: Callable[[int], Expr],
    ) -> None:  # fmt: skip
        """Compute ``pixels`` x ``blocks`` registers.

        Args:
            pixels: How many.
            blocks: Registers of features.
            first: The first of these.
            read: Of the input.
            place: Where a pixel's features begin in the flat output.
        """
        product = self.product
        sums = self._registers(pixels * blocks)
        for p in range(pixels):
            for b in range(blocks):
                sums.set(p * blocks + b, self._start(first + b))
        with tir().grid(product.rows, product.segments) as (row, segment):
            scales = self._scales(blocks, first, segment)
            if pixels > 1 or not scales:
                self._segment(sums, blocks, first, row, segment, scales, read)
            else:
                self._scaled_segment(sums, first, row, segment, scales, read)
        for p in range(pixels):
            for b in range(blocks):
                self._store(sums.get(p * blocks + b), first + b, place(p))

    def _scaled_segment(
        self,
        sums: Accumulators,
        first: Expr,
        row: Expr,
        segment: Expr,
        scales: list[Expr],
        read: Read,
    ) -> None:
        """Add one row's products with a segment; scale their sum, which is less work than the weights."""
        blocks = len(scales)
        inner = self._registers(blocks)
        for b in range(blocks):
            inner.set(b, constant(0.0, self.lanes))
        self._segment(inner, blocks, first, row, segment, [], read)
        for b, scale in enumerate(scales):
            sums.set(b, multiply_add(inner.get(b), scale, sums.get(b), self.lanes))

    def _segment(
        self, sums: Accumulators, blocks: int, first: Expr, row: Expr, segment: Expr,
        scales: list[Expr], read: Read,
    ) -> None:  # fmt: skip
        """Add the products with a segment of weights."""
        product, lanes = self.product, self.lanes
        pixels = len(sums.buffers) // blocks
        whole, odd = divmod(product.length, product.coding.pair)

        def step(k: Expr, count: int) -> None:
            start = segment * product.length + k * product.coding.pair
            stored = [
                self.weights[first + b, row, segment, k, ramp(0, lanes)] for b in range(blocks)
            ]
            parts = self._decoded(stored, scales, count)
            for q in range(count):
                for p in range(pixels):
                    x = spread(read(p, row, start + q), lanes)
                    for b in range(blocks):
                        i, w = p * blocks + b, parts.get(b * count + q)
                        sums.set(i, multiply_add(x, w, sums.get(i), lanes))

        if whole:
            with tir().serial(whole) as k:
                step(k, product.coding.pair)
        if odd:
            step(whole, 1)

    def _registers(self, count: int) -> Accumulators:
        return Accumulators.make(count, self.lanes, "float32")

    def _scales(self, blocks: int, first: Expr, segment: Expr) -> list[Expr]:
        """Return a segment's scales of each block, if a feature has several."""
        groups, every = self.product.coding.groups, ramp(0, self.lanes)
        if groups == 1 or self.scales is None:
            return []
        return [self.scales[first + b, segment % groups, every] for b in range(blocks)]

    def _start(self, block: Expr) -> Expr:
        """Return what a sum starts from: the bias, unless all of the sum is scaled at its end."""
        if self._is_scaled_last():
            return constant(0.0, self.lanes)
        return self.bias[ramp(block * self.lanes, self.lanes)]

    def _is_scaled_last(self) -> bool:
        return self.scales is not None and self.product.coding.groups == 1

    def _decoded(self, stored: list[Expr], scales: list[Expr], count: int) -> Accumulators:
        """Return registers of weights: of each block, those of ``count`` neighbouring inputs."""
        found = self._registers(len(stored) * count)
        for b, codes in enumerate(stored):
            values = self.product.coding.decode(codes, self.product.vectors, self.lanes)
            for q, value in enumerate(values[:count]):
                found.set(b * count + q, value * scales[b] if scales else value)
        return found

    def _store(self, value: Expr, block: Expr, place: Expr) -> None:
        lanes, features = self.lanes, self.product.features
        channel = block * lanes
        if self._is_scaled_last():
            assert self.scales is not None
            scale = self.scales[block, 0, ramp(0, lanes)]
            value = multiply_add(value, scale, self.bias[ramp(channel, lanes)], lanes)
        limited = self.product.limits.apply(value, lanes)
        store_features(self.out, place + channel, limited, channel, features, lanes)
