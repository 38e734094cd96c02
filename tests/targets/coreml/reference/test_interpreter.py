"""The interpreter's core: constants, states, control flow, what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def test_results_are_rounded_to_float16_after_each_op(run_mil: Callable[..., Any]) -> None:
    x = np.linspace(-3, 3, 24, dtype=np.float16).reshape(2, 3, 4)

    def build(mb: Any, x: Any) -> Any:
        return mb.mul(x=mb.identity(x=x), y=x)

    (found,) = run_mil(build, {"x": x})
    np.testing.assert_array_equal(found, x * x)
    assert found.dtype == np.float16
