"""Slices against NumPy's, through saved packages and for random bounds."""

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
from qcompile.targets.coreml.reference.ops import slicing as ops

Run = Callable[..., list[Any]]
Bounds = tuple[int, int, int, bool, bool, bool]
IO = ("fp32", "fp16", "int32")
CASES = {
    "all": ([0, 0, 0], [0, 0, 0], {"begin_mask": [True] * 3, "end_mask": [True] * 3}, np.s_[:]),
    "step": ([0, 1, 0], [4, 5, 6], {"stride": [2, 1, 3]}, np.s_[0:4:2, 1:5, 0:6:3]),
    "negative": ([-3, -4, 1], [-1, 5, -2], {}, np.s_[-3:-1, -4:5, 1:-2]),
    "backwards": (
        [3, 4, -1], [0, 0, -5], {"stride": [-1, -3, -2], "end_mask": [True, False, False]},
        np.s_[3::-1, 4:0:-3, -1:-5:-2],
    ),
    "masked_backwards": (
        [0, 0, 0], [1, 0, 0],
        {"stride": [-1, -2, 1], "begin_mask": [True] * 3, "end_mask": [False, True, True]},
        np.s_[:1:-1, ::-2, :],
    ),
    "index": ([2, 0, -1], [0, 5, 0], {"squeeze_mask": [True, False, True]}, np.s_[2, 0:5, -1]),
    "clamped": ([0, -50, 0], [4, 50, 3], {}, np.s_[0:4, -50:50, 0:3]),
}  # fmt: skip


def sample(kind: str) -> NDArray[Any]:
    x = np.random.default_rng(1).integers(0, 100, (4, 5, 6))
    return (x > 50).astype(bool) if kind == "bool" else x.astype(kind)


@pytest.mark.parametrize("kind", ["float32", "float16", "int32", "int8", "uint16", "bool"])
def test_slices_of_all_dtypes(run_mil: Run, fold_mil: Run, kind: str) -> None:
    x = sample(kind)

    def slices(mb: Any, x: Any) -> list[Any]:
        return [mb.slice_by_index(x=x, begin=b, end=e, **m) for b, e, m, _ in CASES.values()]

    def build(mb: Any, x: Any) -> list[Any]:
        outputs = [*slices(mb, x), mb.slice_by_size(x=x, begin=[1, -3, 0], size=[2, 2, -1])]
        is_io = any(name in x.dtype.__name__ for name in IO)
        return [mb.identity(x=o) if is_io else mb.cast(x=o, dtype="int32") for o in outputs]

    wanted = [x[place] for *_, place in CASES.values()]
    found = run_mil(build, {"x": x})
    for name, got, want in zip([*CASES, "sized"], found, [*wanted, x[1:3, -3:-1]], strict=True):
        np.testing.assert_array_equal(got, want, err_msg=name)
        assert got.dtype == (x.dtype if kind.startswith("float") else "int32")
    if kind == "float32":
        for got, want in zip(fold_mil(slices, {"x": x}), wanted, strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kind", ["float32", "float16", "int32"])
def test_update_writes_where_the_slice_reads(run_mil: Run, fold_mil: Run, kind: str) -> None:
    x = sample(kind)
    new = {name: -np.abs(x[place]) - 1 for name, (*_, place) in CASES.items()}

    def build(mb: Any, x: Any) -> list[Any]:
        return [
            mb.slice_update(x=x, update=new[name], begin=b, end=e, **m)
            for name, (b, e, m, _) in CASES.items()
        ]

    found = run_mil(build, {"x": x}, "iOS18")
    folded = fold_mil(build, {"x": x}, "iOS18")
    for got, fold, (name, (*_, place)) in zip(found, folded, CASES.items(), strict=True):
        wanted = x.copy()
        wanted[place] = new[name]
        np.testing.assert_array_equal(got, wanted, err_msg=name)
        np.testing.assert_array_equal(fold, wanted, err_msg=name)


def test_bounds_that_are_computed(run_mil: Run) -> None:
    """Bounds may be tensors of the run; the shape is known only then."""
    x = sample("float32")
    begin, end = np.array([1, -2, 0], np.int32), np.array([3, 5, -1], np.int32)

    def build(mb: Any, x: Any, begin: Any, end: Any) -> list[Any]:
        sized = mb.slice_by_size(x=x, begin=begin, size=mb.abs(x=end))
        return [mb.slice_by_index(x=x, begin=begin, end=end), sized]

    found, _ = run_mil(build, {"x": x, "begin": np.array([1, 0, 0], np.int32), "end": end})
    np.testing.assert_array_equal(found, x[1:3, 0:5, 0:-1])
    with pytest.raises(ExecutionError, match="5 elements from -2 on do not lie in axis 1"):
        run_mil(build, {"x": x, "begin": begin, "end": end})


@st.composite
def bounds(draw: st.DrawFn, size: int) -> Bounds:
    """Return begin, end, stride and the three masks for one axis."""
    begin, end = draw(st.integers(-size - 2, size + 2)), draw(st.integers(-size - 2, size + 2))
    stride = draw(st.integers(-3, 3).filter(bool))
    masks = [draw(st.booleans()) for _ in range(2)]
    squeezed = not masks[0] and -size <= begin < size and draw(st.booleans())
    return begin, end, stride, masks[0], masks[1], squeezed


def _index(bound: Bounds) -> slice | int:
    begin, end, stride, free_begin, free_end, squeezed = bound
    if squeezed:
        return begin
    return slice(None if free_begin else begin, None if free_end else end, stride)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_bounds_are_as_in_numpy(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    drawn = [data.draw(bounds(size)) for size in sizes]
    x = np.arange(np.prod(sizes)).reshape(sizes)
    arguments = [torch.tensor(column) for column in zip(*drawn, strict=True)]
    place = tuple(_index(bound) for bound in drawn)
    wanted = np.asarray(x[place])
    found = ops.slice_by_index(torch.from_numpy(x), *arguments)
    np.testing.assert_array_equal(found.numpy(), wanted)

    updated = ops.slice_update(torch.from_numpy(x), torch.from_numpy(-1 - wanted), *arguments)
    changed = x.copy()
    changed[place] = -1 - wanted
    np.testing.assert_array_equal(updated.numpy(), changed)


def test_wrong_values_are_refused() -> None:
    x, zero = torch.zeros(3, 4), torch.tensor([0, 0])
    with pytest.raises(ExecutionError, match="stride 0"):
        ops.slice_by_index(x, zero, zero, zero)
    squeeze = {"squeeze_mask": torch.tensor([True, False])}
    with pytest.raises(ExecutionError, match="index 3 is outside of an axis of size 3"):
        ops.slice_by_index(x, torch.tensor([3, 0]), zero, **squeeze)
    with pytest.raises(ExecutionError, match=r"the update has shape \[2\], the slice \[3, 2\]"):
        ops.slice_update(x, torch.zeros(2), zero, torch.tensor([3, 2]))
    with pytest.raises(ExecutionError, match="do not lie in axis 1"):
        ops.slice_by_size(x, zero, torch.tensor([1, 5]))
