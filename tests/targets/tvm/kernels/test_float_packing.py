"""Float weights in memory, and tiles: nothing lost, nothing beyond the registers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.targets.tvm.kernels import float_conv, weights
from qcompile.targets.tvm.kernels.float_tile import Product, spans
from qcompile.targets.tvm.kernels.vectors import (
    NEON,
    XMM,
    YMM,
    ZMM,
    Limits,
    Vectors,
    for_floats,
)
from qcompile.targets.tvm.kernels.weights import Coding

VECTORS = st.sampled_from([ZMM, YMM, XMM, NEON])
CODINGS = st.sampled_from([Coding(), Coding(8), Coding(4), Coding(4, 3)])
SIZES = st.integers(1, 40)


@given(
    vectors=VECTORS, coding=CODINGS, out=SIZES, channels=st.integers(1, 9),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)  # fmt: skip
@settings(max_examples=15, deadline=None)
def test_packed_weights_come_back(
    vectors: Vectors, coding: Coding, out: int, channels: int, kernel: tuple[int, int]
) -> None:
    shape = out, channels * coding.groups, *kernel
    most = 2 ** min(coding.bits - 1, 7)
    dtype = np.float32 if coding.bits == 32 else np.int8
    weight = np.random.default_rng(0).integers(-most, most, shape).astype(dtype)
    packed = weights.pack(weight, coding, vectors.lanes)
    np.testing.assert_array_equal(weights.unpack(packed, shape, coding), weight)
    product = Product(
        vectors, coding, Limits(), out, kernel[0],
        weights.segments_of(kernel[1], coding),
        kernel[1] * shape[1] // weights.segments_of(kernel[1], coding),
    )  # fmt: skip
    assert product.arguments()["weights"] == (packed.shape, str(packed.dtype))
    alone = weight[:, :1]
    paired = weights.pack_depthwise(alone, coding)
    np.testing.assert_array_equal(weights.unpack_depthwise(paired, alone.shape, coding), alone)


def test_four_bits_take_half_a_byte() -> None:
    weight = np.zeros((32, 64, 1, 1), np.int8)
    sizes = [weights.pack(weight, Coding(bits), 16).nbytes for bits in (8, 4)]
    assert sizes == [2048, 1024]
    weight[3, :2, 0, 0] = -8, 5
    assert weights.pack(weight, Coding(4), 16)[0, 0, 0, 0, 3] == np.uint8(0x58).view(np.int8)


def test_scales_lie_beside_their_features() -> None:
    scale = np.arange(1, 11, dtype=np.float32).reshape(5, 2)
    packed = weights.pack_scales(scale, 4)
    assert packed.shape == (2, 2, 4)
    np.testing.assert_array_equal(packed[0], scale[:4].T)
    np.testing.assert_array_equal(packed[1], [[9, 0, 0, 0], [10, 0, 0, 0]])


@given(total=st.integers(1, 200), size=st.integers(1, 16))
@settings(max_examples=15, deadline=None)
def test_spans_cover_a_range_once(total: int, size: int) -> None:
    covered = [
        start + tile * step + i
        for start, count, step in spans(total, size)
        for tile in range(count)
        for i in range(step)
    ]
    assert covered == list(range(total))


@given(vectors=VECTORS, coding=CODINGS, features=st.integers(1, 300), places=st.integers(1, 200))
@settings(max_examples=15, deadline=None)
def test_a_tile_fits_the_registers(
    vectors: Vectors, coding: Coding, features: int, places: int
) -> None:
    product = Product(vectors, coding, Limits(), features, 1, coding.groups, 32)
    tiles = [product.tiles(places), *float_conv.row_tiles(product)]
    for pixels, blocks in tiles:
        accumulators, decoded = pixels * blocks, coding.pair * (blocks if pixels > 1 else 1)
        assert accumulators + decoded + 1 <= vectors.count
        assert blocks <= product.blocks
    rows = [pixels for pixels, _ in tiles[1:]]
    assert rows == sorted(rows, reverse=True)
    assert rows == [2**i for i in reversed(range(len(rows)))], "any number of rows is a sum of them"


@pytest.mark.parametrize(
    ("arch", "isa", "expected"),
    [
        ("x86_64", {"avx2", "fma", "avx512f"}, ZMM),
        ("x86_64", {"avx2", "fma"}, YMM),
        ("x86_64", set(), XMM),
        ("aarch64", {"neon"}, NEON),
    ],
)
def test_the_widest_registers_of_a_cpu(arch: str, isa: set[str], expected: Vectors) -> None:
    assert for_floats(arch, frozenset(isa)) is expected
