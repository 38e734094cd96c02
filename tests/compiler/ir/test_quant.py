"""QuantSpec: its text, and its arithmetic against PyTorch's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from qcompile.compiler.ir.ops import DEQUANTIZE, DEQUANTIZE_PER_CHANNEL, QUANTIZE
from qcompile.compiler.ir.quant import (
    SMALLEST_SCALE,
    FloatSpec,
    Granularity,
    QuantParams,
    QuantSpec,
    parse_weight_spec,
)

BITS = st.sampled_from([2, 3, 4, 5, 6, 7, 8, 16])
KINDS = st.sampled_from([(True, True), (True, False), (False, False)])
FLOATS = st.floats(-1000, 1000, width=32, allow_subnormal=False)
VALUES = st.lists(FLOATS, min_size=1, max_size=30).map(torch.tensor)


@st.composite
def specs(draw: st.DrawFn, granularities: Any = tuple(Granularity)) -> QuantSpec:
    signed, symmetric = draw(KINDS)
    granularity = draw(st.sampled_from(granularities))
    per_tensor = granularity is Granularity.PER_TENSOR
    return QuantSpec(
        bits=draw(BITS),
        signed=signed,
        symmetric=symmetric,
        granularity=granularity,
        axis=None if per_tensor else draw(st.integers(-4, 4)),
        group_size=draw(st.integers(1, 256)) if granularity == Granularity.PER_GROUP else None,
    )


PER_TENSOR = specs(granularities=[Granularity.PER_TENSOR])


@given(specs(), st.sampled_from([16, 32]), st.booleans())
def test_text_round_trip(spec: QuantSpec, scale_bits: int, full: bool) -> None:
    spec = replace(spec, scale_bits=scale_bits, full_range=full and spec.symmetric)
    assert QuantSpec.parse(str(spec)) == spec
    assert parse_weight_spec(str(spec)) == spec


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (QuantSpec(), "int8 sym per_tensor"),
        (QuantSpec(signed=False, symmetric=False), "uint8 asym per_tensor"),
        (QuantSpec(granularity=Granularity.PER_CHANNEL, axis=0), "int8 sym per_channel(0)"),
        (
            QuantSpec(bits=4, granularity=Granularity.PER_GROUP, axis=-1, group_size=32),
            "int4 sym per_group(-1,32)",
        ),
    ],
)
def test_text_is_what_people_say(spec: QuantSpec, text: str) -> None:
    assert str(spec) == text


@pytest.mark.parametrize("bits", [16, 32])
def test_float_spec_text(bits: int) -> None:
    assert str(FloatSpec(bits)) == f"fp{bits}"
    assert FloatSpec(bits).storage_bytes((3, 5)) == 15 * bits // 8


@pytest.mark.parametrize(
    "text", ["int8", "int8 sym", "int8 sym per_row(0)", "int8 sym per_tensor ", "q4_k", "fp64", ""]
)
def test_parse_refuses_what_is_no_spec(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no QuantSpec|is not a valid Granularity"):
        parse_weight_spec(text)


@pytest.mark.parametrize(
    ("spec", "low", "high", "dtype"),
    [
        (QuantSpec(), -127, 127, torch.int8),
        (QuantSpec(symmetric=False), -128, 127, torch.int8),
        (QuantSpec(signed=False, symmetric=False), 0, 255, torch.uint8),
        (QuantSpec(bits=4), -7, 7, torch.int8),
        (QuantSpec(bits=4, signed=False, symmetric=False), 0, 15, torch.uint8),
        (QuantSpec(bits=2), -1, 1, torch.int8),
        (QuantSpec(bits=4, full_range=True), -8, 7, torch.int8),
        (QuantSpec(bits=16), -32767, 32767, torch.int16),
        (QuantSpec(bits=16, signed=False, symmetric=False), 0, 65535, torch.uint16),
    ],
)
def test_codes(spec: QuantSpec, low: int, high: int, dtype: torch.dtype) -> None:
    assert (spec.qmin, spec.qmax, spec.dtype) == (low, high, dtype)
    assert {spec.qmin, spec.qmax} <= set(range(torch.iinfo(dtype).min, torch.iinfo(dtype).max + 1))


@given(PER_TENSOR, VALUES)
def test_error_is_half_a_step_inside_the_range(spec: QuantSpec, x: Tensor) -> None:
    params = spec.min_max(x)
    codes = spec.encode(x, params)
    assert codes.dtype == spec.dtype
    error = (spec.decode(codes, params) - x).abs().double()
    # A code is computed in float32: the product with 1 / scale has an error of 2**-22 of itself.
    slack = 1 + 2**spec.bits * 2.0**-21
    assert bool((error <= params.scale.double() / 2 * slack).all())


@given(PER_TENSOR, FLOATS, FLOATS, st.floats(1.5, 1e6))
def test_saturates_outside(spec: QuantSpec, a: float, b: float, beyond: float) -> None:
    params = spec.params(torch.tensor(min(a, b)), torch.tensor(max(a, b)))
    edge = params.scale * (2 * 2**spec.bits) * beyond
    codes = spec.encode(torch.stack([-edge, edge]), params)
    assert codes.tolist() == [spec.qmin, spec.qmax]


@given(PER_TENSOR, FLOATS, FLOATS)
def test_zero_is_exact(spec: QuantSpec, a: float, b: float) -> None:
    params = spec.params(torch.tensor(min(a, b)), torch.tensor(max(a, b)))
    assert spec.qmin <= int(params.zero_point) <= spec.qmax
    assert float(params.scale) > 0
    assert float(spec.decode(spec.encode(torch.zeros(()), params), params)) == 0.0
    assert not spec.symmetric or int(params.zero_point) == 0


def test_a_tensor_of_zeros_has_a_usable_scale() -> None:
    spec = QuantSpec()
    params = spec.min_max(torch.zeros(4))
    assert float(params.scale) == SMALLEST_SCALE
    assert spec.decode(spec.encode(torch.zeros(4), params), params).tolist() == [0.0] * 4


@given(PER_TENSOR, VALUES, VALUES)
def test_fake_quantize_is_decode_of_encode(spec: QuantSpec, x: Tensor, seen: Tensor) -> None:
    params, before = spec.min_max(seen), x.clone()
    decoded = spec.decode(spec.encode(x, params), params)
    torch.testing.assert_close(spec.fake_quantize(x, params), decoded, rtol=0, atol=0)
    assert torch.equal(x, before)


@given(
    specs([Granularity.PER_TENSOR]).filter(lambda s: s.dtype is not torch.uint16), VALUES, VALUES
)
@example(QuantSpec(), torch.arange(-300, 300) / 2, torch.tensor([-127.0, 127.0]))
@example(QuantSpec(), torch.arange(-300, 300) * 0.05, torch.tensor([-12.7]))
def test_equals_quantized_decomposed(spec: QuantSpec, x: Tensor, seen: Tensor) -> None:
    params = spec.min_max(seen)
    rest = (float(params.scale), int(params.zero_point), spec.qmin, spec.qmax, spec.dtype)
    codes = QUANTIZE(x, *rest)
    assert torch.equal(spec.encode(x, params), codes)
    assert torch.equal(spec.decode(codes, params), DEQUANTIZE(codes, *rest))


def test_per_channel_equals_quantized_decomposed() -> None:
    spec = QuantSpec(granularity=Granularity.PER_CHANNEL, axis=0)
    weight = torch.randn(6, 4, 3, 3) * torch.logspace(-3, 3, 6).reshape(6, 1, 1, 1)
    params = spec.min_max(weight)
    assert params.scale.shape == (6, 1, 1, 1)
    codes = spec.encode(weight, params)
    assert codes.abs().amax((1, 2, 3)).tolist() == [127] * 6
    flat = (params.scale.flatten(), params.zero_point.flatten(), 0, -127, 127, torch.int8)
    assert torch.equal(spec.decode(codes, params), DEQUANTIZE_PER_CHANNEL(codes, *flat))


def test_ties_go_to_even() -> None:
    spec, params = QuantSpec(), QuantParams(torch.tensor(2.0), torch.tensor(0))
    x = torch.tensor([-5.0, -3.0, -1.0, 1.0, 3.0, 5.0])
    assert spec.encode(x, params).tolist() == [-2, -2, 0, 0, 2, 2]


def test_min_max_of_groups() -> None:
    spec = QuantSpec(bits=4, granularity=Granularity.PER_GROUP, axis=1, group_size=4)
    x = torch.tensor([[1.0, 7.0, 2.0, 3.0], [21.0, 0.0, 14.0, 0.0]])
    assert spec.min_max(x).scale.flatten().tolist() == [1.0, 3.0]


def test_groups_of_another_axis_and_a_short_one_at_the_end() -> None:
    spec = QuantSpec(bits=4, granularity=Granularity.PER_GROUP, axis=-2, group_size=2)
    x = torch.tensor([[7.0, 14.0], [3.5, 0.0], [21.0, 0.7]])
    params = spec.min_max(x)
    torch.testing.assert_close(params.scale, torch.tensor([[1.0, 2.0], [3.0, 0.1]]))
    assert spec.encode(x, params).tolist() == [[7, 7], [4, 0], [7, 7]]


@given(
    specs([Granularity.PER_GROUP]).filter(lambda s: s.axis in (-2, -1, 0, 1)),
    st.integers(1, 9),
    st.integers(1, 40),
    st.integers(0, 2**31),
)
def test_a_group_is_a_tensor_of_its_own(spec: QuantSpec, rows: int, width: int, seed: int) -> None:
    """Codes and scales of each group are those that per-tensor gives for it alone."""
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 4
    alone = QuantSpec(bits=spec.bits, signed=spec.signed, symmetric=spec.symmetric)
    params = spec.min_max(x)
    codes, decoded = spec.encode(x, params), spec.decode(spec.encode(x, params), params)
    assert params.scale.numel() == spec.scale_count(tuple(x.shape))
    assert torch.equal(spec.fake_quantize(x, params), decoded)
    assert spec.axis is not None
    axis = spec.axis % 2
    for index, columns in enumerate(torch.split(torch.arange(x.shape[axis]), spec.group_size or 1)):
        for other in range(x.shape[1 - axis]):
            group = x.index_select(axis, columns).select(1 - axis, other)
            own = alone.min_max(group)
            assert params.scale.select(axis, index)[other] == own.scale
            assert params.zero_point.select(axis, index)[other] == own.zero_point
            found = codes.index_select(axis, columns).select(1 - axis, other)
            assert torch.equal(found, alone.encode(group, own))


def test_an_axis_that_the_tensor_lacks() -> None:
    with pytest.raises(IndexError):
        QuantSpec(granularity=Granularity.PER_CHANNEL, axis=2).min_max(torch.ones(2, 2))


@given(specs([Granularity.PER_GROUP]), st.integers(1, 3), st.integers(0, 2**31))
def test_a_group_covers_all_kernel_positions(spec: QuantSpec, size: int, seed: int) -> None:
    """Codes of a convolution's weight are those of the groups laid out as rows."""
    spec = replace(spec, axis=1, group_size=size)
    x = torch.randn(3, 2 * size, 2, 3, generator=torch.Generator().manual_seed(seed))
    rows = x.reshape(3, 2, size * 6).flatten(1)
    flat = replace(spec, group_size=size * 6)
    params, expected = spec.min_max(x), flat.min_max(rows)
    assert params.scale.shape == (3, 2, 1, 1)
    assert torch.equal(params.scale.flatten(1), expected.scale)
    assert spec.scale_count((3, 2 * size, 2, 3)) == 6
    codes = spec.encode(x, params)
    assert torch.equal(codes.flatten(1), flat.encode(rows, expected))
    assert torch.equal(
        spec.decode(codes, params).flatten(1), flat.decode(codes.flatten(1), expected)
    )


@given(specs(), st.floats(-8, 3), st.integers(0, 2**31))
def test_half_scales(spec: QuantSpec, power: float, seed: int) -> None:
    """Scales and values are float16 numbers, and the range that was asked for is covered."""
    spec = replace(spec, bits=min(spec.bits, 8), scale_bits=16)
    spec = replace(spec, axis=None if spec.axis is None else spec.axis % 2)
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed)) * 10**power
    params = spec.min_max(x)
    assert torch.equal(params.scale, params.scale.half().float())
    assert float(params.scale.min()) >= 2.0**-14
    spread = spec.expanded(params, x)
    low = (spec.qmin - spread.zero_point) * spread.scale
    high = (spec.qmax - spread.zero_point) * spread.scale
    edge = 0 if spec.symmetric else 0.5  # the zero point is rounded
    assert bool((x >= low - edge * spread.scale).all())
    assert bool((x <= high + edge * spread.scale).all())
    codes = spec.encode(x, params)
    decoded = spec.decode(codes, params)
    exact = (codes.double() - spread.zero_point) * spread.scale.double()
    assert torch.equal(decoded, exact.half().float())
    assert torch.equal(spec.fake_quantize(x, params), decoded)


def test_full_range_reaches_the_lowest_code() -> None:
    spec = QuantSpec(bits=4, full_range=True)
    assert float(spec.min_max(torch.tensor([-8.0, 3.0])).scale) == 1.0
    assert float(spec.min_max(torch.tensor([-8.0, 14.0])).scale) == 2.0
    params = spec.min_max(torch.tensor([-8.0, 3.0]))
    assert spec.encode(torch.tensor([-8.0, 7.4]), params).tolist() == [-8, 7]
