"""Codes of a few bits in bytes, as ggml lays them out: a byte holds codes of elements that lie apart."""

from __future__ import annotations

import torch
from torch import Tensor


def split_bits(packed: Tensor, width: int, run: int) -> Tensor:
    """Return the codes in bytes, in the order of their elements.

    Bytes come in runs. The lowest bits of a run's bytes are the next ``run`` codes, the bits above
    them the ``run`` codes that follow, up to the highest bits.

    Args:
        packed: uint8 ``[blocks, bytes]``.
        width: Bits of a code: 1, 2 or 4.
        run: Bytes of a run; it divides ``bytes``.

    Returns:
        uint8 ``[blocks, bytes * 8 / width]``.
    """
    runs = packed.reshape(len(packed), -1, 1, run)
    return ((runs >> _shifts(width)) & ((1 << width) - 1)).reshape(len(packed), -1)


def join_bits(codes: Tensor, width: int, run: int) -> Tensor:
    """Return the bytes whose codes ``split_bits`` gives back."""
    planes = codes.to(torch.uint8).reshape(len(codes), -1, 8 // width, run)
    joined = planes[:, :, 0].clone()
    for index in range(1, 8 // width):
        joined |= planes[:, :, index] << (index * width)
    return joined.reshape(len(codes), -1)


def split_words(packed: Tensor, size: int) -> Tensor:
    """Return little-endian unsigned numbers of ``size`` bytes: int64 ``[blocks, bytes / size]``."""
    parts = packed.reshape(len(packed), -1, size).long()
    return (parts << (8 * torch.arange(size))).sum(2)


def join_words(words: Tensor, size: int) -> Tensor:
    """Return the bytes whose numbers ``split_words`` gives back: uint8 ``[blocks, words * size]``."""
    parts = (words.long()[..., None] >> (8 * torch.arange(size))) & 0xFF
    return parts.to(torch.uint8).reshape(len(words), -1)


def split_half(packed: Tensor) -> Tensor:
    """Return the float16 numbers in bytes ``[blocks, 2]``: ``[blocks]``."""
    return as_dtype(packed, torch.float16)[:, 0]


def join_half(values: Tensor) -> Tensor:
    """Return the bytes of float16 numbers ``[blocks]``: uint8 ``[blocks, 2]``."""
    return as_dtype(values.half()[:, None], torch.uint8)


def as_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the bytes of rows, read as another dtype; they may lie anywhere, and so are copied."""
    return x.clone(memory_format=torch.contiguous_format).view(dtype)


def _shifts(width: int) -> Tensor:
    return torch.arange(0, 8, width, dtype=torch.uint8)[:, None]
