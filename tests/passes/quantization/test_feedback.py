"""Error feedback: blocks change the order of sums, not the result."""

from __future__ import annotations

import torch
from torch import Tensor

from qcompile.passes.quantization.feedback import round_columns


def _nearest(column: int, current: Tensor) -> tuple[Tensor, Tensor]:
    code = (current * 4).round()
    return code, code / 4


def test_blocks_give_the_codes_of_one_block() -> None:
    x = torch.randn(2, 100, 13).double().cumsum(2)
    upper = torch.linalg.cholesky(torch.linalg.inv(x.transpose(1, 2) @ x)).transpose(1, 2)
    matrix = torch.randn(2, 5, 13).double()
    before = matrix.clone()
    whole = round_columns(matrix, upper, _nearest)
    for block in (1, 4, 13, 64):
        assert torch.equal(round_columns(matrix, upper, _nearest, block), whole)
    assert torch.equal(matrix, before)
    assert not torch.equal(whole, (matrix * 4).round())
