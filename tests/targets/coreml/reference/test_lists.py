"""Lists of tensors, through saved packages; in a loop, where they are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.ops import lists as ops

Run = Callable[..., list[Any]]


@pytest.mark.parametrize("kind", ["float32", "float16", "int32"])
def test_writing_and_reading(run_mil: Run, kind: str) -> None:
    x = np.arange(12).reshape(4, 3).astype(kind)
    short = {"float32": "fp32", "float16": "fp16"}.get(kind, kind)

    def build(mb: Any, x: Any) -> list[Any]:
        fresh = mb.make_list(init_length=2, elem_shape=(3,), dtype=short)
        ls = mb.list_scatter(ls=fresh, indices=[4, 0], value=mb.slice_by_size(
            x=x, begin=[1, 0], size=[2, 3]))  # fmt: skip
        row = mb.squeeze(x=mb.slice_by_size(x=x, begin=[0, 0], size=[1, 3]), axes=[0])
        ls = mb.list_write(ls=ls, index=1, value=row)
        length = mb.expand_dims(x=mb.list_length(ls=ls), axes=[0])
        before = mb.expand_dims(x=mb.list_length(ls=fresh), axes=[0])
        return [mb.list_gather(ls=ls, indices=[4, 3, 1, 0]), mb.list_read(ls=ls, index=4), length,
                before]  # fmt: skip

    gathered, read, length, before = run_mil(build, {"x": x})
    np.testing.assert_array_equal(gathered, [x[1], 0 * x[0], x[0], x[2]])
    np.testing.assert_array_equal(read, x[1])
    assert gathered.dtype == read.dtype == kind
    assert (length.tolist(), before.tolist()) == ([5], [2])


def test_list_that_a_loop_fills(run_mil: Run) -> None:
    x = np.arange(6, dtype=np.float32).reshape(3, 2)

    def build(mb: Any, x: Any) -> Any:
        ls = mb.make_list(init_length=1, elem_shape=(2,), dynamic_length=True)

        def goes_on(i: Any, ls: Any) -> Any:
            return mb.less(x=i, y=3)

        def body(i: Any, ls: Any) -> Any:
            row = mb.gather(x=x, indices=mb.sub(x=2, y=i), axis=0)
            return mb.add(x=i, y=1), mb.list_write(ls=ls, index=i, value=row)

        _, filled = mb.while_loop(_cond=goes_on, _body=body, loop_vars=(0, ls))
        return mb.list_gather(ls=filled, indices=[0, 1, 2])

    (found,) = run_mil(build, {"x": x})
    np.testing.assert_array_equal(found, x[::-1])


def test_shape_that_the_first_item_decides() -> None:
    ls = ops.make_list(["is0", torch.tensor(2)], torch.tensor(2))
    with pytest.raises(ExecutionError, match="no item was ever written"):
        ops.list_read(ls, torch.tensor(0))
    ls = ops.list_write(ls, torch.tensor(1), torch.ones(3, 2))
    assert ops.list_read(ls, torch.tensor(0)).tolist() == [[0, 0]] * 3
    with pytest.raises(ExecutionError, match=r"\[3, 2\] takes no torch\.float32 \[4, 2\]"):
        ops.list_write(ls, torch.tensor(0), torch.ones(4, 2))


def test_gathering_nothing() -> None:
    ls = ops.make_list([torch.tensor(3)], dtype="int32")
    found = ops.list_gather(ls, torch.zeros(0, dtype=torch.int32))
    assert (found.shape, found.dtype) == ((0, 3), torch.int32)


def test_wrong_values_are_refused() -> None:
    one = torch.tensor(1)
    fixed = ops.make_list([one], one, torch.tensor(False))
    with pytest.raises(ExecutionError, match=r"\[1\] lie outside a list of 1 items"):
        ops.list_write(fixed, one, torch.zeros(1))
    grows = ops.make_list(one, one)
    with pytest.raises(ExecutionError, match=r"\[-1\] lie outside"):
        ops.list_write(grows, -one, torch.zeros(1))
    with pytest.raises(ExecutionError, match="index 1 is out of range for size 1"):
        ops.list_gather(grows, torch.tensor([0, 1]))
    with pytest.raises(ExecutionError, match=r"takes no torch\.int32"):
        ops.list_write(grows, one, torch.zeros(1, dtype=torch.int32))
    with pytest.raises(ExecutionError, match="2 values are scattered to 1 indices"):
        ops.list_scatter(grows, torch.tensor([0]), torch.zeros(2, 1))
    with pytest.raises(ExecutionError, match="larger than"):
        ops.list_write(grows, torch.tensor(1 << 40), torch.zeros(1))
    with pytest.raises(ExecutionError, match="'fp8'"):
        ops.make_list([one], dtype="fp8")
