"""Second moments of what a linear layer reads: all that rounding needs to know of the calibration data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from qcompile.passes.calibration.parallel import total
from qcompile.passes.calibration.walk import Values

DAMPING = 0.01
DRIFT_DAMPING = 0.1
"""Of the mean of H, when the weight moves: the drift is noise for the most part, and must not be fitted."""
JUDGE_EVERY = 8


def judges(count: int) -> list[int]:
    """Return the batches that judge roundings: every eighth, or the only one."""
    return list(range(JUDGE_EVERY - 1, count, JUDGE_EVERY)) or [count - 1]


def fitted(count: int) -> list[int]:
    """Return the batches that roundings are fitted to: the others, or the only one."""
    held = set(judges(count))
    return [i for i in range(count) if i not in held] or [0]


@dataclass(frozen=True)
class Moments:
    """Sums over tokens; X is what the quantized prefix gives, D what the float graph's input has besides.

    Args:
        tokens: How many.
        hessian: ``X^T X``, float32 ``[columns, columns]``.
        drift: ``D^T X``.
        gap: ``D^T D``; of tokens that judge.
    """

    tokens: int
    hessian: Tensor
    drift: Tensor
    gap: Tensor

    @property
    def importance(self) -> Tensor:
        """``E[x^2]`` of each input: an imatrix."""
        return self.hessian.diagonal() / max(1, self.tokens)

    def upper(self, damping: float = DAMPING) -> Tensor:
        """Return the upper Cholesky factor of the inverse of H with damping."""
        factor: Tensor = torch.linalg.cholesky(_inverse(self.hessian, damping), upper=True)
        return factor

    @cached_property
    def move(self) -> Tensor:
        """``D^T X (H + damping)^-1``: a weight times one plus this makes the float output from X."""
        return self.drift @ _inverse(self.hessian, DRIFT_DAMPING)

    def error(self, weight: Tensor, decoded: Tensor) -> float:
        """Return the squared error of the output against the float graph's, summed over tokens.

        With E = W - Q it is tr(E H E^T) + 2 tr(W (D^T X) E^T) + tr(W (D^T D) W^T).
        """
        lost = weight - decoded
        own = ((lost @ self.hessian) * lost).sum(dtype=torch.float64)
        crossed = ((weight @ self.drift) * lost).sum(dtype=torch.float64)
        return float(own + 2 * crossed + self._inherited(weight))

    def own_error(self, weight: Tensor, decoded: Tensor) -> float:
        """Return the squared error that rounding alone adds to the output."""
        lost = weight - decoded
        return float(((lost @ self.hessian) * lost).sum(dtype=torch.float64))

    def power(self, weight: Tensor) -> float:
        """Return the squared float output, summed over tokens."""
        exact = self.hessian + self.drift + self.drift.T + self.gap
        return float(((weight @ exact) * weight).sum(dtype=torch.float64))

    def _inherited(self, weight: Tensor) -> Tensor:
        return ((weight @ self.gap) * weight).sum(dtype=torch.float64)


def moments(inputs: Values, batches: Sequence[int], *, judging: bool = False) -> Moments:
    """Return the moments of some batches of ``[..., columns]``.

    Args:
        inputs: Of a layer.
        batches: Their numbers.
        judging: Whether errors are to be measured with them: only then there is a gap.
    """

    def of(index: int) -> tuple[Tensor, Tensor, Tensor]:
        rows = inputs.quantized[index].flatten(0, -2)
        zero = rows.new_zeros(())
        if inputs.float is inputs.quantized:
            return rows.T @ rows, zero, zero
        gap = inputs.float[index].flatten(0, -2) - rows
        return rows.T @ rows, gap.T @ rows, gap.T @ gap if judging else zero

    hessian, drift, gap = total(of, batches)
    tokens = sum(inputs.quantized[i][..., 0].numel() for i in batches)
    return Moments(tokens, hessian, drift.expand_as(hessian), gap.expand_as(hessian))


def _inverse(hessian: Tensor, damping: float) -> Tensor:
    """Return the inverse of H plus damping, which grows until a Cholesky factor exists."""
    mean = hessian.diagonal().double().mean().clamp(min=1e-12)
    while True:
        lower, failed = torch.linalg.cholesky_ex(_damped(hessian, damping * mean))
        if not failed:
            inverse: Tensor = torch.cholesky_inverse(lower).float()
            del lower  # each of these is as large as H, or twice
            if not torch.linalg.cholesky_ex(inverse)[1]:
                return inverse
        damping *= 10


def _damped(hessian: Tensor, by: Tensor) -> Tensor:
    damped = hessian.double()
    damped.diagonal().add_(by)
    return damped
