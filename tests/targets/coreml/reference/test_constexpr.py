"""Compressed weights through saved packages, bit for bit what coremltools decompresses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.ops import constexpr

FLOATS = [np.float32, np.float16]
properties = settings(
    phases=[Phase.explicit, Phase.generate],  # a package an example: shrinking takes minutes
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # fmt: skip
X = {"x": np.zeros(1, np.float32)}


def _typed(values: Any, name: str) -> Any:
    """Return codes in coremltools' own dtype of numpy for ``int4``, ``uint1`` and so on."""
    from coremltools.converters.mil.mil.types.type_mapping import string_to_nptype

    return np.asarray(values).astype(string_to_nptype(name))


def _bits(value: Any) -> Any:
    """Return a float's bits, to tell NaNs and zeros apart."""
    sizes = {2: np.uint16, 4: np.uint32}
    return value.view(sizes[value.itemsize]) if value.dtype.kind == "f" else value


def check(run_mil: Any, weights: Callable[[Any], list[Any]], opset: str) -> list[Any]:
    """Run a program that gives out weights, and compare with coremltools; returns them."""
    expected: list[Any] = []

    def build(mb: Any, x: Any) -> Any:
        found = weights(mb)
        expected.extend(v.op.materialized_val_inference() for v in found)
        given_ = [mb.identity(x=v) for v in found]
        return [*given_, mb.identity(x=x)]

    found = run_mil(build, X, opset)[:-1]
    for value, reference in zip(found, expected, strict=True):
        assert value.dtype == reference.dtype
        assert value.shape == reference.shape
        np.testing.assert_array_equal(_bits(value), _bits(reference))
    return list(found)


@pytest.mark.parametrize("codes", [np.int8, np.uint8])
@pytest.mark.parametrize("dtype", FLOATS)
@properties
@given(st.integers(0, 10_000), st.integers(-3, 2))
def test_affine(run_mil: Any, dtype: Any, codes: Any, seed: int, axis: int) -> None:
    rng, limits = np.random.default_rng(seed), np.iinfo(codes)
    data = rng.integers(limits.min, limits.max + 1, (2, 3, 5)).astype(codes)

    def weights(mb: Any) -> Any:
        for size in ((), (data.shape[axis],)):
            yield mb.constexpr_affine_dequantize(
                quantized_data=data,
                zero_point=rng.integers(limits.min, limits.max + 1, size).astype(codes),
                scale=rng.uniform(1e-4, 2, size).astype(dtype),
                axis=np.int32(axis),
            )

    check(run_mil, lambda mb: list(weights(mb)), "iOS16")


def test_affine_with_a_float_zero_point(run_mil: Any) -> None:
    check(
        run_mil,
        lambda mb: [
            mb.constexpr_affine_dequantize(
                quantized_data=np.arange(6, dtype=np.uint8).reshape(2, 3),
                zero_point=np.array([1.5, 2.25, 0.1], np.float32),
                scale=np.array([0.1, 0.2, 0.3], np.float16),
                axis=np.int32(1),
            )
        ],
        "iOS16",
    )


@pytest.mark.parametrize("opset", ["iOS16", "iOS18"])
def test_cast(run_mil: Any, opset: str) -> None:
    values = np.array([1.5, -0.0, 6e-8, 65504, np.inf], np.float16)
    (found,) = check(
        run_mil, lambda mb: [mb.constexpr_cast(source_val=values, output_dtype="fp32")], opset
    )
    np.testing.assert_array_equal(found, values.astype(np.float32))


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
@pytest.mark.parametrize("opset", ["iOS16", "iOS17"])
def test_packed_table(run_mil: Any, bits: int, opset: str) -> None:
    rng = np.random.default_rng(bits)
    shape = np.array([3, 5, 7], np.uint32)
    size = (bits * 105 + 7) // 8
    packed = rng.integers(0, 256, size).astype(np.uint8)

    def weights(mb: Any) -> list[Any]:
        return [
            mb.constexpr_lut_to_dense(
                indices=packed, lut=rng.standard_normal(1 << bits).astype(dtype), shape=shape
            )
            for dtype in FLOATS
        ]

    check(run_mil, weights, opset)


@pytest.mark.parametrize("dtype", FLOATS)
def test_packed_mask(run_mil: Any, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    where = rng.integers(0, 2, 105).astype(np.uint8)
    values = rng.standard_normal(where.sum()).astype(dtype)
    (found,) = check(
        run_mil,
        lambda mb: [
            mb.constexpr_sparse_to_dense(
                nonzero_data=values,
                mask=np.packbits(where, bitorder="little"),
                shape=np.array([3, 5, 7], np.uint32),
            )
        ],
        "iOS16",
    )
    np.testing.assert_array_equal(found != 0, where.reshape(3, 5, 7) != 0)


@pytest.mark.parametrize("codes", ["int4", "uint4", "int8", "uint8"])
@pytest.mark.parametrize("dtype", FLOATS)
@properties
@given(st.integers(0, 10_000), st.sampled_from([(4, 6, 2), (1, 1, 1), (2, 3, 1), (4, 2, 2)]))
def test_blockwise(
    run_mil: Any, dtype: Any, codes: str, seed: int, blocks: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(seed)
    bits, signed = int(codes.strip("uint")), not codes.startswith("u")
    low = -(1 << (bits - 1)) if signed else 0
    data, offset = (
        _typed(rng.integers(low, low + (1 << bits), s), codes) for s in ((4, 6, 2), blocks)
    )
    scale = rng.uniform(1e-4, 2, blocks).astype(dtype)

    def weights(mb: Any) -> list[Any]:
        return [
            mb.constexpr_blockwise_shift_scale(data=data, scale=scale, offset=offset),
            mb.constexpr_blockwise_shift_scale(data=data, scale=scale),
        ]

    check(run_mil, weights, "iOS18")


def test_blockwise_of_floats_is_rounded_once() -> None:
    data, offset = torch.tensor([1000.5]), torch.tensor([0.12345])
    scale = torch.tensor([0.3], dtype=torch.float16)
    found = constexpr.constexpr_blockwise_shift_scale(data, scale, offset)
    assert found.dtype == torch.float16
    assert found.item() == ((1000.5 - offset) * scale.float()).half().item()


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("dtype", FLOATS)
@properties
@given(
    st.integers(0, 10_000),
    st.sampled_from([(1, 1, 1), (2, 1, 1), (1, 3, 2), (4, 6, 2)]),
    st.sampled_from([1, 2, 3]),
    st.integers(-3, 2),
)
def test_table(
    run_mil: Any, dtype: Any, bits: int, seed: int, groups: Any, width: int, axis: int
) -> None:
    rng = np.random.default_rng(seed)
    indices = _typed(rng.integers(0, 1 << bits, (4, 6, 2)), f"uint{bits}")
    lut = rng.standard_normal((*groups, 1 << bits, width)).astype(dtype)
    more = {"vector_axis": np.int32(axis)} if width > 1 else {}
    check(
        run_mil, lambda mb: [mb.constexpr_lut_to_dense(indices=indices, lut=lut, **more)], "iOS18"
    )


@pytest.mark.parametrize("axis", [0, 1])
def test_vectors_are_laid_along_the_axis(axis: int) -> None:
    indices = torch.tensor([[0, 1], [1, 1]], dtype=torch.uint8)
    lut = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    found = constexpr.constexpr_lut_to_dense(indices, lut, vector_axis=torch.tensor(axis))
    along_rows = [[1, 3], [2, 4], [3, 3], [4, 4]]
    along_columns = [[1, 2, 3, 4], [3, 4, 3, 4]]
    assert found.tolist() == (along_columns if axis else along_rows)


def test_a_table_of_integers_is_scaled(run_mil: Any) -> None:
    rng = np.random.default_rng(0)
    indices = _typed(rng.integers(0, 16, (4, 6)), "uint4")
    lut = rng.integers(-128, 128, (2, 1, 16, 1)).astype(np.int8)
    scale = rng.uniform(0.1, 1, (4, 1)).astype(np.float16)
    check(
        run_mil,
        lambda mb: [
            mb.constexpr_blockwise_shift_scale(
                data=mb.constexpr_lut_to_dense(indices=indices, lut=lut), scale=scale
            )
        ],
        "iOS18",
    )


def _sparse(rng: Any, shape: tuple[int, ...], values: Any) -> tuple[Any, Any]:
    where = rng.integers(0, 2, shape)
    return _typed(where, "uint1"), values(int(where.sum()))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("width", [1, 2])
def test_sparse(run_mil: Any, dtype: Any, width: int) -> None:
    rng = np.random.default_rng(width)
    mask, values = _sparse(rng, (4, 6), lambda n: rng.standard_normal(n).astype(dtype))
    _, codes = _sparse(np.random.default_rng(width), (4, 6), lambda n: rng.integers(-8, 8, n))
    _, indices = _sparse(np.random.default_rng(width), (4, 6), lambda n: rng.integers(0, 4, n))
    scale = rng.uniform(0.1, 1, (4, 2)).astype(dtype)
    offset = _typed(rng.integers(-8, 8, (4, 2)), "int4")
    lut = rng.standard_normal((2, 1, 4, width)).astype(dtype)
    more = {"vector_axis": np.int32(1)} if width > 1 else {}

    def weights(mb: Any) -> Any:
        yield mb.constexpr_sparse_to_dense(nonzero_data=values, mask=mask)
        where, nonzero = mb.constexpr_sparse_blockwise_shift_scale(
            data_mask=mask, nonzero_data=_typed(codes, "int4"), scale=scale, offset=offset
        )
        yield mb.constexpr_sparse_to_dense(nonzero_data=nonzero, mask=where)
        where, nonzero = mb.constexpr_lut_to_sparse(
            indices_mask=mask, indices_nonzero_data=_typed(indices, "uint2"), lut=lut, **more
        )
        yield mb.constexpr_sparse_to_dense(nonzero_data=nonzero, mask=where)

    found = check(run_mil, lambda mb: list(weights(mb)), "iOS18")
    assert found[2].shape == (4, 6 * width)


REFUSED = {
    "do not take 1 bytes": lambda: constexpr.constexpr_lut_to_dense(
        torch.zeros(1, dtype=torch.uint8), torch.ones(4), shape=torch.tensor([5])
    ),
    "2, 4, 16, 64 or 256 entries": lambda: constexpr.constexpr_lut_to_dense(
        torch.zeros(1, dtype=torch.uint8), torch.ones(3), shape=torch.tensor([4])
    ),
    "larger than": lambda: constexpr.constexpr_sparse_to_dense(
        torch.ones(1), torch.ones(1, dtype=torch.uint8), torch.tensor([1 << 40])
    ),
    "an index is 2, but": lambda: constexpr.constexpr_lut_to_dense(
        torch.tensor([0, 2], dtype=torch.uint8), torch.ones(1, 2, 1)
    ),
    "has no vector_axis": lambda: constexpr.constexpr_lut_to_dense(
        torch.tensor([0], dtype=torch.uint8), torch.ones(1, 2, 3)
    ),
    "vector_axis is 1": lambda: constexpr.constexpr_lut_to_dense(
        torch.tensor([0], dtype=torch.uint8), torch.ones(1, 2, 3), vector_axis=torch.tensor(1)
    ),
    "indices of": lambda: constexpr.constexpr_lut_to_dense(
        torch.tensor([0], dtype=torch.uint8), torch.ones(2, 1)
    ),
    "cannot be cut": lambda: constexpr.constexpr_blockwise_shift_scale(
        torch.ones(3), torch.ones(2)
    ),
    "offsets of": lambda: constexpr.constexpr_blockwise_shift_scale(
        torch.ones(4), torch.ones(2), torch.ones(1)
    ),
    "a mask of 1 ones": lambda: constexpr.constexpr_sparse_to_dense(
        torch.ones(2), torch.tensor([0, 1], dtype=torch.uint8)
    ),
    "makes fp32, not fp16": lambda: constexpr.constexpr_cast(torch.ones(1).half(), "fp16"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_does_not_fit_is_refused(reason: str) -> None:
    with pytest.raises(ExecutionError, match=reason):
        REFUSED[reason]()
