"""Layouts and tiles: nothing lost, what is added is zero, everything divides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.targets.tvm.kernels import conv, depthwise
from qcompile.targets.tvm.kernels.instructions import (
    MADD_256,
    SDOT,
    SMULL,
    VNNI_256,
    VNNI_512,
    Instructions,
    for_cpu,
)
from qcompile.targets.tvm.kernels.shapes import Window, round_up

ALL = st.sampled_from([VNNI_512, VNNI_256, MADD_256, SDOT, SMULL])
SIZES = st.integers(1, 40)


@given(
    instructions=ALL, out=SIZES, channels=SIZES, height=st.integers(1, 5), width=st.integers(1, 5)
)
@settings(max_examples=15)
def test_packed_weights_are_the_weights_and_zeros(
    instructions: Instructions, out: int, channels: int, height: int, width: int
) -> None:
    count = out * channels * height * width
    weight = (np.arange(count) % 127 + 1).astype(np.int8).reshape(out, channels, height, width)
    packed = conv.pack(weight, instructions)
    lanes, run = instructions.lanes, width * channels
    blocks, rows, steps, four = packed.shape
    assert (blocks, rows, steps, four) == (-(-out // lanes), height, -(-run // 4), 4 * lanes)
    for o in range(out):
        lane = packed[o // lanes, :, :, 4 * (o % lanes) : 4 * (o % lanes) + 4].reshape(height, -1)
        expected = weight[o].transpose(1, 2, 0).reshape(height, run)
        np.testing.assert_array_equal(lane[:, :run], expected)
    assert np.count_nonzero(packed) == count


@given(instructions=ALL, count=SIZES)
@settings(max_examples=10)
def test_numbers_are_padded_to_whole_registers(instructions: Instructions, count: int) -> None:
    values = np.arange(1, count + 1, dtype=np.float32)
    padded = conv.pad_features(values, instructions)
    assert padded.dtype == np.float32
    assert len(padded) == round_up(count, instructions.lanes)
    np.testing.assert_array_equal(padded[:count], values)
    assert not padded[count:].any()


def test_depthwise_weights_lie_channels_last() -> None:
    weight = np.arange(5 * 3 * 2, dtype=np.int8).reshape(5, 1, 3, 2)
    packed = depthwise.pack(weight)
    assert packed.flags.c_contiguous
    for c in range(5):
        np.testing.assert_array_equal(packed[:, :, c], weight[c, 0])


@given(
    instructions=ALL, image=st.tuples(SIZES, SIZES), features=st.integers(1, 300),
    kernel=st.sampled_from([(1, 1), (3, 3), (1, 5)]),
)  # fmt: skip
@settings(max_examples=15)
def test_a_tile_divides_the_image_and_fits_the_registers(
    instructions: Instructions, image: tuple[int, int], features: int, kernel: tuple[int, int]
) -> None:
    window = Window(image, 4, features, kernel, (1, 1), (kernel[0] // 2, kernel[1] // 2))
    pixels, blocks = conv.tile(window, instructions)
    width = image[0] * image[1] if kernel == (1, 1) else image[1]
    assert width % pixels == 0
    assert round_up(features, instructions.lanes) // instructions.lanes % blocks == 0
    assert 1 <= pixels * blocks <= instructions.registers
    weights = blocks if pixels > 1 else 1
    assert pixels * blocks + weights + 1 <= instructions.vectors, "and four codes"


@pytest.mark.parametrize(
    ("arch", "isa", "expected"),
    [
        ("x86_64", {"avx2", "avx512vnni", "avxvnni"}, VNNI_512),
        ("x86_64", {"avx2", "avxvnni"}, VNNI_256),
        ("x86_64", {"avx2", "avx512f"}, MADD_256),
        ("aarch64", {"neon", "dotprod"}, SDOT),
        ("aarch64", {"neon"}, SMULL),
    ],
)
def test_the_best_instructions_of_a_cpu(arch: str, isa: set[str], expected: Instructions) -> None:
    assert for_cpu(arch, frozenset(isa)) is expected
