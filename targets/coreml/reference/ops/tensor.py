"""Making, joining, splitting and selecting tensors."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.limits import bounded, broadcast
from qcompile.targets.coreml.reference.registry import op
from qcompile.targets.coreml.reference.types import TensorType

_ZERO = torch.tensor(0.0)


@op("identity", floats="as_is")
def identity(x: Any) -> Any:
    """Return the input, which may be a list as well as a tensor."""
    return x


@op("shape", floats="as_is")
def shape(x: Tensor) -> Tensor:
    """Return the sizes as int32."""
    return torch.tensor(x.shape, dtype=torch.int32)


@op("fill", floats="as_is")
def fill(shape: Tensor, value: Tensor = _ZERO) -> Tensor:
    """Return a tensor of one value."""
    sizes = bounded(shape.tolist(), value.dtype)
    return torch.full(sizes, value.item(), dtype=value.dtype)


@op("fill_like", floats="as_is")
def fill_like(ref_tensor: Tensor, value: Tensor = _ZERO) -> Tensor:
    """Return a tensor of one value, with another tensor's shape and the value's dtype."""
    return torch.full(ref_tensor.shape, value.item(), dtype=value.dtype)


@op("range_1d")
def range_1d(start: Tensor, end: Tensor, step: Tensor, result: TensorType) -> Tensor:
    """Return ``start``, ``start + step``, and so on below ``end``; each is rounded once."""
    first, last, by = start.item(), end.item(), step.item()
    if by == 0 or not all(map(math.isfinite, (first, last, by))):
        raise ExecutionError(f"a range from {first} to {last} by {by} does not end")
    whole = not start.is_floating_point()
    count = -((first - last) // by) if whole else math.ceil((last - first) / by)
    (length,) = bounded((max(0, int(count)),), torch.float64)
    places = torch.arange(length, dtype=torch.int64 if whole else torch.float64)
    return (first + places * by).to(result.dtype)


@op("one_hot", floats="as_is")
def one_hot(
    indices: Tensor,
    one_hot_vector_size: Tensor,
    result: TensorType,
    axis: Tensor | int = -1,
    on_value: Tensor | int = 1,
    off_value: Tensor | int = 0,
) -> Tensor:
    """Return ``on_value`` where a new axis's place is the index, ``off_value`` elsewhere.

    An index out of range has no such place (NeuralNetwork.proto, ``OneHotLayerParams``).
    """
    size, along = int(one_hot_vector_size), int(axis) % (indices.ndim + 1)
    bounded((*indices.shape, size), result.dtype)
    places = torch.arange(size).reshape(-1, *[1] * (indices.ndim - along))
    on, off = (torch.as_tensor(v).to(result.dtype) for v in (on_value, off_value))
    return torch.where(indices.long().unsqueeze(along) == places, on, off)


@op("tile", floats="as_is")
def tile(x: Tensor, reps: Tensor) -> Tensor:
    """Repeat a tensor along each axis."""
    times = reps.tolist()
    if len(times) != x.ndim or min(times, default=1) < 1:
        raise ExecutionError(f"reps are {times}, for a tensor of rank {x.ndim}")
    bounded([size * count for size, count in zip(x.shape, times, strict=True)], x.dtype)
    return x.repeat(times)


@op("concat", floats="as_is")
def concat(values: list[Tensor], axis: Tensor, interleave: Tensor | bool = False) -> Tensor:
    """Join tensors along an axis, taking turns if ``interleave``; scalars become a vector."""
    if values[0].ndim == 0:
        return torch.stack(values)
    if not bool(interleave):
        return torch.cat(values, int(axis))
    along = int(axis) % values[0].ndim
    return torch.stack(values, along + 1).flatten(along, along + 1)


@op("stack", floats="as_is")
def stack(values: list[Tensor], axis: Tensor) -> Tensor:
    """Join tensors along a new axis."""
    return torch.stack(values, int(axis))


@op("split", floats="as_is")
def split(
    x: Tensor,
    axis: Tensor,
    num_splits: Tensor | None = None,
    split_sizes: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Cut a tensor into ``num_splits`` even parts, or into parts of ``split_sizes``."""
    size = x.shape[int(axis)]
    if split_sizes is not None:
        sizes = [int(part) for part in split_sizes.tolist()]
    elif num_splits is not None and int(num_splits) > 0:
        sizes = [size // int(num_splits)] * int(num_splits)
    else:
        raise ExecutionError("a split needs num_splits or split_sizes")
    if sum(sizes) != size:
        raise ExecutionError(f"an axis of {size} elements has no parts of {sizes}")
    return torch.split(x, sizes, int(axis))


@op("select", floats="as_is")
def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return ``a`` where ``cond`` is true, ``b`` elsewhere; all three broadcast."""
    broadcast(cond, a, b)
    return torch.where(cond, a, b)


@op("non_zero", floats="as_is")
def non_zero(x: Tensor) -> Tensor:
    """Return the indices of the elements that are not zero, one row each."""
    return (x != 0).nonzero().int()


@op("band_part", floats="as_is")
def band_part(x: Tensor, lower: Tensor | int = -1, upper: Tensor | int = -1) -> Tensor:
    """Keep a band around the diagonal of the last two axes; a negative number keeps that whole side."""
    rows, columns = x.shape[-2:]
    below = torch.arange(rows)[:, None] - torch.arange(columns)
    kept = torch.ones(rows, columns, dtype=torch.bool)
    if int(lower) >= 0:
        kept &= below <= int(lower)
    if int(upper) >= 0:
        kept &= -below <= int(upper)
    return torch.where(kept, x, torch.zeros((), dtype=x.dtype))


@op("cumsum")
def cumsum(
    x: Tensor,
    axis: Tensor | int = 0,
    exclusive: Tensor | bool = False,
    reverse: Tensor | bool = False,
) -> Tensor:
    """Return running sums; ``exclusive`` ones leave out the element itself, ``reverse`` starts last."""
    along = int(axis) % x.ndim
    x = x.flip(along) if bool(reverse) else x
    if bool(exclusive) and x.shape[along]:
        shorter = x.narrow(along, 0, x.shape[along] - 1)
        x = torch.cat([torch.zeros_like(x.narrow(along, 0, 1)), shorter], along)
    sums = x.cumsum(along, dtype=x.dtype)
    return sums.flip(along) if bool(reverse) else sums
