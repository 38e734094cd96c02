"""Compressed weights: the ``constexpr`` ops of iOS 16 and iOS 18, which bear the same names.

Source: coremltools' op definitions, iOS16/constexpr_ops.py and iOS18/compression.py. iOS 16 packs indices
and masks into bytes, lowest bits first, and says the shape beside; iOS 18 has types below one byte, which
come here as one byte a code. Codes are decoded as ``(code - offset) * scale`` in float32 and rounded once,
to the type of the scale; for integer codes that equals the same in float16, as a code and a scale multiply
exactly in float32. A look-up table gives its entries as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from qcompile.targets.coreml.reference.blob import unpack
from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.limits import bounded
from qcompile.targets.coreml.reference.ops.quantization import along
from qcompile.targets.coreml.reference.registry import op


@op("constexpr_cast", floats="as_is")
def constexpr_cast(source_val: Tensor, output_dtype: str) -> Tensor:
    """float16 to float32."""
    if output_dtype != "fp32":
        raise ExecutionError(f"constexpr_cast makes fp32, not {output_dtype}")
    return source_val.float()


@op("constexpr_affine_dequantize", floats="as_is")
def constexpr_affine_dequantize(
    quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: Tensor
) -> Tensor:
    """``scale * (quantized_data - zero_point)``, both scalars or vectors along ``axis``."""
    shifted = quantized_data.float() - along(zero_point, axis, quantized_data)
    return shifted.mul_(along(scale, axis, quantized_data)).to(scale.dtype)


@op("constexpr_blockwise_shift_scale", floats="as_is")
def constexpr_blockwise_shift_scale(
    data: Tensor, scale: Tensor, offset: Tensor | None = None
) -> Tensor:
    """``scale * (data - offset)``, one scale and offset for each block of equal sizes.

    Raises:
        ExecutionError: The shapes do not divide, or scale and offset differ.
    """
    if offset is not None and offset.shape != scale.shape:
        raise ExecutionError(f"offsets of {list(offset.shape)}, scales of {list(scale.shape)}")
    blocks = _blocks(data.shape, scale.shape)
    spread = [size for n, block in zip(scale.shape, blocks, strict=True) for size in (n, block)]
    each = [size for n in scale.shape for size in (n, 1)]
    values = data.float().reshape(spread)
    if offset is not None:
        values = values - offset.float().reshape(each)
    return (values * scale.float().reshape(each)).reshape(data.shape).to(scale.dtype)


def _blocks(sizes: Sequence[int], groups: Sequence[int]) -> list[int]:
    """Return the sizes of the blocks that ``groups`` cut a shape into."""
    fits = len(sizes) == len(groups) > 0 and min(groups) > 0
    if not fits or any(s % g for s, g in zip(sizes, groups, strict=True)):
        raise ExecutionError(f"{list(sizes)} cannot be cut into {list(groups)} blocks")
    return [s // g for s, g in zip(sizes, groups, strict=True)]


@op("constexpr_lut_to_dense", floats="as_is")
def constexpr_lut_to_dense(
    indices: Tensor,
    lut: Tensor,
    shape: Tensor | None = None,
    vector_axis: Tensor | None = None,
) -> Tensor:
    """Look up each index: iOS 16 gives ``shape`` and packed indices, iOS 18 tables of blocks or vectors.

    Args:
        indices: ``[bytes]`` (iOS 16), or of the shape of the result over the vectors.
        lut: ``[entries]`` (iOS 16), or ``[blocks of each dimension..., entries, vector]``.
        shape: Of the result (iOS 16).
        vector_axis: The dimension along which vectors are laid.
    """
    if shape is not None:
        return _looked_up_packed(indices, lut, shape.tolist())
    return _looked_up(indices, lut, vector_axis)


def _looked_up_packed(indices: Tensor, lut: Tensor, shape: Sequence[int]) -> Tensor:
    bits = lut.numel().bit_length() - 1
    if lut.ndim != 1 or lut.numel() not in (2, 4, 16, 64, 256):
        raise ExecutionError(f"a table has 2, 4, 16, 64 or 256 entries, not {list(lut.shape)}")
    return lut[_unpacked(indices, bits, shape).long()]


def _unpacked(packed: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    sizes = bounded(shape, torch.int16)
    count = math.prod(sizes)
    if packed.ndim != 1 or packed.numel() != (bits * count + 7) // 8:
        said = f"{count} codes of {bits} bits"
        raise ExecutionError(f"{said} do not take {packed.numel()} bytes")
    return torch.from_numpy(unpack(packed.numpy(), bits, count)).reshape(sizes)


def _looked_up(indices: Tensor, lut: Tensor, vector_axis: Tensor | None) -> Tensor:
    if lut.ndim != indices.ndim + 2:
        raise ExecutionError(f"indices of {list(indices.shape)} and a table of {list(lut.shape)}")
    entries, width = lut.shape[-2:]
    axis = _vector_axis(vector_axis, indices.ndim, width)
    out = [s * width if d == axis else s for d, s in enumerate(indices.shape)]
    bounded(out, lut.dtype)
    if indices.numel() and int(indices.max()) >= entries:
        raise ExecutionError(f"an index is {int(indices.max())}, but a table has {entries} entries")
    rows = _table_of_each(indices.shape, lut.shape[:-2]) * entries + indices
    found = lut.reshape(-1, width).index_select(0, rows.flatten())
    return found.view(*indices.shape, width).movedim(-1, axis + 1).reshape(out)


def _vector_axis(vector_axis: Tensor | None, rank: int, width: int) -> int:
    if vector_axis is None and width != 1:
        raise ExecutionError(f"a table of vectors of {width} has no vector_axis")
    axis = 0 if vector_axis is None else int(vector_axis)
    if not -rank <= axis < rank:
        raise ExecutionError(f"vector_axis is {axis}, but there are {rank} dimensions")
    return axis % rank


def _table_of_each(sizes: Sequence[int], groups: Sequence[int]) -> Tensor:
    """Return the number of the table that each index looks up, in a shape that broadcasts."""
    number = torch.zeros((), dtype=torch.int32)
    for dim, (group, block) in enumerate(zip(groups, _blocks(sizes, groups), strict=True)):
        length = sizes[dim] if group > 1 else 1
        place = torch.arange(length, dtype=torch.int32) // max(block, 1)
        number = number * group + place.view(-1, *[1] * (len(sizes) - 1 - dim))
    return number


@op("constexpr_sparse_to_dense", floats="as_is")
def constexpr_sparse_to_dense(
    nonzero_data: Tensor, mask: Tensor, shape: Tensor | None = None
) -> Tensor:
    """Put the values where ``mask`` is 1, in order; 0 elsewhere. iOS 16 packs the mask, ``[bytes]``."""
    if shape is not None:
        mask = _unpacked(mask, 1, shape.tolist())
    return _scattered(nonzero_data, mask)


def _scattered(values: Tensor, mask: Tensor) -> Tensor:
    where = mask != 0
    if values.ndim != 1 or values.numel() != int(where.sum()):
        bits = int(where.sum())
        raise ExecutionError(f"a mask of {bits} ones has values of shape {list(values.shape)}")
    dense = torch.zeros(mask.shape, dtype=values.dtype)
    dense[where] = values
    return dense


@op("constexpr_lut_to_sparse", floats="as_is")
def constexpr_lut_to_sparse(
    indices_mask: Tensor,
    indices_nonzero_data: Tensor,
    lut: Tensor,
    vector_axis: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Look up the indices where the mask is 1; returns the mask, over the vectors, and the values."""
    dense = _looked_up(_scattered(indices_nonzero_data, indices_mask), lut, vector_axis)
    mask = indices_mask
    if lut.shape[-1] > 1:
        axis = _vector_axis(vector_axis, mask.ndim, lut.shape[-1])
        mask = mask.repeat_interleave(lut.shape[-1], axis)
    return mask, dense[mask != 0]


@op("constexpr_sparse_blockwise_shift_scale", floats="as_is")
def constexpr_sparse_blockwise_shift_scale(
    data_mask: Tensor, nonzero_data: Tensor, scale: Tensor, offset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Decode codes by their place in the dense tensor; returns the mask and the values."""
    dense = constexpr_blockwise_shift_scale(_scattered(nonzero_data, data_mask), scale, offset)
    return data_mask, dense[data_mask != 0]
