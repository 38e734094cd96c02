"""Scatters against the loop of MIL's definition, in all modes, with indices that come up again."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.ops import scatter as ops

Array = NDArray[Any]
Run = Callable[..., list[Any]]


def divide(a: Array, b: Array) -> Array:
    return a / b if np.asarray(a).dtype.kind == "f" else np.trunc(a / b).astype(a.dtype)


MODES: dict[str, Callable[[Array, Array], Array]] = {
    "update": lambda a, b: b, "add": operator.add, "sub": operator.sub, "mul": operator.mul,
    "div": divide, "max": np.maximum, "min": np.minimum,
}  # fmt: skip


def loop(data: Array, places: list[Any], updates: list[Array], mode: str) -> Array:
    """Apply the updates one after another."""
    result = data.copy()
    for place, update in zip(places, updates, strict=True):
        result[place] = MODES[mode](result[place], update)
    return result


def along(data: Array, indices: Array, updates: Array, axis: int, mode: str) -> Array:
    points = list(np.ndindex(*indices.shape))
    places = [(*p[:axis], int(indices[p]), *p[axis + 1 :]) for p in points]
    return loop(data, places, [updates[p] for p in points], mode)


def nd(data: Array, indices: Array, updates: Array, mode: str) -> Array:
    points = list(np.ndindex(*indices.shape[:-1]))
    return loop(data, [tuple(indices[p]) for p in points], [updates[p] for p in points], mode)


def rows(data: Array, indices: Array, updates: Array, axis: int, mode: str) -> Array:
    before = (slice(None),) * axis
    places = [(*before, int(i)) for i in indices]
    return loop(data, places, [updates[(*before, i)] for i in range(len(indices))], mode)


def numbers(random: np.random.Generator, shape: Any, kind: str) -> Array:
    """Return small numbers other than zero; as powers of two they multiply without rounding."""
    exact = 2.0 ** random.integers(-2, 3, shape) * random.choice([-1, 1], shape)
    whole = random.integers(1, 5, shape) * random.choice([-1, 1], shape)
    return (whole if kind == "int32" else exact).astype(kind)


@pytest.mark.parametrize("kind", ["float32", "float16", "int32"])
def test_modes_with_repeated_indices(run_mil: Run, kind: str) -> None:
    random = np.random.default_rng(0)
    data, few, many = (numbers(random, shape, kind) for shape in ((4, 3), (4, 5), (6, 3)))
    at = np.array([2, 0, 2, 2, 1], np.int32)
    grid = random.integers(0, 4, (6, 3)).astype(np.int32)
    points = np.array([[1, 2], [3, 0], [1, 2]], np.int32)
    line = numbers(random, (3,), kind)

    def build(mb: Any, data: Any, few: Any, many: Any, line: Any) -> list[Any]:
        outputs: list[Any] = []
        for mode in MODES:
            outputs += [
                mb.scatter(data=data, indices=at, updates=few, axis=-1, mode=mode),
                mb.scatter_along_axis(data=data, indices=grid, updates=many, axis=0, mode=mode),
                mb.scatter_nd(data=data, indices=points, updates=line, mode=mode),
            ]
        return outputs

    found = iter(run_mil(build, {"data": data, "few": few, "many": many, "line": line}))
    for mode in MODES:
        wanted = [
            rows(data, at, few, 1, mode),
            along(data, grid, many, 0, mode),
            nd(data, points, line, mode),
        ]
        for want in wanted:
            got = next(found)
            assert got.dtype == kind
            np.testing.assert_array_equal(got, want, err_msg=mode)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_shape(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    axis = data.draw(st.integers(0, len(shape) - 1))
    depth = data.draw(st.integers(1, len(shape)))
    count = data.draw(st.integers(0, 5))
    mode = data.draw(st.sampled_from(list(MODES)))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    x = numbers(random, shape, "float64")

    def run(function: Any, wanted: Array, at: Array, news: Array, *arguments: Any) -> None:
        given = [torch.from_numpy(v) for v in (x, at, news)]
        np.testing.assert_array_equal(function(*given, *arguments), wanted)

    other = [count if d == axis else size for d, size in enumerate(shape)]
    news = numbers(random, other, "float64")
    at = random.integers(0, shape[axis], count)
    run(ops.scatter, rows(x, at, news, axis, mode), at, news, torch.tensor(axis), mode)
    grid = random.integers(0, shape[axis], other)
    wanted = along(x, grid, news, axis, mode)
    run(ops.scatter_along_axis, wanted, grid, news, torch.tensor(axis), mode)
    points = random.integers(0, shape[:depth], (count, depth))
    news = numbers(random, (count, *shape[depth:]), "float64")
    run(ops.scatter_nd, nd(x, points, news, mode), points, news, mode)


def test_the_default_mode_adds(run_mil: Run) -> None:
    data = np.ones((3, 2), np.float32)

    def build(mb: Any, data: Any) -> Any:
        return mb.scatter(data=data, indices=[1], updates=np.ones((1, 2), np.float32))

    (found,) = run_mil(build, {"data": data})
    assert found.tolist() == [[1, 1], [2, 2], [1, 1]]


def test_a_float16_sum_is_rounded_once(run_mil: Run) -> None:
    """2048 + 1 + 1 is 2050 when the sum is wide, and stays 2048 in float16."""
    data = np.array([2048], np.float16)

    def build(mb: Any, data: Any) -> Any:
        return mb.scatter(data=data, indices=[0, 0], updates=np.ones(2, np.float16))

    (found,) = run_mil(build, {"data": data})
    assert found.tolist() == [2050]


def test_negative_indices_by_version(run_mil: Run) -> None:
    data, at = np.zeros((3, 2), np.float32), np.array([-1], np.int32)

    def build(mb: Any, data: Any, at: Any) -> Any:
        return mb.scatter(data=data, indices=at, updates=np.ones((1, 2), np.float32), mode="update")

    (found,) = run_mil(build, {"data": data, "at": at}, "iOS16")
    assert found.tolist() == [[0, 0], [0, 0], [1, 1]]
    with pytest.raises(ExecutionError, match="index -1 is out of range for size 3"):
        run_mil(build, {"data": data, "at": at}, "iOS17")


def test_wrong_values_are_refused() -> None:
    x, at = torch.zeros(2, 3, dtype=torch.int32), torch.tensor([0])
    with pytest.raises(ExecutionError, match="'xor'"):
        ops.scatter(x, at, x[:1], mode="xor")
    with pytest.raises(ExecutionError, match="divided by zero"):
        ops.scatter(x, at, x[:1], mode="div")
    with pytest.raises(ExecutionError, match=r"have shape \[3\], not \[1, 3\]"):
        ops.scatter(x, at, x[0])
    with pytest.raises(ExecutionError, match="points of 3 numbers"):
        ops.scatter_nd(x, torch.zeros(1, 3, dtype=torch.int32), x)
