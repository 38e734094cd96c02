"""Searches for the scale of a group, over all groups at once.

Groups are columns: ``x`` and ``weights`` are float32 ``[elements, groups]``, so that a sum over a group
is a sum of rows. These are the searches of ggml's encoders (FORMATS A.1.3; ggml-quants.c names them
``make_qx_quants``, ``make_q3_quants``, ``make_qp_quants``; ``affine_search`` has the others).
Sums add element after element, as ggml's loops do: a group's fit does not depend on the groups beside it,
as ``Tensor.sum`` would have it. (Compilers may fuse ggml's products into its sums; ours are rounded.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qcompile.compiler.ir.blocks.descent import descend
from qcompile.compiler.ir.blocks.sums import (
    SMALLEST,
    Array,
    divisor,
    largest,
    last,
    quotient,
    reciprocal,
    row_sum,
    total,
)


@dataclass(frozen=True)
class Symmetric:
    """A fit ``x = scale * levels``.

    Args:
        scale: float32 ``[groups]``, of either sign.
        levels: float32 ``[elements, groups]``, whole numbers.
    """

    scale: Tensor
    levels: Tensor


def search_symmetric(
    x: Tensor,
    weights: Tensor,
    inverses: Callable[[Tensor], Tensor],
    nearest: Callable[[Tensor], Tensor],
    *,
    level_first: bool = False,
) -> Symmetric:
    """Return the scale and levels of the least weighted squared error among some scales.

    Each try rounds ``x * inverse`` to levels and fits the scale to them. Where all weights are 0, the levels
    of the first try stay, at a scale of 0.

    Args:
        x: ``[elements, groups]``.
        weights: Of the squared errors, the shape of ``x``.
        inverses: Returns the inverse scales to try, ``[tries, groups]``, for the groups' divisors.
        nearest: Rounds to levels; it may write to what it is given.
        level_first: Products of three are (weight * level) * x, else (weight * x) * level; ggml does both.
    """
    x, weights = x.contiguous(), weights.contiguous()
    peak = largest(x)
    zero = peak.abs() < SMALLEST
    tries = inverses(torch.where(zero, torch.inf, peak))
    with np.errstate(all="ignore"):
        scale, chosen = _best(tries, _sums(x, weights, tries, nearest, level_first))
    return Symmetric(scale.masked_fill_(zero, 0), nearest(x * chosen))


def _sums(
    x: Tensor,
    weights: Tensor,
    inverses: Tensor,
    nearest: Callable[[Tensor], Tensor],
    level_first: bool,
) -> Iterator[tuple[Array, Array]]:
    """Return the sums of weight * x * level and of weight * level^2 at each inverse scale."""
    weighted = weights * x
    scratch, product = torch.empty_like(x), torch.empty_like(x)
    for inverse in inverses.unbind():
        levels = nearest(torch.mul(x, inverse, out=scratch))
        if level_first:
            torch.mul(weights, levels, out=product).mul_(x)
        else:
            torch.mul(weighted, levels, out=product)
        products = row_sum(product.numpy())
        yield products, row_sum(torch.mul(weights, levels, out=product).mul_(levels).numpy())


def _best(inverses: Tensor, sums: Iterator[tuple[Array, Array]]) -> tuple[Tensor, Tensor]:
    """Return scale and inverse of the fit that explains most."""
    products, squares = next(sums)
    scales = np.empty(inverses.shape, np.float32)
    scales[0] = np.where(squares > 0, products / squares, 0)
    best, better = scales[0] * products, [np.ones(len(products), np.bool_)]
    for scale, (products, squares) in zip(scales[1:], sums, strict=True):
        np.divide(products, squares, out=scale)
        better.append((products * products > best * squares) & (squares > 0))
        best = np.where(better[-1], scale * products, best)
    chosen = last(better)
    return torch.from_numpy(scales).gather(0, chosen)[0], inverses.gather(0, chosen)[0]


def search_signed(x: Tensor, weights: Tensor, half: int) -> Symmetric:
    """Return a fit by levels from -half to half - 1, over 19 scales (``make_qx_quants``)."""
    tries = -torch.tensor(_around(half, 9))[:, None]
    found = search_symmetric(
        x, weights, lambda peak: tries / peak, lambda v: v.round_().clamp_(-half, half - 1)
    )
    return _lowest_where_zero(x, found, half)


def _around(level: int, steps: int) -> list[float]:
    """Return a level and then those at most ``steps`` tenths from it, in float32 as ggml does."""
    tenths = torch.arange(-steps, steps + 1, dtype=torch.float32) * 0.1
    levels = (tenths + level).tolist()
    return [float(level), *levels[:steps], *levels[steps + 1 :]]


def descend_signed(x: Tensor, half: int) -> Symmetric:
    """Return a fit by levels from -half to half - 1, weighted by x squared (``make_q3_quants``)."""
    x = x.contiguous()
    levels = (x * quotient(-half, divisor(x))).round_().clamp_(-half, half - 1)
    scale = descend(x, x * x, levels, -half, half - 1)
    return _lowest_where_zero(x, Symmetric(scale, levels), half)


def _lowest_where_zero(x: Tensor, found: Symmetric, half: int) -> Symmetric:
    """Give groups of zeros the lowest level, so that ggml's bytes, which are 0 there, result."""
    if (found.scale == 0).any():
        found.levels.masked_fill_(largest(x).abs() < SMALLEST, -half)
    return found


def search_unsigned(x: Tensor, weights: Tensor, highest: int) -> Symmetric:
    """Return a fit of numbers that are not negative by levels from 0 (``make_qp_quants``)."""
    peak = x.amax(0)
    span = torch.where(peak < SMALLEST, torch.inf, peak)
    best, chosen = torch.full_like(peak, torch.inf), torch.zeros_like(peak)
    for level in _around(highest, 4):
        inverse = quotient(level, span)
        levels = (x * inverse).round_().clamp_(0, highest)
        difference = torch.sub(x, levels.mul_(reciprocal(inverse)), out=levels)
        error = total((weights * difference).mul_(difference))
        better = error < best
        best, chosen = torch.where(better, error, best), torch.where(better, inverse, chosen)
    levels = (x * chosen).round_().clamp_(0, highest)
    return Symmetric(descend(x, weights, levels, 0, highest), levels)
