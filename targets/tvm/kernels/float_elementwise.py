"""Sums of floats at the same place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from qcompile.targets.tvm.kernels.parts import BATCH, Argument, flat, function, ramp
from qcompile.targets.tvm.kernels.vectors import Limits, Vectors
from qcompile.targets.tvm.tools import tir


def add(shape: Sequence[int], vectors: Vectors, limits: Limits) -> Any:
    """Return the TIR function ``(a, b, y)``: ``a + b`` within limits.

    Args:
        shape: Of all three, without the batch.
        vectors: Registers.
        limits: Of the sums.
    """
    t = tir()
    count = math.prod(shape)
    lanes = math.gcd(count, vectors.lanes)
    tensor: Argument = ((BATCH, *shape), "float32")
    with function({"a": tensor, "b": tensor, "y": tensor}) as found:
        a, b, y = map(flat, found.buffers)
        with t.grid(found.batch, count // lanes) as (n, i):
            place = ramp(n * count + i * lanes, lanes)
            t.buffer_store(y, limits.apply(a[place] + b[place], lanes), [place])
    return found.result
