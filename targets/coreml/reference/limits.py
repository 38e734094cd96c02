"""Sizes are checked before anything is allocated: a package may come from anywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from qcompile.targets.coreml.reference.errors import ExecutionError

MAX_VALUE_BYTES = 4 << 30
"""Of one value; the largest weight of a language model is below it."""
MAX_RANK = 64
"""Of a tensor; torch has no more."""


def bounded(shape: Sequence[int], dtype: torch.dtype) -> tuple[int, ...]:
    """Return the shape, if a value of it may be made.

    Raises:
        ExecutionError: A size is negative, or the value would be larger than ``MAX_VALUE_BYTES`` or of
            more axes than ``MAX_RANK``.
    """
    sizes = tuple(int(size) for size in shape)
    if len(sizes) > MAX_RANK:
        raise ExecutionError(f"a value has {len(sizes)} axes, more than {MAX_RANK}")
    if any(size < 0 for size in sizes):
        raise ExecutionError(f"a value of shape {list(sizes)} has a negative size")
    if math.prod(max(size, 1) for size in sizes) * dtype.itemsize > MAX_VALUE_BYTES:
        raise ExecutionError(
            f"a value of shape {list(sizes)} is larger than {MAX_VALUE_BYTES >> 30} GiB"
        )
    return sizes


def broadcast(*tensors: Tensor) -> tuple[int, ...]:
    """Return the shape that tensors have together, if a value of it may be made.

    Raises:
        ExecutionError: They have no shape together, or it is out of bounds.
    """
    rank = max(tensor.ndim for tensor in tensors)
    aligned = [(1,) * (rank - tensor.ndim) + tuple(tensor.shape) for tensor in tensors]
    sizes = [{s for s in axis if s != 1} or {1} for axis in zip(*aligned, strict=True)]
    if any(len(axis) > 1 for axis in sizes):
        shapes = " and ".join(str(list(tensor.shape)) for tensor in tensors)
        raise ExecutionError(f"the shapes {shapes} do not fit together")
    widest = max((tensor.dtype for tensor in tensors), key=lambda dtype: dtype.itemsize)
    return bounded([next(iter(axis)) for axis in sizes], widest)
