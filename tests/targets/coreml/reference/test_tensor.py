"""Ops that make, join, split and select tensors, through saved packages."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.ops import tensor as ops
from qcompile.targets.coreml.reference.types import DTYPES, TensorType

Array = NDArray[Any]
Run = Callable[..., list[Any]]


def sample(shape: tuple[int, ...], kind: str, seed: int = 0) -> Array:
    x = np.random.default_rng(seed).integers(-50 if kind[0] in "fi" else 0, 50, shape)
    return (x > 25).astype(bool) if kind == "bool" else x.astype(kind)


def result_type(kind: str) -> TensorType:
    return TensorType(DTYPES[kind], (None,))


@pytest.mark.parametrize("kind", ["float32", "float16", "int32", "bool"])
def test_joining_splitting_and_selecting(run_mil: Run, fold_mil: Run, kind: str) -> None:
    a, b = sample((2, 3, 4), kind), sample((2, 3, 4), kind, 1)
    row, where = sample((3, 1), kind, 2), sample((2, 1, 4), "bool", 3)

    def joined(mb: Any, a: Any, b: Any, **_: Any) -> list[Any]:
        return [
            mb.concat(values=[a, b], axis=-2),
            mb.stack(values=[a, b], axis=1),
            mb.stack(values=[a, b], axis=-1),
            *mb.split(x=a, num_splits=3, axis=1),
            *mb.split(x=a, split_sizes=[1, 3], axis=-1),
            *mb.split(x=a, num_splits=2, split_sizes=[2, 1], axis=1),
            mb.tile(x=a, reps=[2, 1, 3]),
            mb.identity(x=a),
            mb.band_part(x=a, lower=1, upper=0),
            mb.band_part(x=a, lower=-1, upper=2),
            mb.band_part(x=a, lower=0),
        ]

    def chosen(mb: Any, a: Any, b: Any, row: Any, where: Any) -> list[Any]:
        return [
            mb.concat(values=[a, b], axis=1, interleave=True),
            mb.select(cond=where, a=a, b=b),
            mb.select(cond=where, a=row, b=b),
        ]

    def build(mb: Any, **inputs: Any) -> list[Any]:
        outputs = [*joined(mb, **inputs), *chosen(mb, **inputs)]
        casts = kind == "bool"
        return [mb.cast(x=v, dtype="int32") if casts else mb.identity(x=v) for v in outputs]

    turns = np.empty((2, 6, 4), a.dtype)
    turns[:, 0::2], turns[:, 1::2] = a, b
    below = np.arange(3)[:, None] - np.arange(4)
    wanted = [
        np.concatenate([a, b], 1), np.stack([a, b], 1), np.stack([a, b], -1),
        a[:, :1], a[:, 1:2], a[:, 2:], a[..., :1], a[..., 1:], a[:, :2], a[:, 2:],
        np.tile(a, (2, 1, 3)), a, a * ((below <= 1) & (below >= 0)), a * (below >= -2),
        a * (below <= 0),
        turns, np.where(where, a, b), np.where(where, row, b),
    ]  # fmt: skip
    inputs = {"a": a, "b": b, "row": row, "where": where}
    found = run_mil(build, inputs)
    for got, want in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(got, want)
    if kind != "bool":
        assert {got.dtype for got in found} == {np.dtype(kind)}
        folds = fold_mil(joined, {"a": a, "b": b})
        for fold, want in zip(folds, wanted, strict=False):
            np.testing.assert_array_equal(fold, want)


def test_selection_broadcasts_its_condition() -> None:
    cond, a, b = torch.rand(2, 1, 4) > 0.5, torch.rand(3, 1).half(), torch.rand(1).half()
    found = ops.select(cond, a, b)
    assert found.dtype == torch.float16
    assert torch.equal(found, torch.where(cond, a.expand(2, 3, 4), b.expand(2, 3, 4)))


def test_scalars_become_a_vector(run_mil: Run) -> None:
    def build(mb: Any, x: Any) -> Any:
        sizes = mb.shape(x=mb.slice_by_index(x=x, begin=[0, 0], end=[1, 3]))
        parts = [mb.gather(x=sizes, indices=np.int32(i), axis=0) for i in (1, 0)]
        return [mb.concat(values=parts, axis=0), mb.stack(values=parts, axis=0)]

    for found in run_mil(build, {"x": np.zeros((2, 3), np.float32)}):
        assert found.tolist() == [3, 1]


@pytest.mark.parametrize(
    ("value", "kind"),
    [(2.5, "float32"), (np.float16(0.1), "float16"), (np.int32(-7), "int32"), (True, "int32")],
)
def test_filling_keeps_the_dtype_of_the_value(
    run_mil: Run, fold_mil: Run, value: Any, kind: str
) -> None:
    def made(mb: Any, x: Any) -> list[Any]:
        return [mb.fill(shape=[2, 3], value=value), mb.fill_like(ref_tensor=x, value=value)]

    def build(mb: Any, x: Any) -> list[Any]:
        casts = value is True
        return [mb.cast(x=v, dtype="int32") if casts else v for v in made(mb, x)]

    x = np.zeros((4, 1), np.int32)
    for found, fold, shape in zip(
        run_mil(build, {"x": x}), fold_mil(made, {"x": x}), [(2, 3), (4, 1)], strict=True
    ):
        np.testing.assert_array_equal(found, np.full(shape, value))
        np.testing.assert_array_equal(fold, found)
        assert found.dtype == kind


def test_a_fill_of_a_shape_that_is_computed(run_mil: Run) -> None:
    (found,) = run_mil(lambda mb, s: mb.fill(shape=s), {"s": np.array([2, 1], np.int32)})
    assert found.tolist() == [[0.0], [0.0]]
    with pytest.raises(ExecutionError, match="larger than"):
        run_mil(lambda mb, s: mb.fill(shape=s), {"s": np.array([1 << 30] * 2, np.int32)})
    with pytest.raises(ExecutionError, match="negative size"):
        run_mil(lambda mb, s: mb.fill(shape=s), {"s": np.array([2, -1], np.int32)})


@settings(max_examples=20, deadline=None)
@given(st.integers(-20, 20), st.integers(-20, 20), st.integers(-5, 5).filter(bool))
def test_ranges_are_those_of_numpy(start: int, end: int, step: int) -> None:
    for kind, scale in (("int32", 1), ("fp32", 4)):
        given_ = [torch.tensor(v / scale if scale > 1 else v) for v in (start, end, step)]
        found = ops.range_1d(*given_, result=result_type(kind))
        wanted = np.arange(start, end, step) / scale
        np.testing.assert_array_equal(found.numpy(), wanted)
        assert found.dtype == DTYPES[kind].torch


def test_ranges_of_values_that_are_computed(run_mil: Run, fold_mil: Run) -> None:
    def build(mb: Any, x: Any) -> list[Any]:
        first, last, by = (mb.gather(x=x, indices=np.int32(i), axis=0) for i in range(3))
        return [mb.range_1d(start=first, end=last, step=by)]

    for values in ([1.0, 2.1, 0.25], [3.0, -1.0, -0.5], [0.0, 1.0, 0.1]):
        x = np.array(values, np.float32)
        (found,), (fold,) = run_mil(build, {"x": x}), fold_mil(build, {"x": x})
        np.testing.assert_allclose(found, fold, rtol=1e-6)
    with pytest.raises(ExecutionError, match="does not end"):
        run_mil(build, {"x": np.array([1, 2, 0], np.float32)})
    with pytest.raises(ExecutionError, match="larger than"):
        run_mil(build, {"x": np.array([0, 1e30, 1], np.float32)})


def test_one_hot_vectors(run_mil: Run) -> None:
    at = np.array([[1, 0, -1], [2, 3, 7]], np.int32)

    def build(mb: Any, at: Any) -> list[Any]:
        return [
            mb.one_hot(indices=at, one_hot_vector_size=4),
            mb.one_hot(indices=at, one_hot_vector_size=3, axis=0, on_value=1.0, off_value=0.1),
            mb.one_hot(
                indices=at, one_hot_vector_size=5, axis=-2,
                on_value=np.float16(9), off_value=np.float16(-0.1),
            ),
        ]  # fmt: skip

    found = run_mil(build, {"at": at})
    wanted = [
        np.where(at[..., None] == np.arange(4), 1, 0),
        np.where(at == np.arange(3)[:, None, None], np.float32(1.0), np.float32(0.1)),
        np.where(at[:, None] == np.arange(5)[:, None], np.float16(9), np.float16(-0.1)),
    ]
    for got, want, kind in zip(found, wanted, ["int32", "float32", "float16"], strict=True):
        assert got.dtype == kind
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kind", ["float32", "float16", "int32", "bool"])
def test_non_zero_and_shape(run_mil: Run, fold_mil: Run, kind: str) -> None:
    x = sample((3, 4, 2), kind) * sample((3, 4, 2), "bool", 5)

    def build(mb: Any, x: Any) -> list[Any]:
        return [mb.non_zero(x=x), mb.shape(x=x)]

    found, sizes = run_mil(build, {"x": x})
    np.testing.assert_array_equal(found, np.argwhere(x))
    assert sizes.tolist() == [3, 4, 2]
    assert found.dtype == sizes.dtype == np.int32
    if kind != "bool":
        np.testing.assert_array_equal(fold_mil(build, {"x": x})[0], found)


@pytest.mark.parametrize("kind", ["float32", "float16", "int32"])
def test_running_sums(run_mil: Run, kind: str) -> None:
    x = sample((2, 5, 3), kind)
    cases = list(itertools.product((0, 1, -1), (False, True), (False, True)))

    def build(mb: Any, x: Any) -> list[Any]:
        return [mb.cumsum(x=x, axis=a, exclusive=e, reverse=r) for a, e, r in cases]

    for found, (axis, exclusive, reverse) in zip(run_mil(build, {"x": x}), cases, strict=True):
        y = np.flip(x, axis) if reverse else x
        sums = np.cumsum(y, axis, dtype=np.float64) - (y if exclusive else 0)
        np.testing.assert_array_equal(found, np.flip(sums, axis) if reverse else sums)
        assert found.dtype == kind


def test_band_outside_of_which_is_no_number() -> None:
    x = torch.full((2, 2), torch.nan).half()
    assert ops.band_part(x, torch.tensor(0), torch.tensor(0))[0, 1] == 0


def test_wrong_values_are_refused() -> None:
    x = torch.zeros(4, 2)
    with pytest.raises(ExecutionError, match=r"no parts of \[1, 1, 1\]"):
        ops.split(x, torch.tensor(0), torch.tensor(3))
    with pytest.raises(ExecutionError, match=r"no parts of \[3, 2\]"):
        ops.split(x, torch.tensor(0), split_sizes=torch.tensor([3, 2]))
    with pytest.raises(ExecutionError, match="needs num_splits"):
        ops.split(x, torch.tensor(0))
    with pytest.raises(ExecutionError, match=r"reps are \[2\]"):
        ops.tile(x, torch.tensor([2]))
    with pytest.raises(ExecutionError, match="larger than"):
        ops.tile(x, torch.tensor([1 << 20, 1 << 20]))
    with pytest.raises(ExecutionError, match="larger than"):
        ops.one_hot(torch.zeros(9), torch.tensor(1 << 40), result=result_type("fp32"))
