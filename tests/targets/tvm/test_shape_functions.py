"""Functions that compute free sizes do not depend on where objects lie in memory."""

from __future__ import annotations

from typing import Any

import pytest

from qcompile.targets.tvm import shape_functions
from qcompile.targets.tvm.kernels.parts import function
from qcompile.targets.tvm.tools import tir


def module_of(order: list[int], name: str = "shape_func") -> Any:
    """Return a module with a function that stores ``10 * i`` times the first size to each slot ``i``."""
    tvm = pytest.importorskip("tvm", reason="apache-tvm is not installed")
    with function({"slots": ((4,), "int64")}) as found:
        (slots,) = found.buffers
        for i in order:
            tir().buffer_store(slots, slots[0] * tir().int64(10 * i), [i])
    body = found.result.body.block.body  # without the root block, as VMShapeLower writes it
    return tvm.IRModule({name: found.result.with_body(body)})


def test_any_order_becomes_one() -> None:
    found = [str(shape_functions.in_order()(module_of(o))) for o in ([3, 1, 2], [2, 3, 1])]
    assert found[0] == found[1] == str(module_of([1, 2, 3]))


def test_one_store_and_other_functions_stay() -> None:
    for module in (module_of([2]), module_of([3, 1], "main")):
        before = str(module)
        assert str(shape_functions.in_order()(module)) == before
