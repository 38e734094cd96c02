"""Triangular factors of large matrices on all cores; blocks, and so results, do not depend on how many.

Recursive block algorithms (Elmroth et al. 2004, "Recursive blocked algorithms and hybrid data structures for
dense matrix library software").
"""

from __future__ import annotations

import torch
from torch import Tensor

from qcompile.passes.calibration.parallel import each

SMALL = 1024
"""Columns of what is factored at once."""
_STRIP = 512
"""Rows that a core takes at a time."""


def cholesky(matrix: Tensor) -> Tensor | None:
    """Return the lower Cholesky factor; ``None`` where the matrix is not positive definite.

    Args:
        matrix: Symmetric ``[n, n]``, float64.
    """
    half = len(matrix) // 2
    if len(matrix) <= SMALL:
        lower, failed = torch.linalg.cholesky_ex(matrix)
        return None if failed else lower
    first = cholesky(matrix[:half, :half])
    if first is None:
        return None

    def solve(rows: Tensor) -> Tensor:
        found: Tensor = torch.linalg.solve_triangular(first, rows.T, upper=False)
        return found.T

    below = torch.cat(each(solve, matrix[half:, :half].split(_STRIP)))
    pairs = zip(matrix[half:, half:].split(_STRIP), below.split(_STRIP), strict=True)
    last = cholesky(torch.cat(each(lambda pair: pair[0] - pair[1] @ below.T, pairs)))
    return None if last is None else _lower(first, below, last)


def inverse(lower: Tensor) -> Tensor:
    """Return the inverse of a lower triangular matrix ``[n, n]``."""
    half = len(lower) // 2
    if len(lower) <= SMALL:
        one = torch.eye(len(lower), dtype=lower.dtype)
        whole: Tensor = torch.linalg.solve_triangular(lower, one, upper=False)
        return whole
    first, last = each(inverse, (lower[:half, :half], lower[half:, half:]))
    middle = torch.cat(each(lambda rows: rows @ first, lower[half:, :half].split(_STRIP)))
    below = torch.cat(each(lambda rows: -(rows @ middle), last.split(_STRIP)))
    return _lower(first, below, last)


def _lower(first: Tensor, below: Tensor, last: Tensor) -> Tensor:
    half, size = len(first), len(first) + len(last)
    found = first.new_zeros(size, size)
    found[:half, :half], found[half:, :half], found[half:, half:] = first, below, last
    return found
