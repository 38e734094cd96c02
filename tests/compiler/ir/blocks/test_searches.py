"""The searches over all groups, against loops over one group, number by number in float32."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qcompile.compiler.ir.blocks.affine_search import Tries, search_affine
from qcompile.compiler.ir.blocks.searches import descend_signed, search_signed, search_unsigned

F = np.float32
TRIES = [
    (3, Tries(-0.5, 0.1, 15, absolute=True)),
    (15, Tries(-1.0, 0.1, 20)),
    (31, Tries(-0.9, 0.05, 36)),
]


def groups(seed: int, elements: int, positive: bool = False) -> tuple[Tensor, Tensor]:
    """Columns to fit and weights: Gaussian ones, zeros, a constant of each sign, and an outlier."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(elements, 12, generator=generator)
    x[:, 0], x[:, 1], x[:, 2] = 0, 0.75, -0.75
    x[3, 3] = 20
    weights = torch.rand(elements, 12, generator=generator)
    weights[:, 4] = 0
    return (x.abs() if positive else x), weights


def add(values: Iterable[F]) -> F:
    result = F(0)
    for value in values:
        result = F(result + value)
    return result


def affine_by_loops(
    x: np.ndarray, w: np.ndarray, highest: int, tries: Tries
) -> tuple[F, F, list[int]]:
    """Fit one group as FORMATS A.1.3 tells it."""

    def error(codes: np.ndarray, scale: F, low: F) -> F:
        difference = scale * codes + low - x
        return add(w * (np.abs(difference) if tries.absolute else difference * difference))

    low, high = min(x.min(), F(0)), x.max()
    if low == high:
        return F(0), F(-low), [0] * len(x)
    sum_w, sum_x = add(w), add(w * x)
    inverse = F(highest) / (high - low)
    scale = F(1) / inverse
    codes = np.clip(np.rint(inverse * (x - low)), 0, highest).astype(F)
    best = error(codes, scale, low)
    for i in range(tries.last + 1):
        inverse = (F(tries.first) + F(tries.step) * F(i) + F(highest)) / (high - low)
        trial = np.clip(np.rint(inverse * (x - low)), 0, highest).astype(F)
        sum_l, sum_l2, sum_xl = add(w * trial), add(w * trial * trial), add(w * trial * x)
        determinant = sum_w * sum_l2 - sum_l * sum_l
        if not determinant > 0:
            continue
        fitted = (sum_w * sum_xl - sum_x * sum_l) / determinant
        offset = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        if offset > 0:
            fitted, offset = sum_xl / sum_l2, F(0)
        if (size := error(trial, fitted, offset)) < best:
            best, codes, scale, low = size, trial, fitted, offset
    return scale, F(-low), [int(code) for code in codes]


@pytest.mark.parametrize(("highest", "tries"), TRIES)
@given(seed=st.integers(0, 1 << 30), elements=st.sampled_from([16, 32]))
@settings(max_examples=6, deadline=None)
def test_affine_fits_are_those_of_loops(
    highest: int, tries: Tries, seed: int, elements: int
) -> None:
    x, weights = groups(seed, elements)
    found = search_affine(x, weights, highest, tries)
    for i in range(x.shape[1]):
        scale, low, codes = affine_by_loops(x[:, i].numpy(), weights[:, i].numpy(), highest, tries)
        assert (float(found.scale[i]), float(found.low[i])) == (float(scale), float(low))
        assert found.codes[:, i].tolist() == codes


def signed_by_loops(x: np.ndarray, w: np.ndarray, half: int) -> tuple[F, list[int]]:
    peak = x[np.abs(x).argmax()]
    if abs(peak) < 1e-15:
        return F(0), [-half] * len(x)
    scale = best = F(0)
    for i in (0, *range(-9, 0), *range(1, 10)):
        levels = np.clip(np.rint(-(F(half) + F(0.1) * F(i)) / peak * x), -half, half - 1).astype(F)
        products, squares = add(w * x * levels), add(w * levels * levels)
        if i == 0 or (squares > 0 and products * products > best * squares):
            scale, codes = (products / squares if squares > 0 else F(0)), levels
            best = scale * products
    return scale, [int(code) for code in codes]


@pytest.mark.parametrize("half", [4, 8, 32])
@given(seed=st.integers(0, 1 << 30))
@settings(max_examples=6, deadline=None)
def test_signed_fits_are_those_of_loops(half: int, seed: int) -> None:
    x, weights = groups(seed, 16)
    found = search_signed(x, weights, half)
    for i in range(x.shape[1]):
        scale, levels = signed_by_loops(x[:, i].numpy(), weights[:, i].numpy(), half)
        assert float(found.scale[i]) == float(scale)
        assert found.levels[:, i].tolist() == levels


def explained(x: Tensor, weights: Tensor, levels: Tensor) -> Tensor:
    products, squares = (weights * x * levels).sum(0), (weights * levels * levels).sum(0)
    return products.square() / squares.clamp(min=1e-30)


@given(seed=st.integers(0, 1 << 30))
@settings(max_examples=10, deadline=None)
def test_no_single_level_can_be_changed_for_the_better(seed: int) -> None:
    """Coordinate descent ends where each level is the best one while the others stay."""
    x, _ = groups(seed, 16)
    x = x[:, 4:]
    found = descend_signed(x, 4)
    reached = explained(x, x * x, found.levels)
    for row in range(16):
        wanted = (x[row] / found.scale).round().clamp(-4, 3)
        changed = found.levels.clone()
        changed[row] = wanted
        assert (explained(x, x * x, changed) <= reached * 1.01).all()
    plain = (x * (-4 / x.gather(0, x.abs().argmax(0, keepdim=True)))).round().clamp(-4, 3)
    assert (reached >= explained(x, x * x, plain) * (1 - 1e-6)).all()


@given(seed=st.integers(0, 1 << 30))
@settings(max_examples=10, deadline=None)
def test_unsigned_fits_are_no_worse_than_dividing_by_the_largest(seed: int) -> None:
    x, weights = groups(seed, 16, positive=True)
    found = search_unsigned(x, weights, 15)
    unit = x.amax(0) / 15
    plain = (x / unit.clamp(min=1e-30)).round() * unit
    ours = (weights * (found.levels * found.scale - x).square()).sum(0)
    assert (ours <= (weights * (plain - x).square()).sum(0) + 1e-6).all()
    assert found.levels.amax() <= 15
    assert (found.scale[0], found.levels[:, 0].amax()) == (0, 0)
