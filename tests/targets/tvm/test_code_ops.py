"""Ops on codes against the arithmetic that quantize/dequantize pairs around ATen's ops say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qcompile.compiler.ir.ops import QUANTIZE
from qcompile.targets.tvm import code_ops as ops

FORMATS = st.sampled_from([("uint8", 0, 255), ("int8", -128, 127), ("uint8", 3, 200)])
SCALES = st.floats(0.01, 0.2)


def codes(shape: tuple[int, ...], low: int = 0, high: int = 255, seed: int = 0) -> Tensor:
    """Return random codes, the ends of their range among them."""
    found = torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed))
    found.view(-1)[0], found.view(-1)[-1] = low, high
    return found.to(torch.int8 if low < 0 else torch.uint8)


def values(stored: Tensor, scale: float, zero: int) -> Tensor:
    """Return what codes stand for, in float64."""
    return (stored.double() - zero) * scale


def assert_nearest(found: Tensor, exact: Tensor, low: int, high: int) -> None:
    """Check that codes are nearest to float64 numbers, but for the error of a float32 sum."""
    assert ((found.double() - exact.clamp(low, high)).abs() <= 0.5 + 1e-3).all()
    assert found.min() >= low
    assert found.max() <= high


@settings(max_examples=15)
@given(
    is_depthwise=st.booleans(), zero=st.sampled_from([0, 255, 77]), to=FORMATS,
    stride=st.tuples(st.integers(1, 2), st.integers(1, 3)), scale=SCALES,
    padding=st.tuples(st.integers(0, 2), st.integers(0, 1)), seed=st.integers(0, 9),
)  # fmt: skip
def test_conv2d(
    is_depthwise: bool, zero: int, to: tuple[str, int, int], stride: tuple[int, int], scale: float,
    padding: tuple[int, int], seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    x, groups = codes((2, 7, 6, 5), seed=seed), 5 if is_depthwise else 1
    weight = codes((5, 1 if is_depthwise else 5, 3, 2), -127, 127, seed)
    weight_scale, bias = torch.rand(5) * 0.01 + 0.001, torch.randn(5)
    dtype, low, high = to
    output_zero, step = (low + high) // 2, 0.05
    multiplier = weight_scale.double() * scale / step
    offset = bias.double() / step + output_zero
    settings_ = list(stride), list(padding)
    factors = multiplier.float(), offset.float()
    found = ops.integer_conv2d(x, weight, *factors, *settings_, groups, zero, low, high, dtype)
    wide = weight.double() * weight_scale.double()[:, None, None, None]
    image = values(x, scale, zero).permute(0, 3, 1, 2)
    exact = functional.conv2d(image, wide, bias.double(), *settings_, 1, groups)
    assert found.is_contiguous()
    assert_nearest(found, exact.permute(0, 2, 3, 1) / step + output_zero, low, high)


@settings(max_examples=10)
@given(zero=st.sampled_from([0, 255, 77]), to=FORMATS, scale=SCALES)
def test_linear(zero: int, to: tuple[str, int, int], scale: float) -> None:
    x, weight = codes((9, 33)), codes((7, 33), -127, 127)
    dtype, low, high = to
    factor, offset = torch.full((7,), scale * 0.01), torch.arange(7.0)
    found = ops.integer_linear(x, weight, factor, offset, zero, low, high, dtype)
    exact = values(x, 1, zero) @ weight.double().T * factor.double() + offset.double()
    assert_nearest(found, exact, low, high)
    shown = ops.integer_linear(x, weight, factor, offset, zero, 0, 0, "float32")
    torch.testing.assert_close(shown, exact.float())


@settings(max_examples=10)
@given(to=FORMATS, scales=st.tuples(SCALES, SCALES), zeros=st.tuples(*[st.integers(0, 255)] * 2))
def test_add(to: tuple[str, int, int], scales: tuple[float, float], zeros: tuple[int, int]) -> None:
    a, b = codes((4, 5, 6)), codes((4, 5, 6), seed=1)
    dtype, low, high = to
    ratios = scales[0] / 0.1, scales[1] / 0.1
    offset = 9 - ratios[0] * zeros[0] - ratios[1] * zeros[1]
    found = ops.integer_add(a, b, *ratios, offset, low, high, dtype)
    exact = values(a, scales[0], zeros[0]) + values(b, scales[1], zeros[1])
    assert_nearest(found, exact / 0.1 + 9, low, high)


@settings(max_examples=10)
@given(to=FORMATS, scale=SCALES, zero=st.sampled_from([0, 255, 77]))
def test_global_average(to: tuple[str, int, int], scale: float, zero: int) -> None:
    x = codes((3, 5, 7, 8))
    dtype, low, high = to
    ratio = scale / 0.02
    arguments = ratio / 35, 5 - ratio * zero, low, high, dtype
    found = ops.integer_global_average(x, *arguments)
    exact = values(x, scale, zero).mean((1, 2), keepdim=True)
    assert_nearest(found, exact / 0.02 + 5, low, high)


@pytest.mark.parametrize("low", [0, -128])
def test_maximum_and_table_and_quantize_are_exact(low: int) -> None:
    x = codes((2, 6, 7, 3), low, low + 255)
    settings_ = [3, 2], [2, 1], [1, 1]
    found = ops.integer_max_pool2d(x, *settings_, low, low + 255)
    expected = functional.max_pool2d(x.permute(0, 3, 1, 2).double(), *settings_)
    assert torch.equal(found, expected.permute(0, 2, 3, 1).to(x.dtype))
    table = torch.arange(255, -1, -1, dtype=torch.uint8)
    assert torch.equal(ops.integer_table(x, table).long(), 255 - (x.long() - low))
    image = torch.randn(2, 3, 6, 7) * 10
    name = "int8" if low else "uint8"
    stored = ops.quantize_channels_last(image, 0.07, low + 9, low, low + 255, name)
    codes_ = QUANTIZE(image, 0.07, low + 9, low, low + 255, x.dtype)
    assert torch.equal(stored, codes_.permute(0, 2, 3, 1))


X, ROWS, WEIGHT = codes((2, 5, 6, 3)), codes((4, 8)), codes((7, 3, 3, 2), -127, 127)
ONES = torch.ones(7)
CALLS: list[tuple[Any, tuple[Any, ...]]] = [
    (ops.CONV, (X, WEIGHT, ONES, ONES, [2, 1], [1, 0], 1, 3, 0, 255, "uint8")),
    (ops.LINEAR, (ROWS, codes((7, 8), -127, 127), ONES, ONES, 3, 0, 0, "float32")),
    (ops.ADD, (X, X, 1.0, 2.0, 3.0, -128, 127, "int8")),
    (ops.TABLE, (X, codes((256,)))),
    (ops.GLOBAL_AVERAGE, (X, 0.1, 0.0, 0, 255, "uint8")),
    (ops.MAX_POOL, (X, [3, 2], [2, 2], [1, 0], 0, 255)),
    (ops.QUANTIZE_CHANNELS_LAST, (torch.randn(2, 3, 4, 5), 0.1, 3, 0, 255, "uint8")),
]


@pytest.mark.parametrize(("op", "arguments"), CALLS, ids=[str(op) for op, _ in CALLS])
def test_shapes_and_types_are_known_without_values(op: Any, arguments: tuple[Any, ...]) -> None:
    torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))
