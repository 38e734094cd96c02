"""GPTQ into ggml's block formats: error feedback between columns, scales chosen as the feedback arrives.

With U the upper Cholesky factor of H^-1, a column's error, divided by U_jj, moves the columns behind it
(``feedback.py`` has the recursion). In a block format the columns of a row share scales, and what they
should be depends on what the feedback has made of the weights. So
- when the walk over columns enters a block, the format's encoder fits it anew to the weights as they are;
- when it enters a sub-block of a K-quant, whose scale and minimum are small integers, the integers
  around the encoder's are tried, and those with the least error of this sub-block stay. An error of
  column j counts 1 / U_jj^2: what is left of it once the columns behind have answered it.

Formats whose codes name vectors are rounded by ``lattice_feedback.py``.

Source: Frantar et al. 2022 (https://arxiv.org/abs/2210.17323), algorithm 1, in which too a group's scale is
chosen when its first column comes; FORMATS A.1.2 for what a block holds.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from torch import Tensor

from qcompile.compiler.ir.blocks.affine import AffineFormat
from qcompile.compiler.ir.blocks.format import Fields, present
from qcompile.compiler.ir.blocks.lattice import LatticeFormat
from qcompile.passes.calibration.parallel import each
from qcompile.passes.quantization.lattice_feedback import round_lattice_block

FEWEST_ROWS, MOST_ROWS = 256, 1024
"""That are rounded together; the others beside them, on another core."""
SCALE_STEPS = (0, -1, 1, -2, 2, -3, 3)
MIN_STEPS = (0, -1, 1, -2, 2)
Rounded = AffineFormat | LatticeFormat


def feed_back(target: Tensor, upper: Tensor, format: Rounded) -> Tensor:
    """Return a weight's blocks, rounded with error feedback.

    Args:
        target: ``[rows, columns]``; the columns fill the format's blocks.
        upper: ``[columns, columns]``, upper Cholesky factor of the inverse of H.
        format: Of the blocks.

    Returns:
        uint8 ``[rows, bytes]``.
    """
    upper = upper.float()
    rows = min(MOST_ROWS, max(FEWEST_ROWS, len(target) // 2))
    return torch.cat(
        each(lambda part: feed_back_rows(part, upper, format), target.float().split(rows))
    )


def feed_back_rows(target: Tensor, upper: Tensor, format: Rounded) -> Tensor:
    """Do what ``feed_back`` does on the core that asks for it; both float32."""
    packed, current = [], target.clone()
    for start in range(0, current.shape[1], format.block):
        end = start + format.block
        fields, errors = _round(current[:, start:end], upper[start:end, start:end], format)
        current[:, end:] -= errors @ upper[start:end, end:]
        packed.append(format.pack(fields))
    return torch.cat(packed, 1)


def _round(current: Tensor, upper: Tensor, format: Rounded) -> tuple[Fields, Tensor]:
    if isinstance(format, AffineFormat):
        return _block(current, upper, format)
    return round_lattice_block(current, upper, format)


def _block(current: Tensor, upper: Tensor, format: AffineFormat) -> tuple[Fields, Tensor]:
    """Round one block of each row; ``current`` is changed.

    Returns:
        Its fields, and the errors that move the columns behind it.
    """
    weights = upper.diagonal().square().reciprocal().expand_as(current)
    fields = format.fit(current.contiguous(), format.importance(current, weights))
    errors, codes = torch.empty_like(current), fields.codes.clone()
    for index, start in enumerate(range(0, format.block, format.run)):
        here = slice(start, start + format.run)
        fields = _refit(fields, index, current[:, here], weights[:, here], format)
        scale = _Scale(*_steps(fields, index, format), format)
        codes[:, here], errors[:, here] = _run(
            current[:, here], upper[here, here], scale, codes[:, here]
        )
        current[:, here.stop :] -= errors[:, here] @ upper[here, here.stop :]
    return replace(fields, codes=codes), errors


def _run(current: Tensor, upper: Tensor, scale: _Scale, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Round the columns of one sub-block of each row: ``[rows, run]``.

    Returns:
        Its codes, and the errors that move the columns behind it.
    """
    columns = current.T.contiguous()  # those of all rows lie side by side
    codes, errors = kept.T.contiguous(), torch.empty_like(columns)
    for index, value in enumerate(columns):
        codes[index] = scale.nearest(value, codes[index])
        torch.sub(value, scale.value(codes[index]), out=errors[index]).div_(upper[index, index])
        columns[index + 1 :] -= upper[index, index + 1 :, None] * errors[index]
    return codes.T, errors.T


def _refit(
    fields: Fields, index: int, current: Tensor, weights: Tensor, format: AffineFormat
) -> Fields:
    """Return fields whose scale and min of one sub-block suit its weights as they are."""
    if format.scale_range is None:
        return fields
    tried = _tries(fields, index, *format.scale_range)
    errors = format.squared_errors(current[:, None], *format.steps(tried))
    errors = errors.mul_(weights[:, None]).sum(2)
    best = torch.from_numpy(errors.numpy().argmin(1))[:, None]  # the first of the least
    scales = _with(present(fields.scales), index, present(tried.scales).gather(1, best))
    if fields.mins is None:
        return replace(fields, scales=scales)
    return replace(
        fields, scales=scales, mins=_with(fields.mins, index, present(tried.mins).gather(1, best))
    )


def _tries(fields: Fields, index: int, lowest: int, highest: int) -> Fields:
    """Return the scales and mins to try for one sub-block: ``[rows, tries]``."""
    min_steps = (0,) if fields.mins is None else MIN_STEPS
    steps = torch.tensor(list(itertools.product(SCALE_STEPS, min_steps)))

    def moved(values: Tensor, by: Tensor) -> Tensor:
        return (values[:, index, None] + by).clamp(lowest, highest).to(values.dtype)

    mins = None if fields.mins is None else moved(fields.mins, steps[:, 1])
    return replace(fields, scales=moved(present(fields.scales), steps[:, 0]), mins=mins)


def _with(values: Tensor, index: int, new: Tensor) -> Tensor:
    changed = values.clone()
    changed[:, index] = new[:, 0]
    return changed


def _steps(fields: Fields, index: int, format: AffineFormat) -> tuple[Tensor, Tensor | None]:
    """Return step and low of one sub-block of each row."""
    step, low = format.steps(fields)
    return step[:, index], None if low is None else low[:, index]


class _Scale:
    """Step and low of one sub-block of each row, ``[rows]``."""

    def __init__(self, step: Tensor, low: Tensor | None, format: AffineFormat) -> None:
        self.step, self.low, self.format = step, low, format
        self.zero = step == 0
        self.any_zero = bool(self.zero.any())
        self.divisor = torch.where(self.zero, 1, step)

    def nearest(self, value: Tensor, kept: Tensor) -> Tensor:
        """Return the codes nearest to values; those that are kept where all have the same value."""
        shifted = value if self.low is None else value + self.low
        codes = self.format.nearest(shifted / self.divisor)
        return torch.where(self.zero, kept, codes) if self.any_zero else codes

    def value(self, codes: Tensor) -> Tensor:
        """Return what codes decode to."""
        values = self.step * self.format.level(codes)
        return values if self.low is None else values - self.low
