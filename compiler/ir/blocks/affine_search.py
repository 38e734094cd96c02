"""The search for scale and low of a group, over all groups at once (FORMATS A.1.3).

ggml-quants.c names it ``make_qkx2_quants`` and ``make_qkx3_quants``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qcompile.compiler.ir.blocks.sums import (
    Array,
    last,
    quotient,
    reciprocal,
    row_sum,
    total,
)


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

    def spans(self, highest: int) -> Tensor:
        """Return the spans in units of each scale, computed in float32 as ggml does."""
        steps = torch.arange(self.last + 1, dtype=torch.float32)
        return self.first + self.step * steps + highest


def search_affine(x: Tensor, weights: Tensor, highest: int, tries: Tries) -> Affine:
    """Return scale, low and codes of the least weighted error.

    Each try rounds to codes at one scale and fits scale and low to them by least squares. As in ggml, a
    try starts from the low of the best one before it.

    Args:
        x: ``[elements, groups]``.
        weights: Of the errors, the shape of ``x``.
        highest: The largest code; the smallest is 0.
        tries: The scales.
    """
    return _Search(x.contiguous(), weights.contiguous(), highest, tries.absolute).best(tries)


class _Search:
    """The search; all tries write to the same arrays.

    What is one number a group is computed by numpy, whose calls take
    half the time.
    """

    def __init__(self, x: Tensor, weights: Tensor, highest: int, absolute: bool) -> None:
        self.x, self.weights, self.highest, self.absolute = x, weights, highest, absolute
        self.codes, self.product, self.scaled = (torch.empty_like(x) for _ in range(3))
        self.low, self.high = x.amin(0).clamp_(max=0), x.amax(0)
        self.sums = total(weights).numpy(), total(weights * x).numpy()

    def best(self, tries: Tries) -> Affine:
        """Return the best fit."""
        low, high = self.low, self.high
        inverse = quotient(self.highest, torch.where(high == low, torch.inf, high - low))
        scale = reciprocal(inverse)
        self._round(low, inverse)
        error = self._error(scale, low)
        spans = tries.spans(self.highest).numpy()
        fits = np.empty((len(spans) + 1, 4, len(low)), np.float32)
        fits[0] = inverse, low, low, scale
        with np.errstate(all="ignore"):
            chosen = self._search(fits, spans, error)
        found = torch.from_numpy(fits).gather(0, chosen[:, None].expand(1, 4, -1))[0]
        inverse, start, low, scale = found.unbind()
        return Affine(scale, -low, self._round(start, inverse))

    def _search(self, fits: Array, spans: Array, best: Array) -> Tensor:
        """Write inverse scale, low before it is fitted, low and scale of each try; return the best ones."""
        high, low, better = self.high.numpy(), self.low.numpy(), [np.ones(len(best), np.bool_)]
        for span, (inverse, start, offset, scale) in zip(spans, fits[1:], strict=True):
            np.divide(span, high - low, out=inverse)
            start[:] = low
            self._round(torch.from_numpy(start), torch.from_numpy(inverse))
            usable = _least_squares(*self.sums, *self._sums(), scale, offset)
            error = self._error(torch.from_numpy(scale), torch.from_numpy(offset))
            better.append(usable & (error < best))
            best = np.where(better[-1], error, best)
            low = np.where(better[-1], offset, low)
        return last(better)

    def _round(self, low: Tensor, inverse: Tensor) -> Tensor:
        codes = torch.sub(self.x, low, out=self.codes)
        return codes.mul_(inverse).round_().clamp_(0, self.highest)

    def _sums(self) -> tuple[Array, Array, Array]:
        """Return the weighted sums of codes, of their squares and of their products with x."""
        scaled = torch.mul(self.weights, self.codes, out=self.scaled)
        squares = row_sum(torch.mul(scaled, self.codes, out=self.product).numpy())
        return row_sum(scaled.numpy()), squares, row_sum(scaled.mul_(self.x).numpy())

    def _error(self, scale: Tensor, offset: Tensor) -> Array:
        difference = torch.mul(self.codes, scale, out=self.product).add_(offset).sub_(self.x)
        size = difference.abs_() if self.absolute else difference.square_()
        return row_sum(size.mul_(self.weights).numpy())


def _least_squares(
    weight: Array, x: Array, code: Array, code2: Array, product: Array, scale: Array, offset: Array
) -> npt.NDArray[np.bool_]:
    """Write scale and offset (at most 0), from weighted sums; return where there is a solution."""
    determinant = weight * code2 - code * code
    np.divide(weight * product - x * code, determinant, out=scale)
    np.divide(code2 * x - code * product, determinant, out=offset)
    np.copyto(scale, product / code2, where=offset > 0)
    np.minimum(offset, 0, out=offset)
    usable: npt.NDArray[np.bool_] = determinant > 0
    return usable
