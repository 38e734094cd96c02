"""Pooling and sums of floats beside PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as functional

from qcompile.targets.tvm.kernels import float_elementwise, float_pool
from qcompile.targets.tvm.kernels.shapes import Window
from qcompile.targets.tvm.kernels.vectors import Limits


def noise(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(5, 7, 3), (4, 4, 16)])
def test_a_sum(float_cpu: Any, shape: tuple[int, int, int]) -> None:
    a, b = noise(3, *shape), np.flip(noise(3, *shape)).copy()
    a[0, 0, 0, 0] = np.nan
    kernel = float_elementwise.add(shape, float_cpu.vectors, Limits(-0.5, 1.0))
    found = float_cpu.call(kernel, a, b, np.zeros_like(a))
    np.testing.assert_array_equal(found, np.clip(a + b, -0.5, 1.0))


@pytest.mark.parametrize("channels", [1, 37, 48])
def test_the_mean_of_an_image(float_cpu: Any, channels: int) -> None:
    x = noise(2, 5, 7, channels)
    kernel = float_pool.global_average((5, 7, channels), float_cpu.vectors)
    found = float_cpu.call(kernel, x, np.zeros((2, 1, 1, channels), np.float32))
    expected = x.mean((1, 2), keepdims=True, dtype=np.float64)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    "window",
    [
        Window((6, 7), 24, 24, (3, 3), (2, 2), (1, 1)),
        Window((6, 7), 5, 5, (2, 3), (1, 2)),
        Window((3, 3), 16, 16, (3, 3), (1, 1)),
    ],
    ids=str,
)
def test_the_greatest_of_a_window(float_cpu: Any, window: Window) -> None:
    x = noise(2, *window.image, window.channels) - 5  # below 0: a border of zeros would be greater
    x[0, 1, 1, 0], x[0, 0, 0, 1] = np.nan, np.inf
    y = np.zeros((2, *window.output, window.channels), np.float32)
    found = float_cpu.call(float_pool.maximum(window, float_cpu.vectors), x, y)
    image = torch.from_numpy(x).permute(0, 3, 1, 2)
    expected = functional.max_pool2d(image, window.kernel, window.stride, window.padding)
    np.testing.assert_array_equal(found, expected.permute(0, 2, 3, 1).numpy())
    assert np.isnan(found).any()
