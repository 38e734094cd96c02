"""Error feedback: each column is rounded, and the columns to come take over its error.

With U the upper Cholesky factor of H^-1, for column j and every k > j
    q_j = nearest(W_j),  e = (W_j - q_j) / U_jj,  W_k -= e * U_jk
What ``nearest`` rounds to is free: the points of a grid, or the entries of a fixed table.

Source: Frantar et al. 2022 (https://arxiv.org/abs/2210.17323), algorithm 1, with its lazy blocks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 128
"""Columns whose errors reach the columns behind the block in one product."""
Nearest = Callable[[int, Tensor], tuple[Tensor, Tensor]]
"""Takes a column's number and its weights ``[groups, out / groups]``; returns codes and their values."""


def round_columns(
    matrix: Tensor, upper: Tensor, nearest: Nearest, block: int | None = None
) -> Tensor:
    """Return the codes of a matrix.

    Args:
        matrix: float64 ``[groups, out / groups, columns]``.
        upper: ``[groups, columns, columns]``.
        nearest: Rounds one column.
        block: Columns in a block; ``None`` for one block, in which sums have the order of the formula.
    """
    matrix, columns = matrix.clone(), matrix.shape[2]
    codes = torch.empty_like(matrix)
    for start in range(0, columns, block or columns):
        end = min(columns, start + (block or columns))
        errors = []
        for column in range(start, end):
            current = matrix[:, :, column]
            codes[:, :, column], value = nearest(column, current)
            error = (current - value) / upper[:, column, column, None]
            rest = upper[:, column, None, column + 1 : end]
            matrix[:, :, column + 1 : end] -= error[:, :, None] * rest
            errors.append(error)
        if end < columns:
            matrix[:, :, end:] -= torch.stack(errors, 2) @ upper[:, start:end, end:]
    return codes
