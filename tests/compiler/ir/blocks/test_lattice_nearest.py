"""The nearest vector of a grid, against all vectors with all signs in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qcompile.compiler.ir.blocks.grids import grid
from qcompile.compiler.ir.blocks.lattice_nearest import Metric, nearest

NAMES = ["IQ2_XXS", "IQ3_XXS", "IQ3_S"]


def problem(name: str, seed: int) -> tuple[Tensor, Tensor]:
    """Elements of about the size of the grid's, one row of them zeros, and their steps."""
    generator = torch.Generator().manual_seed(seed)
    step = torch.rand(9, generator=generator) + 0.1
    size = grid(name).shape[1]
    x = torch.randn(9, size, generator=generator) * step[:, None] * grid(name).mean()
    x[3] = 0
    return x, step


def signed(name: str) -> tuple[Tensor, Tensor]:
    """Return all signs ``[signs, 1, elements]`` and vectors with them, float64."""
    size = grid(name).shape[1]
    signs = torch.tensor(list(itertools.product([1.0, -1.0], repeat=size)), dtype=torch.float64)
    return signs[:, None], grid(name).double() * signs[:, None]


def costs(x: Tensor, step: Tensor, vectors: Tensor, matrix: Tensor) -> Tensor:
    errors = x.double()[:, None] - step.double()[:, None, None] * vectors
    return ((errors @ matrix.double()) * errors).sum(2)


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 1 << 30))
@settings(max_examples=4, deadline=None)
def test_errors_by_themselves_give_the_nearest_of_all(name: str, seed: int) -> None:
    x, step = problem(name, seed)
    metric = Metric(torch.rand(x.shape[1]).add(0.2).diag(), grid(name))
    codes, negative = nearest(x, step, metric, None)
    chosen = torch.where(negative, -grid(name)[codes], grid(name)[codes]).double()
    found = costs(x, step, chosen[:, None], metric.matrix)[:, 0]
    least = costs(x, step, signed(name)[1].flatten(0, 1), metric.matrix).amin(1)
    torch.testing.assert_close(found, least, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 1 << 30), wanted=st.sampled_from([False, True]))
@settings(max_examples=4, deadline=None)
def test_correlated_errors_give_the_cheapest_vector_with_its_signs(
    name: str, seed: int, wanted: bool
) -> None:
    x, step = problem(name, seed)
    root = torch.randn(x.shape[1], x.shape[1]) / 3 + torch.eye(x.shape[1])
    metric, odd = Metric(root @ root.T, grid(name)), torch.full((9,), wanted)
    codes, negative = nearest(x, step, metric, odd)
    assert torch.equal(negative.sum(1) % 2 == 1, odd)
    for i, row in enumerate(x):
        vectors = grid(name).double() * torch.where(negative[i], -1, 1)
        every = costs(row[None], step[i, None], vectors, metric.matrix)[0]
        assert every[codes[i]] <= every.amin() * (1 + 1e-4) + 1e-4


@pytest.mark.parametrize("odd", [False, True])
def test_of_a_wrong_number_of_signs_the_cheapest_is_changed(odd: bool) -> None:
    x = torch.tensor([[3.0, 0.1, -4.0, 5.0], [-3.0, 0.2, -2.0, 0.1]])
    metric = Metric(torch.diag(torch.tensor([1.0, 1.0, 1.0, 1e-4])), grid("IQ3_XXS"))
    _, negative = nearest(x, torch.ones(2), metric, torch.full((2,), odd))
    assert (negative ^ (x < 0)).nonzero().tolist() == [[1, 3] if odd else [0, 3]]


def test_a_step_of_zero_is_no_error() -> None:
    codes, _ = nearest(torch.ones(2, 4), torch.zeros(2), Metric(torch.eye(4), grid("IQ3_S")), None)
    assert codes.shape == (2,)
