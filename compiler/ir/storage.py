"""What stored numbers decode to: blocks that share a value, and numbers rounded to float16."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST_HALF = 2.0**-14
"""The smallest normal float16: below it the relative error of rounding grows without limit."""
LARGEST_HALF = 65504.0


def to_half(x: Tensor) -> Tensor:
    """Return values rounded to float16, half to even, as float32.

    PyTorch rounds float64 to float32 first. Products of a code or a float16 number with a float16
    scale have at most 22 digits, so that these are rounded once.
    """
    return x.half().float()


def half_scale(scale: Tensor) -> Tensor:
    """Return the least normal float16 numbers that are not below positive ``scale``, in float32.

    Rounding up keeps every value inside the codes' range that was there before.
    """
    wanted = scale.float().clamp(SMALLEST_HALF, LARGEST_HALF)
    nearest = wanted.half()
    above = (nearest.view(torch.int16) + 1).view(torch.float16)
    return torch.where(nearest.float() < wanted, above, nearest).float()


def spread(blocks: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return one value an element from one value a block.

    Args:
        blocks: Of the rank of ``shape``; each size divides that of ``shape``.
        shape: Of the result.
    """
    for axis, (size, count) in enumerate(zip(shape, blocks.shape, strict=True)):
        if size != count and count != 1:
            blocks = blocks.repeat_interleave(size // count, axis)
    return blocks.expand(shape)
