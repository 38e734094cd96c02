"""An error of a front end is told from an error of a converter that it called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from qcompile.targets.origin import raised_by

CALL = "def call(function):\n    return function()\n"


def code_of(module: str) -> Callable[[Callable[[], Any]], Any]:
    """Return a function of a module that calls what it is given."""
    names: dict[str, Any] = {"__name__": module}
    exec(CALL, names)
    found: Callable[[Callable[[], Any]], Any] = names["call"]
    return found


def fails() -> None:
    raise ValueError("no")


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        (["tvm.relax"], True),
        (["tvm.relax", "numpy.core"], True),
        (["tvm.relax", "qcompile.targets.tvm.half"], False),
        (["tvm.relax", "qcompile.targets.tvm.half", "numpy"], False),
        (["tvm.relax", "qcompile.targets.tvm.half", "tvm.relax.op"], True),
        (["tvmlike"], False),
    ],
)
def test_the_last_of_both_has_raised_it(calls: list[str], expected: bool) -> None:
    function: Callable[[], Any] = fails
    for module in reversed(calls):
        function = (lambda outer, inner: lambda: outer(inner))(code_of(module), function)
    with pytest.raises(ValueError, match="no") as caught:
        function()
    assert raised_by(caught.value, "tvm", "tvm_ffi") is expected
