"""Coordinate descent: one level of a group after the other is changed where that is better."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qcompile.compiler.ir.blocks.sums import total

SWEEPS = 5
"""Rounds over all levels."""


def descend(x: Tensor, weights: Tensor, levels: Tensor, lowest: int, highest: int) -> Tensor:
    """Change one level at a time while that raises the share of ``x`` that is explained.

    Args:
        x: ``[elements, groups]``.
        weights: Of the squared errors, the shape of ``x``.
        levels: Where the descent starts; the levels found are written there.
        lowest: The least level.
        highest: The largest.

    Returns:
        The scale of each group.
    """
    weighted = weights * x
    sums = total(weighted * levels), total((weights * levels).mul_(levels))
    groups = _Groups(x, weights, weighted, levels, *sums)
    groups.settle(SWEEPS, lowest, highest)
    products, squares = groups.products, groups.squares
    return torch.where(squares > 0, products / squares, 0)


@dataclass
class _Groups:
    """Groups that are not settled.

    Args:
        x: ``[elements, groups]``.
        weights: See above.
        weighted: ``weights * x``.
        levels: Changed.
        products: The sums of ``weighted * levels``; changed.
        squares: The sums of ``weights * levels^2``; changed.
    """

    x: Tensor
    weights: Tensor
    weighted: Tensor
    levels: Tensor
    products: Tensor
    squares: Tensor

    def settle(self, sweeps: int, lowest: int, highest: int) -> None:
        """Sweep; then sweep again over the groups that changed: the others would not."""
        changed = torch.zeros_like(self.products, dtype=torch.bool)
        for i in range(len(self.x)):
            changed |= self._improve(i, lowest, highest)
        left = changed.nonzero()[:, 0]
        if sweeps > 1 and len(left):
            rest = self._picked(left)
            rest.settle(sweeps - 1, lowest, highest)
            self._put(left, rest)

    def _improve(self, i: int, lowest: int, highest: int) -> Tensor:
        """Change the level of element i of each group where that is better; return where."""
        x, weight, weighted, level = self.x[i], self.weights[i], self.weighted[i], self.levels[i]
        product = (weighted * level).neg_().add_(self.products)
        square = (weight * level).mul_(level).neg_().add_(self.squares)
        wanted = (x * square).div_(product).round_().clamp_(lowest, highest)
        usable = (product > 0).logical_and_(wanted != level)
        product += weighted * wanted
        square += (weight * wanted).mul_(wanted)
        gains = (product * product).mul_(self.squares)
        better = gains > (self.products * self.products).mul_(square)
        better &= usable.logical_and_(square > 0)  # false where the quotient above is no number
        torch.where(better, wanted, level, out=level)
        torch.where(better, product, self.products, out=self.products)
        torch.where(better, square, self.squares, out=self.squares)
        return better

    def _picked(self, groups: Tensor) -> _Groups:
        rows = (self.x, self.weights, self.weighted, self.levels)
        sums = (self.products, self.squares)
        return _Groups(*(a.index_select(1, groups) for a in rows), *(s[groups] for s in sums))

    def _put(self, groups: Tensor, rest: _Groups) -> None:
        self.levels.index_copy_(1, groups, rest.levels)
        self.products[groups], self.squares[groups] = rest.products, rest.squares
