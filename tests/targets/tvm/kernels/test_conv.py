"""Convolutions of codes: the sums are exact, the codes too but where floats round between two."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qcompile.targets.tvm.code_ops import integer_conv2d
from qcompile.targets.tvm.kernels.parts import Codes
from qcompile.targets.tvm.kernels.shapes import Window

VALUES = Codes("float32")
KINDS = pytest.mark.parametrize("is_depthwise", [False, True], ids=["conv", "depthwise"])


@st.composite
def windows(draw: st.DrawFn, is_depthwise: bool) -> Window:
    """Draw a geometry with at least one output."""
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    image = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = draw(st.sampled_from([(0, 0), (1, 1), (0, 2), (2, 1)]))
    channels = draw(st.sampled_from([1, 3, 12, 32, 37] if is_depthwise else [1, 3, 12]))
    features = channels if is_depthwise else draw(st.sampled_from([1, 7, 10, 16, 37]))
    found = Window(image, channels, features, kernel, stride, padding)
    assume(min(s + 2 * p - k for s, p, k in zip(image, padding, kernel, strict=True)) >= 0)
    return found


class Layer:
    """A layer with random codes and weights, the ends of their ranges among them."""

    def __init__(self, cpu: Any, window: Window, is_depthwise: bool, seed: int, batch: int) -> None:
        rng = np.random.default_rng(seed)
        low, high = cpu.limits
        self.cpu, self.window, self.is_depthwise = cpu, window, is_depthwise
        self.x = rng.integers(low, high + 1, (batch, *window.image, window.channels))
        shape = window.features, 1 if is_depthwise else window.channels, *window.kernel
        self.weight = rng.integers(-cpu.most, cpu.most + 1, shape).astype(np.int8)
        self.x.flat[0], self.x.flat[-1] = low, high
        self.weight.flat[0], self.weight.flat[-1] = cpu.most, -cpu.most
        self.x = self.x.astype(cpu.dtype)

    def found(self, zero: int, multiplier: Any, offset: Any, codes: Codes) -> NDArray[Any]:
        """Return what the kernel stores."""
        window, kernels = self.window, self.cpu.kernels
        sums = (-zero * self.weight.astype(np.int64).sum((1, 2, 3))).astype(np.int32)
        kernel = kernels.layer(window, self.is_depthwise, zero, codes)
        numbers = [sums, multiplier, offset]
        constants = kernels.constants(self.weight, self.is_depthwise, numbers)
        y = np.zeros((len(self.x), *window.output, window.features), codes.dtype)
        result: NDArray[Any] = self.cpu.call(kernel, self.x, *constants, y)
        return result

    def expected(self, zero: int, multiplier: Any, offset: Any, codes: Codes) -> NDArray[Any]:
        """Return what the op on codes says."""
        x, weight, *factors = map(torch.from_numpy, (self.x, self.weight, multiplier, offset))
        stride, padding = list(self.window.stride), list(self.window.padding)
        groups = self.window.channels if self.is_depthwise else 1
        limits = codes.low, codes.high, codes.dtype
        found = integer_conv2d(x, weight, *factors, stride, padding, groups, zero, *limits)
        result: NDArray[Any] = found.numpy()
        return result

    def sums(self, zero: int) -> NDArray[Any]:
        """Return the sums of products that the op says."""
        ones = np.ones(self.window.features, np.float32)
        return self.expected(zero, ones, 0 * ones, VALUES)

    def exact(self, zero: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the sums of products: of the kernel, of the op."""
        ones = np.ones(self.window.features, np.float32)
        return self.found(zero, ones, 0 * ones, VALUES), self.sums(zero)


@KINDS
@settings(max_examples=5)
@given(data=st.data())
def test_sums_are_exact(cpu: Any, is_depthwise: bool, data: st.DataObject) -> None:
    window = data.draw(windows(is_depthwise))
    zero = data.draw(st.sampled_from([*cpu.limits, 7]))
    layer = Layer(cpu, window, is_depthwise, data.draw(st.integers(0, 99)), 3)
    np.testing.assert_array_equal(*layer.exact(zero))


@KINDS
@settings(max_examples=3)
@given(data=st.data())
def test_codes_are_rounded_and_limited(
    cpu: Any, equal_codes: Any, is_depthwise: bool, data: st.DataObject
) -> None:
    window = data.draw(windows(is_depthwise))
    zero = data.draw(st.sampled_from([*cpu.limits, 7]))
    signed = data.draw(st.booleans())
    codes = Codes("int8", -128, 127) if signed else Codes("uint8", 3, 250)
    layer = Layer(cpu, window, is_depthwise, data.draw(st.integers(0, 99)), 1)
    rng = np.random.default_rng(1)
    reach = 400 / (float(np.abs(layer.sums(zero)).max()) + 1)
    multiplier = (rng.uniform(0.5, 1, window.features) * reach).astype(np.float32)
    offset = rng.uniform(0, 100, window.features).astype(np.float32)
    expected = layer.expected(zero, multiplier, offset, codes)
    equal_codes(layer.found(zero, multiplier, offset, codes), expected)


@pytest.mark.parametrize(
    ("window", "batch"),
    [
        (Window((8, 8), 12, 64), 1),  # pointwise: all pixels are one row, read where they lie
        (Window((5, 7), 12, 37), 3),
        (Window((1, 1), 640, 10), 3),  # the weights are more than the image
        (Window((8, 6), 3, 16, (3, 3), (2, 1), (1, 1)), 1),  # 9 codes a row: three more are read
        (Window((6, 9), 4, 16, (5, 3)), 3),
    ],
    ids=str,
)
def test_extreme_codes_in_typical_layers(cpu: Any, window: Window, batch: int) -> None:
    layer = Layer(cpu, window, False, 0, batch)
    layer.x[...], layer.weight[...] = cpu.limits[1], cpu.most
    layer.weight[1::2] = -cpu.most
    np.testing.assert_array_equal(*layer.exact(cpu.limits[0]))


@KINDS
def test_codes_end_at_their_limits(cpu: Any, is_depthwise: bool) -> None:
    window = Window((4, 4), 12, 12, (3, 3), (1, 1), (1, 1))
    layer = Layer(cpu, window, is_depthwise, 0, 1)
    layer.x[...], layer.weight[...] = cpu.limits[1], cpu.most
    layer.weight[1::2] = -cpu.most
    factors = np.ones(12, np.float32), np.full(12, 1, np.float32)
    found = layer.found(cpu.limits[0], *factors, Codes("int8", -100, 101))
    assert (found[..., ::2] == 101).all()
    assert (found[..., 1::2] == -100).all()


def test_eight_bit_weights_saturate_where_seven_do_not(cpu: Any) -> None:
    window = Window((2, 2), 12, 10)
    layer = Layer(cpu, window, False, 0, 1)
    layer.x[...] = cpu.limits[1]
    layer.weight[...] = 2 ** (cpu.kernels.weight_bits - 1) - 1
    np.testing.assert_array_equal(*layer.exact(0))
    layer.weight[...] = 127
    found, expected = layer.exact(0)
    limited = 32767 // 2 * 2 * 3  # two products, limited to 16 bits, of four: three dots of them
    if cpu.kernels.weight_bits == 8:
        np.testing.assert_array_equal(found, expected)
    else:
        assert (found < expected).all()
        assert np.abs(found - 2 * limited).max() <= 2 * 3


def test_the_border_is_the_zero_point(cpu: Any) -> None:
    window = Window((3, 3), 3, 7, (3, 3), (1, 1), (1, 1))
    layer = Layer(cpu, window, False, 0, 1)
    layer.x[...] = 9
    found, _ = layer.exact(9)
    assert not found.any()
    assert layer.exact(8)[0].any()
