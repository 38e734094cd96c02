"""Ops that give the same elements another shape or order; none of them computes on a value."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.limits import bounded
from qcompile.targets.coreml.reference.registry import op


@op("reshape", floats="as_is")
def reshape(x: Tensor, shape: Tensor) -> Tensor:
    """Reshape; ``0`` takes over a size of ``x`` and one ``-1`` takes what is left.

    iOS 17 counts the sizes that a ``0`` takes over from the right, and makes it 1 beyond the rank of
    ``x``. iOS 15 allows ``0`` only where both ranks are equal, and there both rules say the same.
    """
    wanted = [int(size) for size in shape.tolist()]
    missing = len(wanted) - x.ndim
    for at, size in enumerate(wanted):
        if size == 0:
            wanted[at] = x.shape[at - missing] if at >= missing else 1
    return _reshaped(x, wanted)


@op("reshape_like", floats="as_is")
def reshape_like(
    x: Tensor,
    ref_tensors: Tensor | list[Tensor],
    begins: Tensor | list[Tensor],
    ends: Tensor | list[Tensor],
    end_masks: Tensor | list[Tensor],
) -> Tensor:
    """Reshape to the joined pieces ``shape[begin:end]`` of other tensors' shapes."""
    wanted: list[int] = []
    pieces = zip(
        _several(ref_tensors), _several(begins), _several(ends), _several(end_masks), strict=True
    )
    for reference, begin, end, to_the_end in pieces:
        stop = None if bool(to_the_end) else int(end)
        wanted += reference.shape[int(begin) : stop]
    return _reshaped(x, wanted)


def _several(value: Tensor | list[Tensor]) -> list[Tensor]:
    return value if isinstance(value, list) else [value]


def _reshaped(x: Tensor, wanted: Sequence[int]) -> Tensor:
    known = math.prod(size for size in wanted if size != -1)
    open_sizes = wanted.count(-1)
    fits = x.numel() == known if not open_sizes else known > 0 and x.numel() % known == 0
    if open_sizes > 1 or not fits or any(size < -1 for size in wanted):
        raise ExecutionError(f"shape {list(x.shape)} cannot become {list(wanted)}")
    return x.reshape(tuple(wanted))


@op("flatten2d", floats="as_is")
def flatten2d(x: Tensor, axis: Tensor | int = 1) -> Tensor:
    """Join the axes before ``axis``, and the axes from it on."""
    return x.reshape(math.prod(x.shape[: int(axis)]), math.prod(x.shape[int(axis) :]))


@op("expand_dims", floats="as_is")
def expand_dims(x: Tensor, axes: Tensor) -> Tensor:
    """Insert axes of size 1; ``axes`` are places in the result."""
    rank = x.ndim + axes.numel()
    places = [int(axis) % rank for axis in axes.tolist() if -rank <= axis < rank]
    if len(set(places)) != axes.numel():
        raise ExecutionError(f"axes {axes.tolist()} are no {axes.numel()} places in rank {rank}")
    for place in sorted(places):
        x = x.unsqueeze(place)
    return x


@op("squeeze", floats="as_is")
def squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Remove axes of size 1; an axis of another size stays, as in PyTorch."""
    if axes is None:
        return x.squeeze()
    return x.squeeze(tuple(int(axis) for axis in axes.tolist()))


@op("transpose", floats="as_is")
def transpose(x: Tensor, perm: Tensor) -> Tensor:
    """Permute the axes."""
    return x.permute(tuple(perm.tolist()))


@op("reverse", floats="as_is")
def reverse(x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Reverse the order along axes, by default along all."""
    return flipped(x, list(range(x.ndim)) if axes is None else axes.tolist())


def flipped(x: Tensor, axes: list[int]) -> Tensor:
    """Reverse the order along axes."""
    return signed(x).flip(axes).view(x.dtype)


def signed(x: Tensor) -> Tensor:
    """Return the same bits in a dtype that torch can move: it has few kernels for uint16."""
    return x.view(torch.int16) if x.dtype == torch.uint16 else x


@op("reverse_sequence", floats="as_is")
def reverse_sequence(
    x: Tensor, lengths: Tensor, seq_axis: Tensor | int = 0, batch_axis: Tensor | int = 0
) -> Tensor:
    """Reverse the first ``lengths[i]`` elements of sequence ``i``, as ``tf.reverse_sequence`` does."""
    along, batch = int(seq_axis) % x.ndim, int(batch_axis) % x.ndim
    size, counts = x.shape[along], lengths.long()
    if lengths.shape != (x.shape[batch],) or bool(((counts < 0) | (counts > size)).any()):
        raise ExecutionError(
            f"lengths {lengths.tolist()} must be {x.shape[batch]} numbers from 0 to {size}"
        )
    place = torch.arange(size)
    source = torch.where(place < counts[:, None], counts[:, None] - 1 - place, place)
    moved = x.movedim((batch, along), (0, 1))
    return moved[torch.arange(len(counts))[:, None], source].movedim((0, 1), (batch, along))


@op("depth_to_space", floats="as_is")
def depth_to_space(x: Tensor, block_size: Tensor) -> Tensor:
    """Move channels into blocks of pixels; the place in the block is the slow part of the channel.

    This is TensorFlow's order. Core ML's layer description (NeuralNetwork.proto,
    ``ReorganizeDataLayerParams``) sets it apart from PyTorch's, which ``pixel_shuffle`` has.
    """
    n, c, h, w = x.shape
    b = _dividing(int(block_size), (c,), square=True)
    blocks = x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2)
    return blocks.reshape(n, c // (b * b), h * b, w * b)


@op("space_to_depth", floats="as_is")
def space_to_depth(x: Tensor, block_size: Tensor) -> Tensor:
    """Undo ``depth_to_space``."""
    n, c, h, w = x.shape
    b = _dividing(int(block_size), (h, w))
    blocks = x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4)
    return blocks.reshape(n, b * b * c, h // b, w // b)


@op("pixel_shuffle", floats="as_is")
def pixel_shuffle(x: Tensor, upscale_factor: Tensor) -> Tensor:
    """Move channels into blocks of pixels, in PyTorch's order."""
    factor = _dividing(int(upscale_factor), (x.shape[1],), square=True)
    return torch.pixel_shuffle(x, factor)


@op("pixel_unshuffle", floats="as_is")
def pixel_unshuffle(x: Tensor, downscale_factor: Tensor) -> Tensor:
    """Undo ``pixel_shuffle``."""
    return torch.pixel_unshuffle(x, _dividing(int(downscale_factor), x.shape[2:]))


def _dividing(block: int, sizes: Sequence[int], *, square: bool = False) -> int:
    if block < 1 or any(size % (block * block if square else block) for size in sizes):
        raise ExecutionError(f"block size {block} does not divide {list(sizes)}")
    return block


@op("space_to_batch", floats="as_is")
def space_to_batch(x: Tensor, block_shape: Tensor, paddings: Tensor) -> Tensor:
    """Pad with zeros and move each place of a block into a batch of its own, as TensorFlow does."""
    (top, bottom), (left, right) = paddings.tolist()
    rows, columns = block_shape.tolist()
    n, c, h, w = x.shape[0], x.shape[1], x.shape[2] + top + bottom, x.shape[3] + left + right
    _dividing(rows, (h,)), _dividing(columns, (w,))
    padded = x.new_zeros(bounded((n, c, h, w), x.dtype))
    padded[:, :, top : h - bottom, left : w - right] = x
    blocks = padded.reshape(n, c, h // rows, rows, w // columns, columns).permute(3, 5, 0, 1, 2, 4)
    return blocks.reshape(n * rows * columns, c, h // rows, w // columns)


@op("batch_to_space", floats="as_is")
def batch_to_space(x: Tensor, block_shape: Tensor, crops: Tensor) -> Tensor:
    """Undo ``space_to_batch``: join the batches of a block, then cut the borders off."""
    (top, bottom), (left, right) = crops.tolist()
    rows, columns = block_shape.tolist()
    n, c, h, w = x.shape
    if rows < 1 or columns < 1 or n % (rows * columns):
        raise ExecutionError(f"a batch of {n} has no blocks of {rows} times {columns}")
    if min(top, bottom, left, right) < 0 or top + bottom > h * rows or left + right > w * columns:
        raise ExecutionError(f"crops {crops.tolist()} do not fit {h * rows} times {w * columns}")
    blocks = x.reshape(rows, columns, n // (rows * columns), c, h, w).permute(2, 3, 4, 0, 5, 1)
    joined = blocks.reshape(n // (rows * columns), c, h * rows, w * columns)
    return joined[:, :, top : h * rows - bottom, left : w * columns - right]


@op("sliding_windows", floats="as_is")
def sliding_windows(x: Tensor, axis: Tensor, size: Tensor, stride: Tensor | int = 1) -> Tensor:
    """Return all windows along an axis; what lies in a window is the axis after it."""
    along = int(axis) % x.ndim
    return x.unfold(along, int(size), int(stride)).movedim(-1, along + 1)
