"""Matrix products through saved packages, against numpy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.ops import linear
from qcompile.targets.coreml.reference.types import DTYPES, TensorType

FLOATS = [np.float32, np.float16]
properties = settings(
    phases=[Phase.explicit, Phase.generate],  # a package an example: shrinking takes minutes
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # fmt: skip


def close(found: Any, expected: Any, dtype: Any) -> None:
    assert found.dtype == dtype
    rtol, atol = (1e-5, 1e-5) if dtype == np.float32 else (1e-3, 1e-3)
    np.testing.assert_allclose(found, np.asarray(expected).astype(dtype), rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", [*FLOATS, np.int32])
@properties
@given(st.integers(0, 10_000), st.lists(st.integers(1, 5), min_size=1, max_size=3))
def test_linear(run_mil: Any, dtype: Any, seed: int, shape: list[int]) -> None:
    rng = np.random.default_rng(seed)
    x, weight, bias = (
        rng.integers(-9, 10, s).astype(dtype) / dtype(1 if dtype == np.int32 else 8)
        for s in (shape, (4, shape[-1]), (4,))
    )
    x, weight, bias = (v.astype(dtype) for v in (x, weight, bias))
    found = run_mil(
        lambda mb, x: (mb.linear(x=x, weight=weight, bias=bias), mb.linear(x=x, weight=weight)),
        {"x": x},
    )
    product = x.astype(np.float64) @ weight.T.astype(np.float64)
    close(found[0], product + bias, dtype)
    close(found[1], product, dtype)


def test_linear_of_half_sums_in_single(run_mil: Any) -> None:
    x, weight = np.full((1, 4096), 1.0, np.float16), np.full((1, 4096), 0.5, np.float16)
    (found,) = run_mil(lambda mb, x: mb.linear(x=x, weight=weight), {"x": x})
    assert found.tolist() == [[2048.0]]


@pytest.mark.parametrize("dtype", FLOATS)
def test_operands_of_other_types(run_mil: Any, dtype: Any) -> None:
    """From iOS 17 on weights may have another type than the input, which decides on the result's."""
    other = np.float16 if dtype == np.float32 else np.float32
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((3, 5)).astype(dtype), rng.standard_normal((2, 5)).astype(other)
    counts = np.arange(10, dtype=np.int32).reshape(2, 5)
    found = run_mil(
        lambda mb, x: (
            mb.linear(x=x, weight=weight),
            mb.matmul(x=x, y=weight, transpose_y=True),
            mb.matmul(x=counts, y=x, transpose_y=True),
            mb.linear(x=x, weight=counts),
        ),
        {"x": x},
    )
    wide = x.astype(np.float64)
    for value in found[:2]:
        close(value, wide @ weight.T.astype(np.float64), dtype)
    close(found[2], counts @ wide.T, dtype)
    close(found[3], wide @ counts.T, dtype)


def test_an_integer_input_and_a_float_weight_give_integers() -> None:
    kind = TensorType(DTYPES["int32"], (1, 1))
    x, weight = torch.tensor([[3]], dtype=torch.int32), torch.tensor([[-0.5]])
    assert linear.linear(x, weight, kind).tolist() == [[-1]]


SHAPES = [((3,), (3, 2)), ((4, 3), (3, 2)), ((2, 4, 3), (5, 1, 3, 2)), ((1, 2, 3), (4, 3, 1))]


@pytest.mark.parametrize("dtype", [*FLOATS, np.int32])
@pytest.mark.parametrize("shapes", SHAPES)
def test_matmul(run_mil: Any, dtype: Any, shapes: Any) -> None:
    rng = np.random.default_rng(1)
    x, y = (rng.integers(-9, 10, s).astype(dtype) for s in shapes)
    expected = x.astype(np.float64) @ y.astype(np.float64)

    def build(mb: Any, x: Any, y: Any) -> Any:
        right = mb.transpose(x=y, perm=[*range(y.rank - 2), y.rank - 1, y.rank - 2])
        yield mb.matmul(x=x, y=y)
        yield mb.matmul(x=x, y=right, transpose_y=True)
        if x.rank > 1:
            left = mb.transpose(x=x, perm=[*range(x.rank - 2), x.rank - 1, x.rank - 2])
            yield mb.matmul(x=left, y=right, transpose_x=True, transpose_y=True)

    for found in run_mil(lambda mb, x, y: list(build(mb, x, y)), {"x": x, "y": y}):
        close(found, expected, dtype)


def test_a_transposed_vector_is_the_vector() -> None:
    kind = TensorType(DTYPES["fp32"], ())
    x = torch.tensor([1.0, 2.0])
    assert linear.matmul(x, x, kind, True, True).item() == 5


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("nchw,nwhu->nchu", ((2, 3, 4, 5), (2, 5, 4, 6))),
        ("nchw,nwhu->nchu", ((1, 3, 4, 5), (2, 5, 1, 6))),
        ("abcd,adce->abce", ((2, 3, 1, 5), (1, 5, 4, 6))),
        ("chw,whr->chr", ((3, 4, 5), (5, 4, 2))),
        ("chw,whr->chr", ((3, 1, 5), (5, 4, 2))),
    ],
)
def test_einsum(run_mil: Any, dtype: Any, equation: str, shapes: Any) -> None:
    rng = np.random.default_rng(2)
    x, y = (rng.integers(-9, 10, s).astype(dtype) for s in shapes)
    (found,) = run_mil(
        lambda mb, x, y: mb.einsum(values=(x, y), equation=equation), {"x": x, "y": y}
    )
    left, right = x.astype(np.float64), y.astype(np.float64)
    expected = np.swapaxes(np.swapaxes(left, -3, -2) @ np.swapaxes(right, -3, -2), -3, -2)
    close(found, expected, dtype)


def test_shapes_that_do_not_fit_are_refused() -> None:
    kind = TensorType(DTYPES["fp32"], (None,))
    with pytest.raises(ExecutionError, match="a weight of"):
        linear.linear(torch.ones(2, 3), torch.ones(4, 2), kind)
    with pytest.raises(ExecutionError, match="a bias of"):
        linear.linear(torch.ones(2, 3), torch.ones(4, 3), kind, torch.ones(3))
    with pytest.raises(ExecutionError, match="matmul has factors"):
        linear.matmul(torch.ones(2, 3), torch.ones(4, 3), kind)
