"""Averages and maxima of codes against the ops in PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qcompile.targets.tvm import code_ops
from qcompile.targets.tvm.kernels.parts import Codes
from qcompile.targets.tvm.kernels.shapes import Window

CHANNELS = st.sampled_from([1, 3, 12, 37, 64])
SIZES = st.integers(1, 9)


def any_codes(cpu: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return random codes with both ends among them."""
    low, high = cpu.limits
    found = np.random.default_rng(0).integers(low, high + 1, shape)
    found.flat[0], found.flat[-1] = low, high
    return found.astype(cpu.dtype)


@settings(max_examples=4)
@given(
    size=st.tuples(SIZES, SIZES, st.sampled_from([12, 37, 64])), batch=st.sampled_from([1, 3]),
    ratio=st.floats(0.2, 5), offset=st.floats(-99, 99), to=st.sampled_from(["uint8", "int8"]),
)  # fmt: skip
def test_global_average(
    cpu: Any, equal_codes: Any, size: tuple[int, int, int], batch: int, ratio: float, offset: float,
    to: str,
) -> None:  # fmt: skip
    x = any_codes(cpu, (batch, *size))
    limits = (0, 255) if to == "uint8" else (-128, 127)
    factor = ratio / (size[0] * size[1])
    kernel = cpu.kernels.global_average(size, factor, offset, Codes(to, *limits))
    found = cpu.call(kernel, x, np.zeros((batch, 1, 1, size[2]), to))
    given_ = torch.from_numpy(x), factor, offset, *limits, to
    equal_codes(found, code_ops.integer_global_average(*given_).numpy())


def test_the_average_of_the_greatest_codes_is_their_sum(cpu: Any) -> None:
    x = np.full((1, 40, 40, 3), cpu.limits[1], cpu.dtype)
    kernel = cpu.kernels.global_average((40, 40, 3), 1.0, 0.0, Codes("float32"))
    found = cpu.call(kernel, x, np.zeros((1, 1, 1, 3), np.float32))
    assert found.flatten().tolist() == [1600 * cpu.limits[1]] * 3


@settings(max_examples=4)
@given(
    image=st.tuples(st.integers(3, 9), st.integers(3, 9)), channels=CHANNELS,
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)), batch=st.sampled_from([1, 3]),
    is_padded=st.booleans(), is_shown_whole=st.booleans(),
)  # fmt: skip
def test_maximum(
    cpu: Any, image: tuple[int, int], channels: int, kernel: tuple[int, int],
    stride: tuple[int, int], batch: int, is_padded: bool, is_shown_whole: bool,
) -> None:  # fmt: skip
    padding = (kernel[0] // 2, kernel[1] // 2) if is_padded else (0, 0)
    window = Window(image, channels, channels, kernel, stride, padding)
    low, high = cpu.limits if is_shown_whole else (cpu.limits[0] + 9, cpu.limits[1] - 9)
    x = np.clip(any_codes(cpu, (batch, *image, channels)), low, high)
    built = cpu.kernels.maximum(window, Codes(cpu.name, low, high))
    found = cpu.call(built, x, np.zeros((batch, *window.output, channels), cpu.dtype))
    sizes = list(kernel), list(stride), list(padding)
    expected = code_ops.integer_max_pool2d(torch.from_numpy(x), *sizes, low, high)
    np.testing.assert_array_equal(found, expected.numpy())
