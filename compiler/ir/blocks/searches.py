"""Searches for the scale of a group, over all groups at once.

Groups are columns: ``x`` and ``weights`` are float32 ``[elements, groups]``, so that a sum over a group
is a sum of rows. These are the searches of ggml's encoders (FORMATS A.1.3; ggml-quants.c names them
``make_qx_quants``, ``make_q3_quants``, ``make_qkx2_quants``, ``make_qkx3_quants``, ``make_qp_quants``).
Sums add element after element, as ggml's loops do: a group's fit does not depend on the groups beside it,
as ``Tensor.sum`` would have it. (Compilers may fuse ggml's products into its sums; ours are rounded.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST = 1e-15
"""A group whose largest magnitude is below this is zero (ggml's ``GROUP_MAX_EPS``)."""

SWEEPS = 5
"""Rounds of coordinate descent."""


@dataclass(frozen=True)
class Symmetric:
    """A fit ``x = scale * levels``.

    Args:
        scale: float32 ``[groups]``, of either sign.
        levels: float32 ``[elements, groups]``, whole numbers.
    """

    scale: Tensor
    levels: Tensor


@dataclass(frozen=True)
class Affine:
    """A fit ``x = scale * codes - low``; ``low`` is not negative, and ``scale`` only where weights are 0."""

    scale: Tensor
    low: Tensor
    codes: Tensor


@dataclass(frozen=True)
class Tries:
    """Scales to try: a group spans ``highest + first + i * step`` of them, for i from 0 to ``last``.

    Args:
        first: See above.
        step: See above.
        last: See above.
        absolute: Errors count by their size, not by their square.
    """

    first: float
    step: float
    last: int
    absolute: bool = False

    def spans(self, highest: int) -> list[float]:
        """Return the spans in units of each scale, computed in float32 as ggml does."""
        steps = torch.arange(self.last + 1, dtype=torch.float32)
        return [float(span) for span in self.first + self.step * steps + highest]


def total(x: Tensor) -> Tensor:
    """Return the sum of each group, added in the order of its elements."""
    first, *others = x.unbind()
    result = first.clone()
    for other in others:
        result += other
    return result


def largest(x: Tensor) -> Tensor:
    """Return the first element of largest magnitude of each group, with its sign."""
    low, high = x.amin(0), x.amax(0)
    result = torch.where(-low > high, low, high)
    if (tie := (-low == high) & (high > 0)).any():
        tied = x[:, tie]
        result[tie] = tied.gather(0, tied.abs().argmax(0, keepdim=True))[0]
    return result


def divisor(x: Tensor) -> Tensor:
    """Return ``largest(x)``, and infinity for groups of zeros: whatever it divides is 0 then."""
    peak = largest(x)
    return torch.where(peak.abs() < SMALLEST, torch.inf, peak)


def search_symmetric(
    x: Tensor,
    weights: Tensor,
    inverses: Iterable[Tensor],
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
        inverses: Inverse scales to try, each ``[groups]``.
        nearest: Rounds to levels.
        level_first: Products of three are (weight * level) * x, else (weight * x) * level; ggml does both.
    """
    weighted = weights * x
    best = scale = chosen = torch.full_like(x[0], -1)
    for inverse in inverses:
        levels = nearest(x * inverse)
        scaled = weights * levels
        products = total(scaled * x if level_first else weighted * levels)
        squares = total(scaled * levels)
        better = (squares > 0) & (products * products > best * squares)
        better |= best < 0
        fitted = torch.where(squares > 0, products / squares, 0)
        best = torch.where(better, fitted * products, best)
        scale = torch.where(better, fitted, scale)
        chosen = torch.where(better, inverse, chosen)
    return Symmetric(torch.where(x.abs().amax(0) < SMALLEST, 0, scale), nearest(x * chosen))


def search_signed(x: Tensor, weights: Tensor, half: int) -> Symmetric:
    """Return a fit by levels from -half to half - 1, over 19 scales (``make_qx_quants``)."""
    peak = divisor(x)
    inverses = (quotient(-level, peak) for level in _around(half, 9))
    found = search_symmetric(x, weights, inverses, lambda v: v.round().clamp(-half, half - 1))
    return _lowest_where_zero(x, found, half)


def _around(level: int, steps: int) -> list[float]:
    """Return a level and then those at most ``steps`` tenths from it, in float32 as ggml does."""
    tenths = torch.arange(-steps, steps + 1, dtype=torch.float32) * 0.1
    levels = (tenths + level).tolist()
    return [float(level), *levels[:steps], *levels[steps + 1 :]]


def descend_signed(x: Tensor, half: int) -> Symmetric:
    """Return a fit by levels from -half to half - 1, weighted by x squared (``make_q3_quants``)."""
    levels = (x * quotient(-half, divisor(x))).round().clamp(-half, half - 1)
    return _lowest_where_zero(x, _descend(x, x * x, levels, -half, half - 1), half)


def _lowest_where_zero(x: Tensor, found: Symmetric, half: int) -> Symmetric:
    """Give groups of zeros the lowest level, so that ggml's bytes, which are 0 there, result."""
    zero = x.abs().amax(0) < SMALLEST
    return Symmetric(found.scale, torch.where(zero, -half, found.levels))


def search_unsigned(x: Tensor, weights: Tensor, highest: int) -> Symmetric:
    """Return a fit of numbers that are not negative by levels from 0 (``make_qp_quants``)."""
    peak = x.amax(0)
    span = torch.where(peak < SMALLEST, torch.inf, peak)
    best, chosen = torch.full_like(peak, torch.inf), torch.zeros_like(peak)
    for level in _around(highest, 4):
        inverse = quotient(level, span)
        levels = (x * inverse).round().clamp(0, highest)
        difference = x - levels * reciprocal(inverse)
        error = total(weights * difference * difference)
        better = error < best
        best, chosen = torch.where(better, error, best), torch.where(better, inverse, chosen)
    return _descend(x, weights, (x * chosen).round().clamp(0, highest), 0, highest)


def _descend(x: Tensor, weights: Tensor, levels: Tensor, lowest: int, highest: int) -> Symmetric:
    """Change one level at a time while that raises the share of ``x`` that is explained."""
    weighted = weights * x
    products, squares = total(weighted * levels), total(weights * levels * levels)
    for _ in range(SWEEPS):
        changed = False
        for i, level in enumerate(levels.unbind()):
            product = products - weighted[i] * level
            square = squares - weights[i] * level * level
            wanted = (x[i] * square / product).round().clamp(lowest, highest)
            usable = (product > 0) & (wanted != level)
            product, square = product + weighted[i] * wanted, square + weights[i] * wanted * wanted
            gains = product * product * squares > products * products * square
            better = usable & (square > 0) & gains  # false where the quotient above is no number
            if better.any():
                changed = True
                levels[i] = torch.where(better, wanted, level)
                products = torch.where(better, product, products)
                squares = torch.where(better, square, squares)
        if not changed:
            break
    return Symmetric(torch.where(squares > 0, products / squares, 0), levels)


def search_affine(x: Tensor, weights: Tensor, highest: int, tries: Tries) -> Affine:
    """Return scale, low and codes of the least weighted error (``make_qkx2``, ``make_qkx3_quants``).

    Each try rounds to codes at one scale and fits scale and low to them by least squares. As in ggml, a
    try starts from the low of the best one before it.

    Args:
        x: ``[elements, groups]``.
        weights: Of the errors, the shape of ``x``.
        highest: The largest code; the smallest is 0.
        tries: The scales.
    """
    low, high = x.amin(0).clamp(max=0), x.amax(0)
    weight_sum, x_sum = total(weights), total(weights * x)
    span = torch.where(high == low, torch.inf, high - low)
    inverse, start = quotient(highest, span), low
    scale = reciprocal(inverse)
    best = _error(x, weights, _codes(x, low, inverse, highest), scale, low, tries.absolute)
    for tried in tries.spans(highest):
        trial_inverse = quotient(tried, high - low)
        trial = _codes(x, low, trial_inverse, highest)
        scaled = weights * trial
        sums = weight_sum, x_sum, total(scaled), total(scaled * trial), total(scaled.mul_(x))
        fitted, offset, usable = _least_squares(*sums)
        error = _error(x, weights, trial, fitted, offset, tries.absolute)
        better = usable & (error < best)
        best, inverse = (
            torch.where(better, error, best),
            torch.where(better, trial_inverse, inverse),
        )
        start, low = torch.where(better, low, start), torch.where(better, offset, low)
        scale = torch.where(better, fitted, scale)
    return Affine(scale, -low, _codes(x, start, inverse, highest))


def _codes(x: Tensor, low: Tensor, inverse: Tensor, highest: int) -> Tensor:
    return (x - low).mul_(inverse).round_().clamp_(0, highest)


def _least_squares(
    weight: Tensor, x: Tensor, code: Tensor, code2: Tensor, product: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return scale, offset (at most 0) and whether there is a solution, from weighted sums."""
    determinant = weight * code2 - code * code
    scale = (weight * product - x * code) / determinant
    offset = (code2 * x - code * product) / determinant
    scale = torch.where(offset > 0, product / code2, scale)
    return scale, offset.clamp(max=0), determinant > 0


def _error(
    x: Tensor, weights: Tensor, codes: Tensor, scale: Tensor, offset: Tensor, absolute: bool
) -> Tensor:
    difference = (codes * scale).add_(offset).sub_(x)
    size = difference.abs_() if absolute else difference.square_()
    return total(size.mul_(weights))


def root(x: Tensor) -> Tensor:
    """Return the square root, rounded once: PyTorch's float32 kernel may be off by a unit."""
    return x.double().sqrt().float()


def quotient(number: float, x: Tensor) -> Tensor:
    """Return ``number / x``, rounded once: PyTorch's operator multiplies by the rounded ``1 / x``."""
    return torch.full_like(x, number) / x


def reciprocal(x: Tensor) -> Tensor:
    """Return 1 / x, and 0 where that is not finite."""
    inverse = 1 / x
    return torch.where(inverse.isfinite(), inverse, 0)
