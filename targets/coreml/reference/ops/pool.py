"""Pools. Source of the formulas: coremltools' op definitions, pool.py, and torch's for ``ceil_mode``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.ops.windows import (
    Pads,
    is_symmetric,
    padded,
    pads_of,
    steps_of,
)
from qcompile.targets.coreml.reference.registry import op

_MAXIMUM: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@dataclass(frozen=True)
class _Windows:
    """Where the windows of a pool lie.

    Args:
        kernel: Sizes of a window.
        strides: From one to the next.
        pads: Around the input.
        counts: Of windows.
        beyond: How far the last window reaches past the padded input, as ``ceil_mode`` lets it; below
            zero where it ends before.
    """

    kernel: list[int]
    strides: list[int]
    pads: Pads
    counts: list[int]
    beyond: list[int]

    @property
    def is_plain(self) -> bool:
        """Whether torch's pools take this padding as it is."""
        fits = all(2 * p[0] <= k for p, k in zip(self.pads, self.kernel, strict=True))
        return fits and is_symmetric(self.pads) and max(self.beyond) <= 0

    @property
    def before(self) -> list[int]:
        """The padding before the data."""
        return [pair[0] for pair in self.pads]

    @property
    def reach(self) -> Pads:
        """The padding that holds all windows, and no more."""
        return [(b, a + more) for (b, a), more in zip(self.pads, self.beyond, strict=True)]


@op("max_pool")
def max_pool(
    x: Tensor,
    kernel_sizes: Tensor,
    strides: Tensor | None = None,
    pad_type: str = "valid",
    pad: Tensor | None = None,
    ceil_mode: Tensor | bool = False,
) -> Tensor:
    """Maximum of each window; the padding is ``-inf``, which a window of nothing else gives."""
    windows = _windows(x, kernel_sizes, strides, pad_type, pad, bool(ceil_mode))
    pool = _MAXIMUM[x.ndim - 2]
    if windows.is_plain:
        return pool(x, windows.kernel, windows.strides, windows.before)
    return pool(padded(x, windows.reach, -math.inf), windows.kernel, windows.strides)


@op("avg_pool")
def avg_pool(
    x: Tensor,
    kernel_sizes: Tensor,
    strides: Tensor | None = None,
    pad_type: str = "valid",
    pad: Tensor | None = None,
    exclude_padding_from_average: Tensor | bool = False,
    ceil_mode: Tensor | bool = False,
) -> Tensor:
    """Mean of each window, the padding being zero.

    It counts the padding, unless that is excluded, but not what ``ceil_mode`` lets the last window
    cover beyond it, as torch. A window of which nothing counts gives NaN.
    """
    windows = _windows(x, kernel_sizes, strides, pad_type, pad, bool(ceil_mode))
    excludes = bool(exclude_padding_from_average)
    if windows.is_plain:
        pool = _AVERAGE[x.ndim - 2]
        return pool(x, windows.kernel, windows.strides, windows.before, False, not excludes)
    found = _sums(x, windows)
    for axis, size in enumerate(x.shape[2:]):
        count = _counted(windows, axis, size, excludes).to(x.dtype)
        found = found / count.reshape(-1, *[1] * (x.ndim - 3 - axis))
    return found


@op("l2_pool")
def l2_pool(
    x: Tensor,
    kernel_sizes: Tensor,
    strides: Tensor | None = None,
    pad_type: str = "valid",
    pad: Tensor | None = None,
    ceil_mode: Tensor | bool = False,
) -> Tensor:
    """Square root of the sum of squares of each window, of one or two dimensions.

    Raises:
        ExecutionError: The input has three spatial dimensions.
    """
    if x.ndim > 4:
        raise ExecutionError("l2_pool takes one or two spatial dimensions, not three")
    windows = _windows(x, kernel_sizes, strides, pad_type, pad, bool(ceil_mode))
    return _sums(x.square(), windows).sqrt()


def _sums(x: Tensor, windows: _Windows) -> Tensor:
    pool = _AVERAGE[x.ndim - 2]
    means = pool(padded(x, windows.reach), windows.kernel, windows.strides)
    return means * math.prod(windows.kernel)


def _counted(windows: _Windows, axis: int, size: int, excludes: bool) -> Tensor:
    """Return how many elements of each window count along one axis."""
    before, after = windows.pads[axis]
    first, end = (before, before + size) if excludes else (0, before + size + after)
    starts = torch.arange(windows.counts[axis]) * windows.strides[axis]
    inside = (starts + windows.kernel[axis]).clamp(max=end) - starts.clamp(min=first)
    return inside.clamp(min=0)


def _windows(
    x: Tensor,
    kernel_sizes: Tensor,
    strides: Tensor | None,
    pad_type: str,
    pad: Tensor | None,
    ceil_mode: bool,
) -> _Windows:
    rank = x.ndim - 2
    if rank not in _AVERAGE:
        raise ExecutionError(f"a pool takes one to three spatial dimensions, not {rank}")
    kernel = steps_of(kernel_sizes, "kernel_sizes", rank)
    step = steps_of(strides, "strides", rank)
    pads = pads_of(pad_type, pad, x.shape[2:], kernel, step)
    if ceil_mode:
        _check_ceil_mode(pad_type, pads)
    counts, beyond = [], []
    for size, k, s, pair in zip(x.shape[2:], kernel, step, pads, strict=True):
        total = size + sum(pair)
        count = _count(total, k, s, size + pair[0], ceil_mode and sum(pair) > 0, ceil_mode)
        counts.append(count)
        beyond.append((count - 1) * s + k - total)
    if min(counts) < 1:
        raise ExecutionError(f"no window of {kernel} fits in {list(x.shape[2:])} with {pads}")
    return _Windows(kernel, step, pads, counts, beyond)


def _count(total: int, k: int, s: int, data_end: int, drops_last: bool, ceil_mode: bool) -> int:
    """Return the number of windows of ``k`` at steps of ``s`` in ``total`` elements.

    With ``ceil_mode`` and padding, a last window that would start past the data is dropped.
    """
    if not ceil_mode:
        return (total - k) // s + 1
    count = -((k - total) // s) + 1
    return count - 1 if drops_last and (count - 1) * s >= data_end else count


def _check_ceil_mode(pad_type: str, pads: Pads) -> None:
    if len(pads) > 2:
        raise ExecutionError("ceil_mode is for one or two spatial dimensions, not for three")
    if pad_type.lower() not in ("valid", "custom"):
        raise ExecutionError(f"ceil_mode does not go with pad_type {pad_type!r}")
    if not is_symmetric(pads):
        raise ExecutionError(f"ceil_mode needs a symmetric padding, not {pads}")
