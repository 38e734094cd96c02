"""Activations through saved packages, against the formulas in float64 and coremltools' folding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.ops import activation

FLOATS = [np.float32, np.float16]
properties = settings(
    phases=[Phase.explicit, Phase.generate],  # a package an example: shrinking takes minutes
    max_examples=4,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def close(found: Any, expected: Any, dtype: Any) -> None:
    assert found.dtype in (dtype, np.float32)  # outputs of iOS 15 are float32
    rtol, atol = (2e-6, 1e-6) if dtype == np.float32 else (1e-3, 1e-6)
    np.testing.assert_allclose(found, np.asarray(expected).astype(dtype), rtol=rtol, atol=atol)


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


PLAIN = {
    "relu": lambda x: np.where(x > 0, x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "softplus": lambda x: np.logaddexp(0, x),
    "softsign": lambda x: x / (1 + np.abs(x)),
}
ALPHA = {
    "elu": lambda x, a: np.where(x > 0, x, a * np.expm1(x)),
    "leaky_relu": lambda x, a: np.where(x >= 0, x, a * x),
    "thresholded_relu": lambda x, a: np.where(x >= a, x, 0),
}
ALPHA_BETA = {
    "clamped_relu": lambda x, a, b: np.minimum(b, np.where(x >= 0, x, a * x)),
    "linear_activation": lambda x, a, b: a * x + b,
    "scaled_tanh": lambda x, a, b: a * np.tanh(b * x),
    "sigmoid_hard": lambda x, a, b: np.clip(a * x + b, 0, 1),
}


@pytest.mark.parametrize("opset", ["iOS15", "iOS17"])
@pytest.mark.parametrize("dtype", FLOATS)
@properties
@given(st.integers(0, 10_000), st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_elementwise(run_mil: Any, dtype: Any, opset: str, seed: int, shape: list[int]) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(shape) * 8).astype(dtype)
    a, b = (dtype(v) for v in rng.uniform(-1.5, 1.5, 2))

    def build(mb: Any, x: Any) -> Any:
        yield from (getattr(mb, n)(x=x) for n in PLAIN)
        yield from (getattr(mb, n)(x=x, alpha=a) for n in ALPHA)
        yield from (getattr(mb, n)(x=x, alpha=a, beta=b) for n in ALPHA_BETA)

    found = run_mil(lambda mb, x: list(build(mb, x)), {"x": x}, opset)
    wide, c, d = x.astype(np.float64), float(a), float(b)
    expected = [
        *(f(wide) for f in PLAIN.values()),
        *(f(wide, c) for f in ALPHA.values()),
        *(f(wide, c, d) for f in ALPHA_BETA.values()),
    ]
    for value, reference in zip(found, expected, strict=True):
        close(value, reference, dtype)


def test_special_values(run_mil: Any) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 1000, -1000, 0], np.float32)
    found = run_mil(lambda mb, x: [getattr(mb, n)(x=x) for n in PLAIN], {"x": x})
    expected = {
        "relu": [np.nan, np.inf, 0, 1000, 0, 0],
        "relu6": [np.nan, 6, 0, 6, 0, 0],
        "sigmoid": [np.nan, 1, 0, 1, 0, 0.5],
        "silu": [np.nan, np.inf, np.nan, 1000, 0, 0],
        "softplus": [np.nan, np.inf, 0, 1000, 0, np.log(2)],
        "softsign": [np.nan, np.nan, np.nan, 1000 / 1001, -1000 / 1001, 0],
    }
    for name, value in zip(PLAIN, found, strict=True):
        np.testing.assert_allclose(value, expected[name], rtol=1e-6, err_msg=name)


GELU = {
    "EXACT": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))),
    "TANH_APPROXIMATION": lambda x: (
        0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    ),
    "SIGMOID_APPROXIMATION": lambda x: x * _sigmoid(1.702 * x),
}


@pytest.mark.parametrize("dtype", FLOATS)
@properties
@given(st.integers(0, 10_000))
def test_gelu(run_mil: Any, dtype: Any, seed: int) -> None:
    x = (np.random.default_rng(seed).standard_normal((3, 5)) * 2).astype(dtype)
    found = run_mil(lambda mb, x: [mb.gelu(x=x), *(mb.gelu(x=x, mode=m) for m in GELU)], {"x": x})
    for mode, value in zip(["EXACT", *GELU], found, strict=True):
        close(value, GELU[mode](x.astype(np.float64)), dtype)


@pytest.mark.parametrize("mode", GELU)
def test_gelu_of_infinity_is_infinite(mode: str) -> None:
    x = torch.tensor([math.inf, math.nan, 100.0, -100.0])
    found = activation.gelu(x, mode)
    torch.testing.assert_close(found, torch.tensor([math.inf, math.nan, 100, 0]), equal_nan=True)
    assert x[0] == math.inf, "the input was written to"


def test_an_unknown_mode_of_gelu_is_refused() -> None:
    with pytest.raises(ExecutionError, match="gelu has no mode 'FAST'"):
        activation.gelu(torch.ones(2), "FAST")


@pytest.mark.parametrize("dtype", FLOATS)
@properties
@given(st.integers(0, 10_000), st.lists(st.integers(1, 4), min_size=4, max_size=4))
def test_parameters_of_channels(run_mil: Any, dtype: Any, seed: int, shape: list[int]) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(shape) * 4).astype(dtype)
    a, b = (rng.uniform(-1, 1.5, shape[1]).astype(dtype) for _ in range(2))
    sloped, soft = run_mil(
        lambda mb, x: (
            mb.prelu(x=x, alpha=a),
            mb.softplus_parametric(x=x, alpha=a, beta=b),
        ),
        {"x": x},
    )
    wide = torch.from_numpy(x.astype(np.float64))
    close(sloped, F.prelu(wide, torch.from_numpy(a.astype(np.float64))).numpy(), dtype)
    slope = b.astype(np.float64)[:, None, None] * x.astype(np.float64)
    close(soft, a.astype(np.float64)[:, None, None] * np.logaddexp(0, slope), dtype)


def test_parameters_of_other_channels_are_refused() -> None:
    with pytest.raises(ExecutionError, match=r"prelu has a parameter of shape \[2\]"):
        activation.prelu(torch.ones(1, 3, 4), torch.ones(2))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("axis", [0, 1, -1, -3])
def test_softmax(run_mil: Any, fold_mil: Any, dtype: Any, axis: int) -> None:
    x = (np.random.default_rng(0).standard_normal((2, 3, 4)) * 30).astype(dtype)
    (found,) = run_mil(lambda mb, x: mb.softmax(x=x, axis=axis), {"x": x})
    wide = x.astype(np.float64)
    powers = np.exp(wide - wide.max(axis, keepdims=True))
    close(found, powers / powers.sum(axis, keepdims=True), dtype)


def test_folding_by_coremltools_agrees(run_mil: Any, fold_mil: Any) -> None:
    x = (np.random.default_rng(1).standard_normal((2, 3, 4, 4)) * 3).astype(np.float32)
    a, b = np.float32(0.3), np.float32(-0.6)
    many = np.array([0.3, -0.2, 1.2], np.float32)

    def build(mb: Any, x: Any) -> Any:
        x = mb.identity(x=x) if x.val is None else x
        return [
            *(getattr(mb, n)(x=x) for n in PLAIN if n != "silu"),
            *(getattr(mb, n)(x=x, alpha=a) for n in ALPHA if n != "thresholded_relu"),
            *(getattr(mb, n)(x=x, alpha=a, beta=b) for n in ALPHA_BETA if n != "clamped_relu"),
            *(mb.gelu(x=x, mode=m) for m in GELU),
            mb.softmax(x=x),
            mb.prelu(x=x, alpha=many),
            mb.softplus_parametric(x=x, alpha=many, beta=many),
        ]

    for found, folded in zip(run_mil(build, {"x": x}), fold_mil(build, {"x": x}), strict=True):
        np.testing.assert_allclose(found, folded, rtol=1e-5, atol=1e-6)
