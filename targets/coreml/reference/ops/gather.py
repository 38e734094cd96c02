"""Reading at indices: the ``gather`` ops of all versions.

iOS 15 and 16 count negative indices from the end. Since iOS 17, which brings ``validate_indices``, they
are out of range, and what happens out of range is an error or undefined; here it always is an error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.limits import bounded
from qcompile.targets.coreml.reference.ops.shape import signed
from qcompile.targets.coreml.reference.registry import op


@op("gather", floats="as_is")
def gather(
    x: Tensor,
    indices: Tensor,
    axis: Tensor | int = 0,
    batch_dims: Tensor | int = 0,
    validate_indices: Tensor | None = None,
) -> Tensor:
    """Take slices along an axis, as ``tf.gather`` does.

    The first ``batch_dims`` axes of both tensors run together: row ``i`` reads in row ``i`` only.
    """
    along, shared = int(axis) % x.ndim, int(batch_dims)
    if not 0 <= shared <= min(along, indices.ndim):
        raise ExecutionError(f"batch_dims is {shared}, with axis {along} and rank {indices.ndim}")
    if shared:
        found = gather_nd(x.movedim(along, shared), indices[..., None], shared, validate_indices)
        own = range(shared, indices.ndim)
        return found.movedim(tuple(own), tuple(at + along - shared for at in own))
    sizes = bounded((*x.shape[:along], *indices.shape, *x.shape[along + 1 :]), x.dtype)
    at = within(indices, x.shape[along], wrap=validate_indices is None)
    return signed(x).index_select(along, at.flatten()).view(x.dtype).reshape(sizes)


@op("gather_along_axis", floats="as_is")
def gather_along_axis(
    x: Tensor,
    indices: Tensor,
    axis: Tensor | int = 0,
    validate_indices: Tensor | None = None,
) -> Tensor:
    """Take one element for each index, as ``numpy.take_along_axis`` does."""
    along = int(axis) % x.ndim
    refuse_other_sizes(x, indices, along)
    at = within(indices, x.shape[along], wrap=validate_indices is None)
    return signed(x).gather(along, at).view(x.dtype)


@op("gather_nd", floats="as_is")
def gather_nd(
    x: Tensor,
    indices: Tensor,
    batch_dims: Tensor | int = 0,
    validate_indices: Tensor | None = None,
) -> Tensor:
    """Take the slices that the points in the last axis of ``indices`` name, as ``tf.gather_nd`` does."""
    shared, depth = int(batch_dims), indices.shape[-1]
    batch, inner, rest = (
        x.shape[:shared],
        x.shape[shared : shared + depth],
        x.shape[shared + depth :],
    )
    if shared + depth > x.ndim or shared < 0 or indices.shape[:-1][:shared] != batch:
        raise ExecutionError(
            f"indices of shape {list(indices.shape)} with {shared} batch axes do not fit {list(x.shape)}"
        )
    sizes = bounded((*indices.shape[:-1], *rest), x.dtype)
    at = points(indices, inner, wrap=validate_indices is None)
    starts = torch.arange(math.prod(batch)) * math.prod(inner)
    at = at + starts.reshape((*batch, *[1] * (at.ndim - shared)))
    rows = signed(x).reshape(math.prod(batch) * math.prod(inner), *rest)
    return rows.index_select(0, at.flatten()).view(x.dtype).reshape(sizes)


def within(indices: Tensor, sizes: int | Tensor, *, wrap: bool) -> Tensor:
    """Return indices as int64, all in range.

    Args:
        indices: Of any integer dtype.
        sizes: What they must be below; a tensor has one for each element of the last axis.
        wrap: Whether negative ones count from the end.

    Raises:
        ExecutionError: One is out of range.
    """
    at = indices.long()
    if wrap:
        at = torch.where(at < 0, at + sizes, at)
    outside = (at < 0) | (at >= sizes)
    if bool(outside.any()):
        first = int(indices[outside].long()[0])
        limits = sizes.tolist() if isinstance(sizes, Tensor) else sizes
        raise ExecutionError(f"index {first} is out of range for size {limits}")
    return at


def points(indices: Tensor, sizes: Sequence[int], *, wrap: bool) -> Tensor:
    """Return where the points in the last axis of ``indices`` lie in a flat tensor of these sizes."""
    strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    at = within(indices, torch.tensor(sizes, dtype=torch.int64), wrap=wrap)
    return (at * torch.tensor(strides, dtype=torch.int64)).sum(-1)


def refuse_other_sizes(x: Tensor, indices: Tensor, along: int) -> None:
    """Refuse indices whose shape differs from that of ``x`` in another axis than ``along``."""
    same = x.ndim == indices.ndim and all(
        axis == along or x.shape[axis] == indices.shape[axis] for axis in range(x.ndim)
    )
    if not same:
        raise ExecutionError(
            f"indices of shape {list(indices.shape)} do not fit {list(x.shape)} along axis {along}"
        )
