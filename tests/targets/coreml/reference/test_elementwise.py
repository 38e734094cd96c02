"""Element-wise ops through saved packages, against numpy in float64 and coremltools' folding.

A program gives out float16, float32 and int32 only: coremltools casts other results to these. That a result
has the type that the program declares is checked by the interpreter.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.ops import elementwise
from qcompile.targets.coreml.reference.types import DTYPES, TensorType

FLOATS = [np.float32, np.float16]
UNARY = {
    "abs": np.abs, "acos": np.arccos, "asin": np.arcsin, "atan": np.arctan, "atanh": np.arctanh,
    "ceil": np.ceil, "cos": np.cos, "cosh": np.cosh, "erf": np.vectorize(math.erf), "exp": np.exp,
    "exp2": np.exp2, "floor": np.floor, "round": np.round, "sign": np.sign, "sin": np.sin,
    "sinh": np.sinh, "sqrt": np.sqrt, "square": np.square, "tan": np.tan, "tanh": np.tanh,
}  # fmt: skip
BINARY = {
    "add": np.add, "floor_div": np.floor_divide, "maximum": np.maximum, "minimum": np.minimum,
    "mod": np.mod, "mul": np.multiply, "sub": np.subtract, "real_div": np.divide,
    "equal": np.equal, "not_equal": np.not_equal, "greater": np.greater, "less": np.less,
    "greater_equal": np.greater_equal, "less_equal": np.less_equal,
}  # fmt: skip
LOGICAL = {
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_xor": np.logical_xor,
}
properties = settings(
    phases=[Phase.explicit, Phase.generate],  # a package an example: shrinking takes minutes
    max_examples=4,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def close(found: Any, expected: Any, dtype: Any) -> None:
    """Compare with what is expected in float64, after rounding it to the dtype."""
    assert found.dtype in (dtype, np.float32)  # outputs of iOS 15 are float32
    with np.errstate(over="ignore"):
        rounded = np.asarray(expected).astype(dtype)
    rtol, atol = (2e-6, 1e-6) if dtype == np.float32 else (1e-3, 1e-7)
    np.testing.assert_allclose(found, rounded, rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", FLOATS)
@properties
@given(st.integers(0, 10_000), st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_unary(run_mil: Any, dtype: Any, seed: int, shape: list[int]) -> None:
    x = np.random.default_rng(seed).uniform(-0.95, 0.95, shape).astype(dtype)
    x.flat[0] = 0.5  # half to even
    found = run_mil(
        lambda mb, x: [getattr(mb, n)(x=mb.abs(x=x) if n == "sqrt" else x) for n in UNARY], {"x": x}
    )
    wide = x.astype(np.float64)
    for name, value in zip(UNARY, found, strict=True):
        close(value, UNARY[name](np.abs(wide) if name == "sqrt" else wide), dtype)


def test_unary_of_special_values_equals_numpys(run_mil: Any) -> None:
    x = np.array([np.nan, np.inf, -np.inf, -0.0, 2.5, 3.5, -1.5, 88, -104], np.float32)
    found = run_mil(lambda mb, x: [getattr(mb, n)(x=x) for n in UNARY], {"x": x})
    with np.errstate(all="ignore"):
        for name, value in zip(UNARY, found, strict=True):
            expected = UNARY[name](x.astype(np.float64)).astype(np.float32)
            np.testing.assert_allclose(value, expected, rtol=2e-6, atol=1e-6, err_msg=name)


def test_half_overflows_to_infinity_after_the_op(run_mil: Any) -> None:
    x = np.array([300.0, -300.0, 12.0], np.float16)
    squared, exponential = run_mil(lambda mb, x: (mb.square(x=x), mb.exp(x=x)), {"x": x})
    np.testing.assert_array_equal(squared, np.array([np.inf, np.inf, 144], np.float16))
    np.testing.assert_array_equal(exponential, np.array([np.inf, 0, np.inf], np.float16))


def test_unary_of_integers_equals_folding(run_mil: Any, fold_mil: Any) -> None:
    x = np.array([-7, 0, 3, 46341, -(2**31)], np.int32)
    names = ("abs", "sign", "square")

    def build(mb: Any, x: Any) -> Any:
        return [*(getattr(mb, n)(x=x) for n in names), mb.threshold(x=x, alpha=np.int32(2))]

    for found, folded in zip(run_mil(build, {"x": x}), fold_mil(build, {"x": x}), strict=True):
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, folded)
    (powers,) = run_mil(
        lambda mb, x: mb.exp2(x=x), {"x": np.array([-1, 0, 5, 30, 31, 99], np.int32)}
    )
    np.testing.assert_array_equal(powers, [0, 1, 32, 2**30, 2**31 - 1, 2**31 - 1])


@pytest.mark.parametrize("dtype", FLOATS)
@properties
@given(st.integers(0, 10_000), st.sampled_from([((2, 3), (3,)), ((4, 1), (1, 5)), ((3,), (2, 3))]))
def test_binary(run_mil: Any, dtype: Any, seed: int, shapes: Any) -> None:
    rng = np.random.default_rng(seed)
    x, y = (rng.choice(np.linspace(-4, 4, 64), s).astype(dtype) for s in shapes)
    found = run_mil(
        lambda mb, x, y: [
            *(getattr(mb, n)(x=x, y=y) for n in BINARY),
            mb.pow(x=mb.abs(x=x), y=y),
        ],
        {"x": x, "y": y},
    )
    a, b = x.astype(np.float64), y.astype(np.float64)
    for name, value in zip(BINARY, found, strict=False):
        expected = BINARY[name](a, b)
        if expected.dtype == bool:
            np.testing.assert_array_equal(value, expected, err_msg=name)
        else:
            close(value, expected, dtype)
    close(found[-1], np.abs(a) ** b, dtype)


@properties
@given(st.integers(0, 10_000))
def test_binary_of_integers(run_mil: Any, fold_mil: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(-(2**31), 2**31, (2, 3)).astype(np.int32)
    y = rng.choice([-9, -2, -1, 1, 2, 7, 2**31 - 1], 3).astype(np.int32)
    names = [n for n in BINARY if n != "real_div"]

    def build(mb: Any, x: Any, y: Any) -> Any:
        return [getattr(mb, n)(x=x, y=y) for n in names]

    found = run_mil(build, {"x": x, "y": y})
    folded = fold_mil(build, {"x": x, "y": y})
    for name, value, expected in zip(names, found, folded, strict=True):
        np.testing.assert_array_equal(value, expected, err_msg=name)


def test_division_of_integers(run_mil: Any) -> None:
    x = np.array([7, -7, 7, -7, -(2**31)], np.int32)
    y = np.array([2, 2, -2, -2, -1], np.int32)

    def build(mb: Any, x: Any, y: Any) -> Any:
        return mb.floor_div(x=x, y=y), mb.mod(x=x, y=y), mb.real_div(x=x, y=y)

    floor, rest, real = run_mil(build, {"x": x, "y": y})
    np.testing.assert_array_equal(floor, [3, -4, -4, 3, -(2**31)])
    np.testing.assert_array_equal(rest, [1, 1, -1, -1, 0])
    np.testing.assert_array_equal(real, [3, -3, -3, 3, -(2**31)])


@pytest.mark.parametrize("name", ["floor_div", "mod", "real_div"])
def test_an_integer_over_zero_is_refused(run_mil: Any, name: str) -> None:
    x, y = np.array([1, 2], np.int32), np.array([1, 0], np.int32)
    with pytest.raises(ExecutionError, match=f"{name} divides an integer by zero"):
        run_mil(lambda mb, x, y: getattr(mb, name)(x=x, y=y), {"x": x, "y": y})


def test_division_of_floats_by_zero_and_infinity_is_pythons(run_mil: Any) -> None:
    x = np.array([1, -1, 0, -1, 1, 6.5], np.float32)
    y = np.array([0, 0, 0, np.inf, 0.1, -3], np.float32)
    given_ = {"x": x, "y": y}
    floor, rest = run_mil(lambda mb, x, y: (mb.floor_div(x=x, y=y), mb.mod(x=x, y=y)), given_)
    np.testing.assert_array_equal(floor, [np.inf, -np.inf, np.nan, -1, 9, -3])
    np.testing.assert_array_equal(rest[3:], np.array([np.inf, np.float32(1) % y[4], -2.5], "f"))
    assert np.isnan(rest[:3]).all()


def test_power_of_integers(run_mil: Any) -> None:
    x, y = np.array([-3, 2, 0, 5], np.int32), np.array([3, 31, 0, 1], np.int32)
    (found,) = run_mil(lambda mb, x, y: mb.pow(x=x, y=y), {"x": x, "y": y})
    np.testing.assert_array_equal(found, [-27, -(2**31), 1, 5])
    with pytest.raises(ExecutionError, match="negative power"):
        run_mil(lambda mb, x, y: mb.pow(x=x, y=y), {"x": x, "y": -y})


@pytest.mark.parametrize("dtype", FLOATS)
def test_maximum_minimum_and_clip_pass_nan_on(run_mil: Any, fold_mil: Any, dtype: Any) -> None:
    x = np.array([np.nan, 1, np.inf, -np.inf], dtype)
    y = np.array([1, np.nan, 3, 3], dtype)

    def build(mb: Any, x: Any, y: Any) -> Any:
        bounded = mb.clip(x=x, alpha=dtype(-1), beta=dtype(2))
        return mb.maximum(x=x, y=y), mb.minimum(x=x, y=y), bounded

    found, folded = run_mil(build, {"x": x, "y": y}), fold_mil(build, {"x": x, "y": y})
    for value, expected in zip(found, folded, strict=True):
        np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize("opset", ["iOS15", "iOS18"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_clip_and_threshold(run_mil: Any, dtype: Any, opset: str) -> None:
    x = np.linspace(-3, 3, 13).astype(dtype)
    clipped, above = run_mil(
        lambda mb, x: (
            mb.clip(x=x, alpha=dtype(-0.7), beta=dtype(1.3)),
            mb.threshold(x=x, alpha=dtype(0.3)),
        ),
        {"x": x},
        opset,
    )
    np.testing.assert_array_equal(clipped, np.clip(x, dtype(-0.7), dtype(1.3)))
    np.testing.assert_array_equal(above, np.maximum(x, dtype(0.3)))


@pytest.mark.parametrize("opset", ["iOS15", "iOS17"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_epsilon_given_and_not(run_mil: Any, dtype: Any, opset: str) -> None:
    x = np.array([0.5, 0.01, 3, 0.0], dtype)
    stabilizer, wide = dtype(0.25), x.astype(np.float64)
    found = run_mil(
        lambda mb, x: [
            *(getattr(mb, n)(x=x, epsilon=stabilizer) for n in ("inverse", "log", "rsqrt")),
            *(getattr(mb, n)(x=x) for n in ("inverse", "log", "rsqrt")),
        ],
        {"x": x},
        opset,
    )
    shifted = wide + 0.25
    close(found[0], 1 / shifted, dtype)
    close(found[1], np.log(shifted), dtype)
    close(found[2], shifted**-0.5, dtype)
    with np.errstate(divide="ignore"):
        close(found[3], 1 / (wide + float(dtype(1e-4))), dtype)
        close(found[4], np.log(wide + float(dtype(1e-45))), dtype)
        close(found[5], (wide + float(dtype(1e-12))) ** -0.5, dtype)


def test_an_epsilon_left_out_has_the_type_of_the_result() -> None:
    zero = torch.zeros(1)
    half, single = (TensorType(DTYPES[n], (1,)) for n in ("fp16", "fp32"))
    assert elementwise.log(zero, half).item() == -math.inf
    assert elementwise.log(zero, single).item() == pytest.approx(math.log(2**-149))
    assert elementwise.rsqrt(zero, half).item() == math.inf
    assert elementwise.rsqrt(zero, single).item() == pytest.approx(1e6)
    assert elementwise.inverse(zero, half).item() == pytest.approx(1 / float(np.float16(1e-4)))


def test_logical(run_mil: Any) -> None:
    x, y = np.array([False, False, True, True]), np.array([False, True, False, True])
    found = run_mil(
        lambda mb, x, y: [
            *(getattr(mb, n)(x=x, y=y) for n in LOGICAL),
            mb.logical_not(x=x),
        ],
        {"x": x, "y": y},
    )
    for name, value in zip(LOGICAL, found, strict=False):
        np.testing.assert_array_equal(value, LOGICAL[name](x, y), err_msg=name)
    np.testing.assert_array_equal(found[-1], ~x)


INTEGERS = ("int8", "uint8", "int16", "uint16", "int32")


@pytest.mark.parametrize("dtype", [*FLOATS, np.int32])
def test_cast_within_range_equals_numpys(run_mil: Any, dtype: Any) -> None:
    x = np.array([0, 1, 2.9, 100.5, 127], dtype)
    names = (*INTEGERS, "bool", "fp16", "fp32")
    found = run_mil(lambda mb, x: [mb.cast(x=x, dtype=n) for n in names], {"x": x})
    for name, value in zip(names, found, strict=True):
        expected = x.astype({"fp16": "float16", "fp32": "float32"}.get(name, name))
        np.testing.assert_array_equal(value, expected, err_msg=name)


def test_cast_of_floats_saturates(run_mil: Any) -> None:
    x = np.array([np.nan, np.inf, -np.inf, -1.9, 255.9, 3e9, -3e9, 2.0**31 - 128], np.float32)
    found = run_mil(lambda mb, x: [mb.cast(x=x, dtype=n) for n in INTEGERS], {"x": x})
    for name, value in zip(INTEGERS, found, strict=True):
        low, high = np.iinfo(name).min, np.iinfo(name).max
        ends = [max(low, -1), min(255, high), high, low, min(2**31 - 128, high)]
        np.testing.assert_array_equal(value, [0, high, low, *ends], err_msg=name)


def test_cast_between_integers_and_from_bool(run_mil: Any) -> None:
    x = np.array([-1, 300, 2**31 - 1, -(2**31), 70000, 0], np.int32)

    def build(mb: Any, x: Any) -> Any:
        narrow = [mb.cast(x=x, dtype=n) for n in ("int8", "uint8", "int16", "uint16")]
        truth = mb.cast(x=x, dtype="bool")
        numbers = [mb.cast(x=truth, dtype=n) for n in ("int32", "fp16", "uint8")]
        return [*narrow, *numbers, *(mb.cast(x=v, dtype="int32") for v in narrow)]

    found = run_mil(build, {"x": x})
    narrow = [x.astype(n) for n in ("int8", "uint8", "int16", "uint16")]
    numbers = [(x != 0).astype(n) for n in ("int32", "float16", "uint8")]
    for value, expected in zip(
        found, [*narrow, *numbers, *(v.astype(np.int32) for v in narrow)], strict=True
    ):
        np.testing.assert_array_equal(value, expected)


def test_a_cast_to_an_unknown_type_is_refused() -> None:
    with pytest.raises(ExecutionError, match="cast knows no type 'int64'"):
        elementwise.cast(torch.zeros(2), "int64")
