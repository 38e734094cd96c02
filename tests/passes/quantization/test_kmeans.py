"""Exact k-means on a line: against all partitions, against Lloyd, and its degenerate cases."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qcompile.passes.quantization.kmeans import kmeans


def cost(x: Tensor, w: Tensor, centers: Tensor) -> float:
    return float((w * (x[:, None] - centers).square().min(1).values).sum())


def lloyd(x: Tensor, w: Tensor, centers: Tensor) -> Tensor:
    for _ in range(60):
        nearest = (x[:, None] - centers).abs().argmin(1)
        mass = torch.zeros_like(centers).index_add_(0, nearest, w)
        moment = torch.zeros_like(centers).index_add_(0, nearest, w * x)
        centers = torch.where(mass > 0, moment / mass.clamp(min=1e-12), centers)
    return centers


def best_of_all_partitions(x: Tensor, w: Tensor, count: int) -> float:
    x, order = x.sort()
    w, best = w[order], float("inf")
    for cuts in itertools.combinations_with_replacement(range(len(x) + 1), count - 1):
        total = 0.0
        for low, high in itertools.pairwise((0, *cuts, len(x))):
            if high > low:
                part, mass = x[low:high], w[low:high]
                mean = (part * mass).sum() / mass.sum().clamp(min=1e-12)
                total += float((mass * (part - mean).square()).sum())
        best = min(best, total)
    return best


@settings(max_examples=20)
@given(st.integers(1, 9), st.integers(1, 4), st.booleans(), st.integers(0, 2**31))
def test_equals_the_best_of_all_partitions(n: int, count: int, coarse: bool, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(2, n, generator=draw).double()
    x = (x * 2).round() / 2 if coarse else x  # equal values
    w = torch.rand(2, n, generator=draw).double() + 0.01
    centers = kmeans(x, w, count)
    assert centers.shape == (2, count)
    assert torch.equal(centers, centers.sort(1).values)
    for row in range(2):
        expected = best_of_all_partitions(x[row], w[row], count)
        assert cost(x[row], w[row], centers[row]) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_no_start_of_lloyd_is_better() -> None:
    x, w = torch.randn(1, 800).double() ** 3, torch.rand(1, 800).double()
    found = cost(x[0], w[0], kmeans(x, w, 8)[0])
    for _ in range(30):
        start = x[0, torch.randperm(800)[:8]].sort().values
        assert found <= cost(x[0], w[0], lloyd(x[0], w[0], start)) * (1 + 1e-12)


def test_cells_cost_next_to_nothing() -> None:
    """Outliers included: cells follow the values where they are dense."""
    x, w = torch.randn(2, 6000).double(), torch.rand(2, 6000).double()
    x[:, 0] = 300.0
    exact, coarse = kmeans(x, w, 16, cells=6000), kmeans(x, w, 16, cells=1024)
    for row in range(2):
        best = cost(x[row], w[row], exact[row])
        assert best <= cost(x[row], w[row], coarse[row]) <= 1.01 * best


def test_few_distinct_values_are_exact_whatever_their_number() -> None:
    x = torch.randn(50).double()[torch.randint(50, (1, 5000))]
    centers = kmeans(x, torch.ones_like(x), 64, cells=128)
    assert cost(x[0], torch.ones(5000).double(), centers[0]) == pytest.approx(0, abs=1e-20)


def test_a_row_is_a_problem_of_its_own() -> None:
    x, w = torch.randn(5, 40).double(), torch.rand(5, 40).double()
    together = kmeans(x, w, 4)
    for row in range(5):
        torch.testing.assert_close(kmeans(x[row : row + 1], w[row : row + 1], 4)[0], together[row])


def test_values_without_weight_do_not_count() -> None:
    x = torch.tensor([[0.0, 1.0, 5.0, 9.0]]).double()
    w = torch.tensor([[1.0, 1.0, 0.0, 1.0]]).double()
    assert kmeans(x, w, 3).tolist() == [[0.0, 1.0, 9.0]]
