"""Gathers against NumPy and TensorFlow's formulas, in all versions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.ops import gather as ops

Array = NDArray[Any]
Run = Callable[..., list[Any]]


def tf_gather(x: Array, indices: Array, axis: int, batch_dims: int) -> Array:
    """Return tf.gather: the sum of its formula's cases, row by row of the batch."""
    if batch_dims == 0:
        return np.take(x, indices, axis)
    rows = [tf_gather(a, i, axis - 1, batch_dims - 1) for a, i in zip(x, indices, strict=True)]
    return np.stack(rows)


def tf_gather_nd(x: Array, indices: Array, batch_dims: int) -> Array:
    if batch_dims:
        rows = zip(x, indices, strict=True)
        return np.stack([tf_gather_nd(a, i, batch_dims - 1) for a, i in rows])
    found = [x[tuple(point)] for point in indices.reshape(-1, indices.shape[-1])]
    return np.stack(found).reshape((*indices.shape[:-1], *x.shape[indices.shape[-1] :]))


@pytest.mark.parametrize("kind", ["float32", "float16", "int32", "int8", "uint16"])
def test_gathers_of_all_dtypes(run_mil: Run, fold_mil: Run, kind: str) -> None:
    random = np.random.default_rng(0)
    x = random.integers(0, 100, (3, 4, 5)).astype(kind)
    at = random.integers(0, 3, (3, 2)).astype(np.int32)
    along = random.integers(0, 4, (3, 6, 5)).astype(np.int32)

    def gathers(mb: Any, x: Any, at: Any, along: Any) -> list[Any]:
        return [
            mb.gather(x=x, indices=at, axis=-2),
            mb.gather(x=x, indices=at, axis=2, batch_dims=1),
            mb.gather(x=x, indices=np.int32(2), axis=0),
            mb.gather_along_axis(x=x, indices=along, axis=-2),
            mb.gather_nd(x=x, indices=at),
            mb.gather_nd(x=x, indices=at, batch_dims=1),
        ]

    def build(mb: Any, **inputs: Any) -> list[Any]:
        return [mb.cast(x=v, dtype="fp32") for v in gathers(mb, **inputs)]

    inputs = {"x": x, "at": at, "along": along}
    wanted = [
        np.take(x, at, 1), tf_gather(x, at, 2, 1), x[2], np.take_along_axis(x, along, 1),
        tf_gather_nd(x, at, 0), tf_gather_nd(x, at, 1),
    ]  # fmt: skip
    for got, want in zip(run_mil(build, inputs, "iOS17"), wanted, strict=True):
        np.testing.assert_array_equal(got, want)
    for fold, want in zip(fold_mil(gathers, inputs, "iOS17"), wanted, strict=True):
        if fold is not None:
            np.testing.assert_array_equal(fold, want)


@pytest.mark.parametrize("opset", ["iOS15", "iOS16"])
def test_negative_indices_count_from_the_end_before_ios17(run_mil: Run, opset: str) -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    at = np.array([[-1, 0], [-3, 2]], np.int32)

    def build(mb: Any, x: Any, at: Any) -> list[Any]:
        along = mb.gather_along_axis(x=mb.gather(x=x, indices=[0, 1]), indices=at, axis=1)
        return [mb.gather(x=x, indices=at, axis=0), along, mb.gather_nd(x=x, indices=at)]

    found = run_mil(build, {"x": x, "at": at}, opset)
    wanted = [x[at], np.take_along_axis(x[:2], at, 1), x[at[:, 0], at[:, 1]]]
    for got, want in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(("index", "validate"), [(-1, False), (3, True)])
def test_indices_out_of_range_are_refused_since_ios17(
    run_mil: Run, index: int, validate: bool
) -> None:
    inputs = {"x": np.zeros((3, 3), np.float32), "at": np.array([[0, index]], np.int32)}
    ops = (
        lambda mb, **given: mb.gather(**given, axis=0, validate_indices=validate),
        lambda mb, **given: mb.gather_nd(**given, validate_indices=validate),
    )
    for build in ops:
        with pytest.raises(ExecutionError, match=f"gather.*: index {index} is out of range"):
            run_mil(lambda mb, x, at, b=build: b(mb, x=x, indices=at), inputs, "iOS17")


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_batch_axes(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    shared = data.draw(st.integers(0, len(shape) - 1))
    axis = data.draw(st.integers(shared, len(shape) - 1))
    own = data.draw(st.lists(st.integers(1, 3), max_size=2))
    depth = data.draw(st.integers(1, len(shape) - shared))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    x = random.normal(size=shape)
    at = random.integers(0, shape[axis], [*shape[:shared], *own])
    inner = shape[shared : shared + depth]
    nd = random.integers(0, inner, [*shape[:shared], *own, depth])
    args = [torch.from_numpy(v) for v in (x, np.asarray(at), nd)]
    found = ops.gather(args[0], args[1], torch.tensor(axis), torch.tensor(shared))
    np.testing.assert_array_equal(found, tf_gather(x, at, axis, shared))
    found = ops.gather_nd(args[0], args[2], torch.tensor(shared))
    np.testing.assert_array_equal(found, tf_gather_nd(x, nd, shared))


def test_shapes_that_do_not_fit_are_refused() -> None:
    x, at = torch.zeros(2, 3), torch.zeros(3, 1, dtype=torch.int32)
    with pytest.raises(ExecutionError, match="do not fit"):
        ops.gather_along_axis(x, at, torch.tensor(1))
    with pytest.raises(ExecutionError, match="with 1 batch axes do not fit"):
        ops.gather_nd(x, at, torch.tensor(1))
    with pytest.raises(ExecutionError, match="batch_dims is 1"):
        ops.gather(x, at, torch.tensor(0), torch.tensor(1))
