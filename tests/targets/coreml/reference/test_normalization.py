"""Normalizations through saved packages, against their formulas in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.ops import normalization

FLOATS = [np.float32, np.float16]
properties = settings(
    phases=[Phase.explicit, Phase.generate],  # a package an example: shrinking takes minutes
    max_examples=4,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def close(found: Any, expected: Any, dtype: Any) -> None:
    assert found.dtype in (dtype, np.float32)  # outputs of iOS 15 are float32
    rtol, atol = (1e-5, 1e-5) if dtype == np.float32 else (1e-3, 1e-3)
    np.testing.assert_allclose(found, np.asarray(expected).astype(dtype), rtol=rtol, atol=atol)


def _random(seed: int, shape: list[int], dtype: Any) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    x = rng.uniform(-2, 2, shape).astype(dtype)
    return x, lambda *size: rng.uniform(0.5, 1.5, size).astype(dtype)


@pytest.mark.parametrize("opset", ["iOS15", "iOS17"])
@pytest.mark.parametrize("dtype", FLOATS)
@properties
@given(st.integers(0, 10_000), st.lists(st.integers(1, 4), min_size=3, max_size=5), st.booleans())
def test_batch_norm(
    run_mil: Any, dtype: Any, opset: str, seed: int, shape: list[int], affine: bool
) -> None:
    x, vector = _random(seed, shape, dtype)
    mean, variance, gamma, beta = (vector(shape[1]) for _ in range(4))
    given_ = {"gamma": gamma, "beta": beta} if affine else {}
    (found,) = run_mil(
        lambda mb, x: mb.batch_norm(
            x=x, mean=mean, variance=variance, epsilon=dtype(0.01), **given_
        ),
        {"x": x},
        opset,
    )
    m, v, g, b = (
        p.astype(np.float64).reshape(-1, *[1] * (len(shape) - 2))
        for p in (mean, variance, gamma, beta)
    )
    expected = (x.astype(np.float64) - m) / np.sqrt(v + float(dtype(0.01)))
    close(found, expected * g + b if affine else expected, dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@properties
@given(st.integers(0, 10_000), st.lists(st.integers(1, 4), min_size=3, max_size=4))
def test_instance_norm(run_mil: Any, dtype: Any, seed: int, shape: list[int]) -> None:
    x, vector = _random(seed, shape, dtype)
    gamma, beta = vector(shape[1]), vector(shape[1])
    found = run_mil(
        lambda mb, x: (
            mb.instance_norm(x=x, gamma=gamma, beta=beta, epsilon=dtype(0.1)),
            mb.instance_norm(x=x, epsilon=dtype(0.1)),
        ),
        {"x": x},
    )
    wide, over = x.astype(np.float64), tuple(range(2, len(shape)))
    plain = (wide - wide.mean(over, keepdims=True)) / np.sqrt(
        wide.var(over, keepdims=True) + float(dtype(0.1))
    )
    along = (-1, *[1] * (len(shape) - 2))
    close(found[0], plain * gamma.reshape(along) + beta.reshape(along), dtype)
    close(found[1], plain, dtype)


@pytest.mark.parametrize("axes", [[0, 1, 2], [-1], [2, 1], [0, 2], [1], [-3, -1]])
@pytest.mark.parametrize("dtype", FLOATS)
def test_layer_norm(run_mil: Any, dtype: Any, axes: list[int]) -> None:
    x, vector = _random(3, [2, 3, 4], dtype)
    dims = sorted(a % 3 for a in axes)
    sizes = [x.shape[d] for d in dims]
    gamma, beta = vector(*sizes), vector(*sizes)

    def build(mb: Any, x: Any) -> Any:
        return [
            mb.layer_norm(x=x, gamma=gamma, beta=beta, epsilon=dtype(0.1), axes=axes),
            mb.layer_norm(x=x, epsilon=dtype(0.1), axes=axes),
            mb.layer_norm(x=x, gamma=gamma, axes=axes),
        ]

    found = run_mil(build, {"x": x})
    wide, over = x.astype(np.float64), tuple(dims)
    centred = wide - wide.mean(over, keepdims=True)
    variance = wide.var(over, keepdims=True)
    along = [n if d in dims else 1 for d, n in enumerate((2, 3, 4))]
    plain = centred / np.sqrt(variance + float(dtype(0.1)))
    close(found[0], plain * gamma.reshape(along) + beta.reshape(along), dtype)
    close(found[1], plain, dtype)
    close(found[2], centred / np.sqrt(variance + float(dtype(1e-5))) * gamma.reshape(along), dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@properties
@given(st.integers(0, 10_000), st.lists(st.integers(1, 4), min_size=3, max_size=5))
def test_l2_norm(run_mil: Any, dtype: Any, seed: int, shape: list[int]) -> None:
    x, _ = _random(seed, shape, dtype)
    (found,) = run_mil(lambda mb, x: mb.l2_norm(x=x, epsilon=dtype(0.01)), {"x": x})
    wide = x.astype(np.float64)
    squares = np.square(wide).sum((-3, -2, -1), keepdims=True)
    close(found, wide / np.sqrt(squares + float(dtype(0.01))), dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 12, 13, 40])
@pytest.mark.parametrize("shape", [(2, 6, 5), (1, 6, 3, 2)])
def test_local_response_norm(run_mil: Any, dtype: Any, size: int, shape: tuple[int, ...]) -> None:
    x, _ = _random(size, list(shape), dtype)
    given_ = {"alpha": dtype(0.5), "beta": dtype(0.7), "k": dtype(1.25)}
    found = run_mil(
        lambda mb, x: (
            mb.local_response_norm(x=x, size=size, **given_),
            mb.local_response_norm(x=x, size=size),
        ),
        {"x": x},
    )
    squares = np.square(x.astype(np.float64))
    sums = np.zeros(shape)
    for channel in range(shape[1]):
        first = max(0, channel - size // 2)
        sums[:, channel] = squares[:, first : channel + (size - 1) // 2 + 1].sum(1)
    a, b, k = (float(v) for v in given_.values())
    close(found[0], x / (k + a / size * sums) ** b, dtype)
    close(found[1], x / (1 + 1e-4 / size * sums) ** 0.75, dtype)


def test_formulas_equal_pytorchs_on_large_values() -> None:
    x = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0)) * 1e4
    torch.testing.assert_close(
        normalization.instance_norm(x), F.instance_norm(x), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(normalization.layer_norm(x), F.layer_norm(x, x.shape))


def test_parameters_of_another_shape_are_refused() -> None:
    x = torch.ones(1, 3, 2)
    with pytest.raises(ExecutionError, match="batch_norm of"):
        normalization.batch_norm(x, torch.ones(3), torch.ones(2))
    with pytest.raises(ExecutionError, match="parameter of another shape"):
        normalization.layer_norm(x, torch.tensor([-1]), torch.ones(3))
    with pytest.raises(ExecutionError, match="axes"):
        normalization.layer_norm(x, torch.tensor([3]))
    with pytest.raises(ExecutionError, match="three dimensions"):
        normalization.l2_norm(torch.ones(2, 2))
    with pytest.raises(ExecutionError, match="over 0 channels"):
        normalization.local_response_norm(x, torch.tensor(0))
