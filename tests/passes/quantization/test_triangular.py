"""Blocked factors against LAPACK's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qcompile.passes.quantization import triangular


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks: a few hundred columns take several levels of recursion."""
    monkeypatch.setattr(triangular, "SMALL", 16)
    monkeypatch.setattr(triangular, "_STRIP", 24)


def definite(size: int) -> Tensor:
    rows = torch.randn(size + 5, size, generator=torch.Generator().manual_seed(size))
    return rows.double().T @ rows.double()


@pytest.mark.parametrize("size", [1, 16, 17, 100, 257])
def test_the_factor_and_its_inverse(size: int) -> None:
    matrix = definite(size)
    lower = triangular.cholesky(matrix)

    assert lower is not None
    torch.testing.assert_close(lower, torch.linalg.cholesky(matrix))
    torch.testing.assert_close(triangular.inverse(lower) @ lower, torch.eye(size).double())


@pytest.mark.parametrize("place", [3, 120, 199])
def test_what_is_not_positive_definite(place: int) -> None:
    matrix = definite(200)
    matrix[place, place] = -1.0

    assert triangular.cholesky(matrix) is None
