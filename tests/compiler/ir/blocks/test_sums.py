"""Sums are those of a loop over the elements, to the last bit, whatever is beside a group."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from qcompile.compiler.ir.blocks.sums import last, root, total


def added(x: Tensor) -> Tensor:
    result = x[0].clone()
    for row in x[1:]:
        result += row
    return result


@pytest.mark.parametrize("groups", [1, 2, 3, 17, 1000, 9000])
@pytest.mark.parametrize("elements", [1, 8, 16, 33, 256])
def test_elements_are_added_one_after_the_other(elements: int, groups: int) -> None:
    x = torch.randn(elements, groups, generator=torch.Generator().manual_seed(groups))
    assert torch.equal(total(x), added(x))
    assert torch.equal(total(x.T.contiguous().T), added(x))


def test_zeros_keep_their_sign_and_sums_may_overflow() -> None:
    x = torch.tensor([[-0.0, -0.0, 3e38], [-0.0, 0.0, 3e38]])
    sums = total(x)
    assert sums.tolist() == [0, 0, float("inf")]
    assert sums.signbit().tolist() == [True, False, False]


def test_roots_are_rounded_once() -> None:
    x = torch.rand(4096, generator=torch.Generator().manual_seed(0))
    assert torch.equal(root(x), x.double().sqrt().float())


def test_the_last_choice_counts() -> None:
    chosen = [[True, True, True], [True, False, False], [True, False, True], [False] * 3]
    assert last([np.array(row) for row in chosen]).tolist() == [[2, 0, 2]]
