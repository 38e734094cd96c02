"""Paddings of ``conv``, ``conv_transpose`` and the pools. Source: coremltools' op definitions, conv.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.limits import bounded

Pads = list[tuple[int, int]]
"""Elements before and after, for each spatial dimension."""


def integers(value: Tensor | None, default: int, count: int) -> list[int]:
    """Return a constant vector as a list of ``count`` numbers; without one, all are the default.

    Raises:
        ExecutionError: It has another length.
    """
    if value is None:
        return [default] * count
    found = [int(v) for v in value.reshape(-1).tolist()]
    if len(found) != count:
        raise ExecutionError(f"it needs {count} numbers where the program has {found}")
    return found


def steps_of(value: Tensor | None, what: str, count: int) -> list[int]:
    """Return strides, dilations or kernel sizes: as ``integers``, with 1 by default, all above zero.

    Raises:
        ExecutionError: There is another number of them, or one is not above zero.
    """
    found = integers(value, 1, count)
    if min(found) < 1:
        raise ExecutionError(f"the {what} {found} are not all above zero")
    return found


def pads_of(
    pad_type: str,
    pad: Tensor | None,
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
) -> Pads:
    """Return the padding of each spatial dimension.

    ``same`` pads so that ``ceil(size / stride)`` windows fit, with the odd element after the data,
    ``same_lower`` with the odd one before it.

    Args:
        pad_type: ``valid``, ``custom``, ``same`` or ``same_lower``.
        pad: Of ``custom``; ignored otherwise.
        sizes: Of the input's spatial dimensions.
        kernel: Sizes of the window, dilated.
        strides: Of the window.

    Raises:
        ExecutionError: The type is none of these, or a padding is negative.
    """
    kind = pad_type.lower()
    if kind == "valid":
        return [(0, 0)] * len(sizes)
    if kind == "custom":
        flat = integers(pad, 0, 2 * len(sizes))
        if min(flat) < 0:
            raise ExecutionError(f"the padding {flat} is negative")
        return list(zip(flat[::2], flat[1::2], strict=True))
    if kind not in ("same", "same_lower"):
        raise ExecutionError(f"there is no pad_type {pad_type!r}")
    totals = [
        max(0, (-(-size // stride) - 1) * stride + window - size)
        for size, window, stride in zip(sizes, kernel, strides, strict=True)
    ]
    small = [(total // 2, total - total // 2) for total in totals]
    return small if kind == "same" else [(after, before) for before, after in small]


def padded(x: Tensor, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """Return ``x`` with its last dimensions padded by a constant.

    Raises:
        ExecutionError: The result would be too large.
    """
    first = x.ndim - len(pads)
    sizes = [n + before + after for n, (before, after) in zip(x.shape[first:], pads, strict=True)]
    bounded([*x.shape[:first], *sizes], x.dtype)
    flat = [side for pair in reversed(pads) for side in pair]
    return F.pad(x, flat, value=value)


def is_symmetric(pads: Pads) -> bool:
    """Return whether each dimension has as much before as after."""
    return all(before == after for before, after in pads)
