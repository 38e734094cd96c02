"""Second moments of what a linear layer reads: all that rounding needs to know of the calibration data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompile.passes.calibration.parallel import each, total
from qcompile.passes.calibration.walk import Values
from qcompile.passes.quantization import triangular

DAMPING = 0.01
DRIFT_DAMPING = 0.1
"""Of the mean of H, when the weight moves: the drift is noise for the most part, and must not be fitted."""
MOVED_ROWS = 512
"""That a core moves at a time."""
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
        """Return U, upper triangular, with ``U^T U`` the inverse of H with damping; float32.

        With the order of columns reversed, the Cholesky factor of H is the inverse of U.
        """
        return triangular.inverse(_factor(self.hessian.flip(0, 1), damping)).flip(0, 1).float()

    def moved(self, weight: Tensor) -> Tensor:
        """Return a weight that makes the float output from X: ``W + W D^T X (H + damping)^-1``."""
        lower = _factor(self.hessian, DRIFT_DAMPING)

        def of(rows: Tensor) -> Tensor:
            more: Tensor = torch.cholesky_solve((rows @ self.drift).T.double(), lower)
            return rows + more.T.float()

        return torch.cat(each(of, weight.float().split(MOVED_ROWS)))

    def judge(self, weight: Tensor, decoded: Iterable[Tensor]) -> Judgement:
        """Return how the outputs of several roundings of some rows differ from the float graph's.

        With E = W - Q the squared error is tr(E H E^T) + 2 tr(W (D^T X) E^T) + tr(W (D^T D) W^T).
        """
        drifted = weight @ self.drift
        inherited = _product(weight @ self.gap, weight)
        own, errors = [], []
        for lost in (weight - values for values in decoded):
            own.append(_product(lost @ self.hessian, lost))
            errors.append(own[-1] + 2 * _product(drifted, lost) + inherited)
        power = _product(weight @ self.hessian, weight) + 2 * _product(drifted, weight) + inherited
        return Judgement(power, tuple(own), tuple(errors))


@dataclass(frozen=True)
class Judgement:
    """Squares summed over tokens and outputs; ``+`` adds those of other rows.

    Args:
        power: Of the float output.
        own: Of what each rounding alone adds.
        errors: Of the output of each against the float graph's.
    """

    power: float
    own: tuple[float, ...]
    errors: tuple[float, ...]

    def __add__(self, other: Judgement) -> Judgement:
        """Return the sums."""
        own, errors = (
            tuple(a + b for a, b in zip(*pair, strict=True))
            for pair in ((self.own, other.own), (self.errors, other.errors))
        )
        return Judgement(self.power + other.power, own, errors)


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


def _product(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum(dtype=torch.float64))


def _factor(hessian: Tensor, damping: float) -> Tensor:
    """Return the lower Cholesky factor of H plus damping, which grows until there is one; float64."""
    mean = hessian.diagonal().double().mean().clamp(min=1e-12)
    while (lower := triangular.cholesky(_damped(hessian, damping * mean))) is None:
        damping *= 10
    return lower


def _damped(hessian: Tensor, by: Tensor) -> Tensor:
    damped = hessian.double()
    damped.diagonal().add_(by)
    return damped
