"""``AffineFormat``: formats whose values are a step times a code's level."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qcompile.compiler.ir.blocks.format import BlockFormat, Fields


@dataclass(frozen=True, kw_only=True)
class AffineFormat(BlockFormat):
    """A format whose values are ``step * level(code) - low``, a step and a low for each sub-block.

    Args:
        run: Elements that share a step.
        bits: Of a code.
        zero: The code whose level is 0.
    """

    run: int
    bits: int
    zero: int = 0

    @property
    def highest(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    @property
    def scale_range(self) -> tuple[int, int] | None:
        """The least and largest of ``scales``; ``None`` for a format that has none."""
        return None

    @abstractmethod
    def steps(self, fields: Fields) -> tuple[Tensor, Tensor | None]:
        """Return step and low: float32 ``[blocks, block / run]``; low is ``None`` where it is 0."""

    def level(self, codes: Tensor) -> Tensor:
        """Return what codes are before they are multiplied by a step, float32."""
        return codes.float() - self.zero

    def nearest(self, levels: Tensor) -> Tensor:
        """Return the codes whose levels are nearest, uint8."""
        return levels.round().add_(self.zero).clamp_(0, self.highest).to(torch.uint8)

    def nearest_levels(self, levels: Tensor) -> Tensor:
        """Return ``level(nearest(levels))``; ``levels`` may be overwritten."""
        return levels.round_().clamp_(-self.zero, self.highest - self.zero)

    def squared_errors(self, x: Tensor, step: Tensor, low: Tensor | None) -> Tensor:
        """Return the squared error of each element with the code that is nearest.

        Args:
            x: ``[..., run]``.
            step: Of each sub-block, ``[...]``.
            low: The same; ``None`` where it is 0.
        """
        step = step[..., None]
        shifted = x if low is None else x + low[..., None]
        found = self.nearest_levels(shifted / torch.where(step == 0, 1, step)).mul_(step)
        if low is not None:
            found -= low[..., None]
        return found.sub_(x).square_()

    def values(self, fields: Fields) -> Tensor:
        """Return what fields decode to, in ggml's order of operations."""
        step, low = self.steps(fields)
        codes = self.level(fields.codes).reshape(*step.shape, self.run)
        values = step[..., None] * codes
        if low is not None:
            values = values - low[..., None]
        return values.reshape(len(values), -1)

    def rounded(self, x: Tensor, fields: Fields) -> Fields:
        """Return ``fields`` with the codes nearest to ``x`` at its scales.

        Where a step is 0 the codes stay, which may be of any shape and dtype: they all have the same value.
        """
        step, low = self.steps(fields)
        shifted = x.reshape(*step.shape, self.run)
        if low is not None:
            shifted = shifted + low[..., None]
        zero = step == 0
        codes = self.nearest(shifted / torch.where(zero, 1, step)[..., None])
        if zero.any():
            kept = fields.codes.reshape(codes.shape).to(torch.uint8)
            codes = torch.where(zero[..., None], kept, codes)
        return replace(fields, codes=codes.reshape(x.shape))
