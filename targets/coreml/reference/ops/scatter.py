"""Writing at indices: the ``scatter`` ops of all versions, in all modes.

An index that comes up again counts again, in order: ``add`` adds all its updates, ``update`` keeps the
last one. Negative indices are as ``gather`` has them. All three ops come down to updates of whole rows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.ops.gather import points, refuse_other_sizes, within
from qcompile.targets.coreml.reference.registry import op

_REDUCTIONS = {"mul": "prod", "max": "amax", "min": "amin"}


@op("scatter")
def scatter(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: Tensor | int = 0,
    mode: str = "add",
    validate_indices: Tensor | None = None,
) -> Tensor:
    """Combine slices of ``updates`` with the slices of ``data`` that ``indices`` name along an axis."""
    along, rank = int(axis) % data.ndim, indices.ndim
    _refuse_shape(updates, (*data.shape[:along], *indices.shape, *data.shape[along + 1 :]))
    at = within(indices, data.shape[along], wrap=validate_indices is None)
    front = updates.movedim(tuple(range(along, along + rank)), tuple(range(rank)))
    moved = data.movedim(along, 0)
    found = _combine(moved, at.flatten(), front, mode)
    return found.reshape(moved.shape).movedim(0, along)


@op("scatter_along_axis")
def scatter_along_axis(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: Tensor | int = 0,
    mode: str = "add",
    validate_indices: Tensor | None = None,
) -> Tensor:
    """Combine each update with the element that its index names along an axis."""
    along = int(axis) % data.ndim
    refuse_other_sizes(data, indices, along)
    _refuse_shape(updates, indices.shape)
    at = within(indices, data.shape[along], wrap=validate_indices is None)
    flat = torch.zeros_like(at)
    for dimension, size in enumerate(indices.shape):
        steps = torch.arange(size).reshape(-1, *[1] * (data.ndim - 1 - dimension))
        place = at if dimension == along else steps
        flat += place * math.prod(data.shape[dimension + 1 :])
    return _combine(data.reshape(-1), flat.flatten(), updates, mode).reshape(data.shape)


@op("scatter_nd")
def scatter_nd(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    mode: str = "add",
    validate_indices: Tensor | None = None,
) -> Tensor:
    """Combine slices with those that the points in the last axis of ``indices`` name."""
    depth = indices.shape[-1]
    if depth > data.ndim:
        raise ExecutionError(f"points of {depth} numbers lie in no tensor of rank {data.ndim}")
    _refuse_shape(updates, (*indices.shape[:-1], *data.shape[depth:]))
    at = points(indices, data.shape[:depth], wrap=validate_indices is None)
    rows = data.reshape(math.prod(data.shape[:depth]), *data.shape[depth:])
    return _combine(rows, at.flatten(), updates, mode).reshape(data.shape)


def _refuse_shape(updates: Tensor, wanted: tuple[int, ...]) -> None:
    if tuple(updates.shape) != tuple(wanted):
        raise ExecutionError(f"the updates have shape {list(updates.shape)}, not {list(wanted)}")


def _combine(data: Tensor, at: Tensor, updates: Tensor, mode: str) -> Tensor:
    """Return rows, flattened, after update ``i`` was combined with row ``at[i]``, one after another."""
    width = math.prod(data.shape[1:])
    rows, news = data.reshape(data.shape[0], width), updates.reshape(len(at), width)
    if mode == "update":
        return _replace(rows, at, news)
    if mode in ("add", "sub"):
        return rows.index_add(0, at, news, alpha=1 if mode == "add" else -1)
    if mode == "div":
        return _divide(rows, at, news)
    if mode not in _REDUCTIONS:
        raise ExecutionError(f"the mode of a scatter is {mode!r}, which is not known")
    return rows.scatter_reduce(0, at[:, None].expand_as(news), news, _REDUCTIONS[mode])


def _replace(rows: Tensor, at: Tensor, news: Tensor) -> Tensor:
    last = torch.full((len(rows),), -1).scatter_reduce(0, at, torch.arange(len(at)), "amax")
    written = last >= 0
    result = rows.clone()
    result[written] = news[last[written]]
    return result


def _divide(rows: Tensor, at: Tensor, news: Tensor) -> Tensor:
    """Divide row by row in turns, one update of each row a turn; integers round towards zero."""
    rounding = None if rows.is_floating_point() else "trunc"
    if rounding and bool((news == 0).any()):
        raise ExecutionError("an integer is divided by zero")
    result, left = rows.clone(), torch.arange(len(at))
    while len(left):
        first = torch.full((len(rows),), len(at)).scatter_reduce(0, at[left], left, "amin")
        turn = first[first < len(at)]
        result[at[turn]] = torch.div(result[at[turn]], news[turn], rounding_mode=rounding)
        left = left[first[at[left]] != left]
    return result
