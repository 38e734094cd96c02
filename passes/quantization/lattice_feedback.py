"""Error feedback into formats whose codes name vectors of a grid: one block of each row.

The vectors of 8 elements that share signs are chosen together. Of errors e of a few columns the columns
behind can answer a part; what is left is e A e^T with A = (U^T U)^-1, where U are these columns of the factor
(``block_feedback.py``): the metric in which ``lattice_nearest`` chooses. Scales are the encoder's, fitted to
the weights as they are when the block is entered. When a run that shares a scale is entered, the scales
beside it are tried, all the way through the run, and each row keeps the one with the least left.

Source: the recursion of Frantar et al. 2022 (https://arxiv.org/abs/2210.17323) with vectors in place of
numbers, as in Tseng et al. 2024, QuIP# (https://arxiv.org/abs/2402.04396), section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qcompile.compiler.ir.blocks.bits import join_bits
from qcompile.compiler.ir.blocks.format import Fields, present
from qcompile.compiler.ir.blocks.lattice import LatticeFormat
from qcompile.compiler.ir.blocks.lattice_nearest import Metric, nearest
from qcompile.compiler.ir.blocks.lattice_search import HIGHEST_SCALE

SIGNED = 8
"""Elements whose signs are stored together."""
SCALE_STEPS = (0, -1, 1, -2, 2)


@dataclass(frozen=True)
class _Chosen:
    """What some columns of each row became.

    Args:
        codes: int16 ``[rows, vectors]``.
        negative: bool ``[rows, columns]``.
        errors: float32 ``[rows, columns]``: times U, what moves the columns behind.
    """

    codes: Tensor
    negative: Tensor
    errors: Tensor

    def best_of(self, count: int) -> tuple[_Chosen, Tensor]:
        """Return the least costly of ``count`` choices for each row, and which it is."""
        left = self.errors.square().sum(1).reshape(count, -1)
        which = left.argmin(0)
        rows = which * left.shape[1] + torch.arange(left.shape[1])
        return _Chosen(self.codes[rows], self.negative[rows], self.errors[rows]), which


def round_lattice_block(
    current: Tensor, upper: Tensor, format: LatticeFormat
) -> tuple[Fields, Tensor]:
    """Round one block of each row; ``current`` is changed.

    Args:
        current: ``[rows, block]``, the weights with the feedback of what is before them.
        upper: These columns of the factor, float32 ``[block, block]``.
        format: Of the block.

    Returns:
        Its fields, and the errors that move the columns behind it.
    """
    weights = upper.diagonal().square().reciprocal().expand_as(current)
    importance = format.importance(current, weights).reshape(current.shape)
    fields = format.fit(current.contiguous(), importance)
    scales, runs = present(fields.scales).clone(), []
    for start in range(0, format.block, format.run):
        here = slice(start, start + format.run)
        tried = torch.stack([_moved(scales[:, start // format.run], by) for by in SCALE_STEPS])
        steps = format.steps(replace(fields, scales=tried.T)).T.flatten()
        vectors = _Vectors(upper[here, here], format)
        run, which = vectors.choose(current[:, here].repeat(len(tried), 1), steps).best_of(
            len(tried)
        )
        scales[:, start // format.run] = tried.gather(0, which[None])[0]
        current[:, here.stop :] -= run.errors @ upper[here, here.stop :]
        runs.append(run)
    found = _joined(runs)
    signs = join_bits(found.negative, 1, 1)
    return replace(fields, codes=found.codes, scales=scales, signs=signs), found.errors


def _moved(scales: Tensor, by: int) -> Tensor:
    return (scales.int() + by).clamp(0, HIGHEST_SCALE).to(torch.uint8)


class _Vectors:
    """Chooses the vectors of a run.

    Args:
        upper: The run's columns of the factor.
        format: Of the block.
    """

    def __init__(self, upper: Tensor, format: LatticeFormat) -> None:
        self.upper, self.even, self.grid = upper, format.even, format.grid
        self.size = self.grid.shape[1]
        factors = torch.stack(
            [upper[self._at(i), self._at(i)] for i in range(0, len(upper), self.size)]
        )
        inverses = torch.linalg.inv(factors.double())
        self.inverses = inverses.float()
        self.metrics = [Metric((i @ i.T).float(), self.grid) for i in inverses]

    def _at(self, start: int) -> slice:
        return slice(start, start + self.size)

    def choose(self, x: Tensor, step: Tensor) -> _Chosen:
        """Return what the run's columns become at a step for each row; ``x`` is changed."""
        chosen = []
        for start in range(0, x.shape[1], SIGNED):
            here = slice(start, start + SIGNED)
            chosen.append(self._signed(x[:, here], step, start))
            x[:, here.stop :] -= chosen[-1].errors @ self.upper[here, here.stop :]
        return _joined(chosen)

    def _signed(self, x: Tensor, step: Tensor, start: int) -> _Chosen:
        """Return what eight columns become.

        Where two vectors share signs whose number is even, both may be even or both odd.
        """
        if not self.even:
            return self._one_by_one(x.clone(), step, start, None)
        odd = torch.zeros_like(step, dtype=torch.bool)
        if self.size == SIGNED:
            return self._one_by_one(x.clone(), step, start, odd)
        both = self._one_by_one(x.repeat(2, 1), step.repeat(2), start, torch.cat([odd, ~odd]))
        return both.best_of(2)[0]

    def _one_by_one(self, x: Tensor, step: Tensor, start: int, odd: Tensor | None) -> _Chosen:
        chosen = []
        for column in range(0, SIGNED, self.size):
            here, index = self._at(column), (start + column) // self.size
            codes, negative = nearest(x[:, here], step, self.metrics[index], odd)
            value = step[:, None] * torch.where(negative, -self.grid[codes], self.grid[codes])
            errors = (x[:, here] - value) @ self.inverses[index]
            behind = slice(start + here.stop, start + SIGNED)
            x[:, here.stop :] -= errors @ self.upper[self._at(start + column), behind]
            chosen.append(_Chosen(codes[:, None].to(torch.int16), negative, errors))
        return _joined(chosen)


def _joined(parts: Sequence[_Chosen]) -> _Chosen:
    codes, negative = (
        torch.cat([p.codes for p in parts], 1),
        torch.cat([p.negative for p in parts], 1),
    )
    return _Chosen(codes, negative, torch.cat([p.errors for p in parts], 1))
