"""Sums and quotients of groups, rounded in one way whatever is beside a group.

Groups are columns: float32 ``[elements, groups]``, so that a sum over a group is a sum of rows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.float32]

SMALLEST = 1e-15
"""A group whose largest magnitude is below this is zero (ggml's ``GROUP_MAX_EPS``)."""

NOTHING = np.float32(-0.0)
"""What leaves every number as it is when it is added, -0.0 too."""


def total(x: Tensor) -> Tensor:
    """Return the sum of each group, added in the order of its elements."""
    return torch.from_numpy(row_sum(x.detach().contiguous().numpy()))


def row_sum(x: Array) -> Array:
    """Return the sum of rows that lie one after the other, added in their order.

    numpy adds row to row then; it adds in pairs where the elements of a sum lie side by side, as those of
    a single group do. Sums that overflow are infinite, without a warning.
    """
    if x.shape[1] == 1:
        return row_sum(x.repeat(2, 1))[:1]
    with np.errstate(over="ignore", invalid="ignore"):
        found: Array = np.add.reduce(x, axis=0, initial=NOTHING)
    return found


def largest(x: Tensor) -> Tensor:
    """Return the first element of largest magnitude of each group, with its sign."""
    low, high = x.amin(0), x.amax(0)
    result = torch.where(-low > high, low, high)
    if (tie := (-low == high) & (high > 0)).any():
        tied = x[:, tie]
        result[tie] = tied.gather(0, tied.abs().argmax(0, keepdim=True))[0]
    return result


def last(chosen: list[npt.NDArray[np.bool_]]) -> Tensor:
    """Return the last try at which each group is chosen; the first is everyone's: int64 ``[1, groups]``."""
    numbers = np.arange(len(chosen), dtype=np.uint8)[:, None]
    return torch.from_numpy((np.stack(chosen) * numbers).max(0, keepdims=True)).long()


def divisor(x: Tensor) -> Tensor:
    """Return ``largest(x)``, and infinity for groups of zeros: whatever it divides is 0 then."""
    peak = largest(x)
    return torch.where(peak.abs() < SMALLEST, torch.inf, peak)


def root(x: Tensor) -> Tensor:
    """Return the square root, rounded once: PyTorch's float32 kernel may be off by a unit."""
    return torch.from_numpy(np.sqrt(x.detach().contiguous().numpy()))


def quotient(number: float, x: Tensor) -> Tensor:
    """Return ``number / x``, rounded once: PyTorch's operator multiplies by the rounded ``1 / x``."""
    return torch.full_like(x, number) / x


def reciprocal(x: Tensor) -> Tensor:
    """Return 1 / x, and 0 where that is not finite."""
    inverse = 1 / x
    return torch.where(inverse.isfinite(), inverse, 0)
