"""Slices of tensors by index, mask and size, and writing into one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.ops.shape import flipped
from qcompile.targets.coreml.reference.registry import op


@op("slice_by_index", floats="as_is")
def slice_by_index(
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None = None,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
) -> Tensor:
    """Slice by NumPy's rules; see ``_ranges`` for the masks."""
    places = _ranges(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    taken = _view(x, places)
    backwards = _backwards(places)
    taken = flipped(taken, backwards) if backwards else taken
    squeezed = _flags(squeeze_mask, x.ndim)
    return taken.squeeze(tuple(at for at, gone in enumerate(squeezed) if gone))


@op("slice_update", floats="as_is")
def slice_update(
    x: Tensor,
    update: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None = None,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
) -> Tensor:
    """Return ``x`` with the slice that ``slice_by_index`` would give replaced by ``update``."""
    places = _ranges(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    squeezed = _flags(squeeze_mask, x.ndim)
    kept = [len(place) for place, gone in zip(places, squeezed, strict=True) if not gone]
    if list(update.shape) != kept:
        raise ExecutionError(f"the update has shape {list(update.shape)}, the slice {kept}")
    result = x.clone()
    aligned = update.reshape([len(place) for place in places])
    _view(result, places).copy_(flipped(aligned, _backwards(places)))
    return result


@op("slice_by_size", floats="as_is")
def slice_by_size(x: Tensor, begin: Tensor, size: Tensor) -> Tensor:
    """Take ``size`` elements from ``begin`` on along each axis; size -1 is all that are left."""
    for axis, (start, count) in enumerate(zip(begin.tolist(), size.tolist(), strict=True)):
        first = start + x.shape[axis] if start < 0 else start
        length = x.shape[axis] - first if count == -1 else count
        if first < 0 or length < 0 or first + length > x.shape[axis]:
            raise ExecutionError(
                f"{count} elements from {start} on do not lie in axis {axis} of {list(x.shape)}"
            )
        x = x.narrow(axis, first, length)
    return x


def _ranges(
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None,
    begin_mask: Tensor | None,
    end_mask: Tensor | None,
    squeeze_mask: Tensor | None,
) -> list[range]:
    """Return what is taken of each axis.

    A masked begin or end is the one that NumPy puts where none is written, so with a negative stride
    it is the other end of the axis. A squeezed axis is indexed at ``begin``, whatever its end.
    """
    steps = [1] * x.ndim if stride is None else stride.tolist()
    bounds = zip(begin.tolist(), end.tolist(), steps, strict=True)
    free = zip(*(_flags(m, x.ndim) for m in (begin_mask, end_mask, squeeze_mask)), strict=True)
    return [
        _range(size, bound, flags) for size, bound, flags in zip(x.shape, bounds, free, strict=True)
    ]


def _range(size: int, bound: tuple[int, int, int], free: Sequence[bool]) -> range:
    begin, end, stride = bound
    free_begin, free_end, squeezed = free
    if squeezed:
        first = 0 if free_begin else begin + size if begin < 0 else begin
        if not 0 <= first < size:
            raise ExecutionError(f"index {begin} is outside of an axis of size {size}")
        return range(first, first + 1)
    if stride == 0:
        raise ExecutionError("a slice has stride 0")
    start, stop = None if free_begin else begin, None if free_end else end
    return range(*slice(start, stop, stride).indices(size))


def _flags(mask: Tensor | None, rank: int) -> list[bool]:
    return [False] * rank if mask is None else [bool(flag) for flag in mask.tolist()]


def _view(x: Tensor, places: Sequence[range]) -> Tensor:
    """Return the part of a tensor, in ascending order: torch slices know no negative step."""
    cuts = []
    for place in places:
        upwards = place if place.step > 0 else place[::-1]
        cuts.append(slice(upwards.start, max(upwards.stop, upwards.start), upwards.step))
    return x[tuple(cuts)] if cuts else x


def _backwards(places: Sequence[range]) -> list[int]:
    return [axis for axis, place in enumerate(places) if place.step < 0]
