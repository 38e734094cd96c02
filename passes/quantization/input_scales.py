"""Which factors a group's inputs are divided by: candidates, judged on held-out tokens with error feedback.

Candidates are s = x^a / w^b, where x is the root mean square of an input over tokens and w that of its
column over the rows of all layers that read it. Columns become w s, inputs x / s. Where a + b = 1, the
result is the same however a model shares a channel's size between what makes it and who reads it: outliers
that a norm's weight brings in, and columns take out again, are undone.

    a = 0      columns get one size: small ones lose the most to a scale that they share with large ones
    a > 0      columns whose inputs are large get more of the scale, as in AWQ and SmoothQuant
    b = 0      AWQ's x^a
    outliers   columns far from the median size get that size; all others stay as they are

A candidate is judged on some rows by what error feedback makes of them, as they will be rounded. From H of
the inputs x, that of x / s is H_jk / (s_j s_k), and the factor U of its inverse is U_ij s_j: no second look
at the data. Damping, which adds to the diagonal of H, is chosen for columns of one size.

Source: Lin et al. 2023 (https://arxiv.org/abs/2306.00978), "duo scaling" of its code; Xiao et al. 2022
(https://arxiv.org/abs/2211.10438), equation 4; FORMATS B.2, B.3. Here x is a root mean square in place of
mean and maximum, which moments give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompile.compiler.ir.blocks.format import BlockFormat
from qcompile.passes.calibration.parallel import each
from qcompile.passes.quantization.block_feedback import feed_back_rows
from qcompile.passes.quantization.block_moments import Moments
from qcompile.passes.quantization.block_rounding import encode, has_feedback

EXPONENTS = ((0.0, 1.0), (0.0, 0.5), (0.25, 0.75), (0.5, 0.5), (0.25, 0.0))
"""(a, b) of ``x^a / w^b``."""
OUTLIER = 4.0
"""Times the median size, or one over it: a column beyond is an outlier."""
ROWS = 128
"""That judge, of all layers that read one value and have one format."""
LARGEST = 2.0**12
"""A factor relative to the median one."""
GAIN_OF_OUTLIERS = 0.02
GAIN_OF_FORMULAS = 0.1
"""Of the error: less is not kept. A few per cent are what chance gives the best of several formulas."""


@dataclass(frozen=True)
class JudgedRows:
    """Rows of layers that read one value and have one format.

    Args:
        rows: Of their weights, ``[n, in]``.
        weights: Of each row's squared error: one over the output power of its layer.
        format: Of the weights.
        channels: That each input is made of, int64 ``[in]``.
        fit: Moments of the inputs.
        judge: Of held-out tokens.
    """

    rows: Tensor
    weights: Tensor
    format: BlockFormat
    channels: Tensor
    fit: Moments
    judge: Moments

    def error(self, factors: Tensor, upper: Tensor | None) -> float:
        """Return the squared error of the outputs when inputs are divided by factors.

        Args:
            factors: float64 ``[channels]``.
            upper: Of the inverse of H, for inputs as they are; ``None`` to do without feedback.
        """
        scale = factors[self.channels].float()
        scaled = self.rows * scale
        if upper is not None and has_feedback(self.format):
            data = feed_back_rows(scaled, upper * scale, self.format)
        else:
            data = encode(scaled, self.format, self.fit.importance / scale.square()).data
        lost = self.rows - self.format.decode(data) / scale
        errors = ((lost @ self.judge.hessian) * lost).sum(1).double()
        return float((errors * self.weights).sum())


@dataclass(frozen=True)
class Choice:
    """Factors for a group.

    Args:
        method: ``"none"``, ``"outliers"``, or the formula.
        factors: float64 ``[channels]``.
        tried: Error of each candidate relative to none.
    """

    method: str
    factors: Tensor
    tried: Mapping[str, float]


def judged_rows(
    weights: Sequence[Tensor],
    format: BlockFormat,
    channels: Tensor,
    moments: tuple[Moments, Moments],
) -> JudgedRows:
    """Return the rows of some layers that judge.

    Args:
        weights: Of the layers, each ``[out, in]``.
        format: Of all of them.
        channels: That each input is made of.
        moments: Of the inputs: those that roundings are fitted to, and held-out ones.
    """
    fit, judge = moments
    parts = [some_rows(weight, len(weights)) for weight in weights]
    powers = [max(1e-30, judge.judge(part, ()).power) for part in parts]
    shares = [
        torch.full((len(p),), 1 / power).double() for p, power in zip(parts, powers, strict=True)
    ]
    return JudgedRows(torch.cat(parts), torch.cat(shares), format, channels, fit, judge)


def some_rows(weight: Tensor, layers: int) -> Tensor:
    """Return the rows of a weight that judge, one of so many layers'; of those, all."""
    most = max(1, ROWS // layers)
    return weight[:: -(-len(weight) // most)].float().clone()


def choose(judged: Sequence[JudgedRows], columns: Tensor, free: Tensor) -> Choice:
    """Return the factors that are kept: none or outliers alone, unless a formula is much better.

    Args:
        judged: Rows of all layers that will be rounded.
        columns: Mean square of the weights on each channel, float64 ``[channels]``.
        free: Channels that may have a factor, bool ``[channels]``.
    """
    inputs = _input_power(judged, len(free))
    found = {"none": torch.ones(len(free)).double(), **candidates(inputs, columns, free)}
    level = found[_name(0.0, 1.0)]
    uppers = [_upper(rows, level) for rows in judged]

    def error(factors: Tensor) -> float:
        return sum(j.error(factors, u) for j, u in zip(judged, uppers, strict=True))

    errors = dict(zip(found, each(error, found.values()), strict=True))
    best = _best(errors)
    base = errors["none"] or 1e-30
    tried = {name: round(e / base, 4) for name, e in errors.items() if name != "none"}
    return Choice(best, found[best], tried)


def _best(errors: Mapping[str, float]) -> str:
    """Return the candidate that changes the least among those that are not clearly worse."""
    kept = "none"
    if errors.get("outliers", torch.inf) < (1 - GAIN_OF_OUTLIERS) * errors[kept]:
        kept = "outliers"
    best = min(errors, key=errors.__getitem__)
    return best if errors[best] < (1 - GAIN_OF_FORMULAS) * errors[kept] else kept


def candidates(inputs: Tensor, columns: Tensor, free: Tensor) -> dict[str, Tensor]:
    """Return factors by formula, with 1 as their median.

    Args:
        inputs: Mean square of each channel, float64.
        columns: Mean square of the weights on each channel.
        free: Channels that may have a factor.
    """
    usable = free & (inputs > 0) & (columns > 0)
    x, w = inputs.where(usable, 1).sqrt(), columns.where(usable, 1).sqrt()
    found = {_name(a, b): _centred(x**a / w**b, usable) for a, b in EXPONENTS}
    flat = found[_name(0.0, 1.0)]
    usual = (flat < OUTLIER) & (flat > 1 / OUTLIER)
    if not bool(usual.all()):
        found["outliers"] = flat.where(~usual, 1.0)
    return found


def _centred(factors: Tensor, usable: Tensor) -> Tensor:
    """Return factors over their median, 1 where none is possible."""
    median = factors[usable].median() if bool(usable.any()) else 1.0
    return (factors / median).clamp(1 / LARGEST, LARGEST).where(usable, 1.0)


def _name(a: float, b: float) -> str:
    return f"x^{a:g} / w^{b:g}"


def _input_power(judged: Sequence[JudgedRows], channels: int) -> Tensor:
    """Return the mean square of each channel over all inputs that are made of it."""
    total, count = torch.zeros(channels).double(), torch.zeros(channels).double()
    for rows in judged:
        total.index_add_(0, rows.channels, rows.fit.importance.double())
        count.index_add_(0, rows.channels, torch.ones(len(rows.channels)).double())
    return total / count.clamp(min=1)


def _upper(rows: JudgedRows, level: Tensor) -> Tensor | None:
    """Return the factor of the inverse of H, damped for columns of one size."""
    if not has_feedback(rows.format):
        return None
    scale = level[rows.channels].float()
    hessian = rows.fit.hessian / scale / scale[:, None]
    none = torch.zeros(()).expand_as(hessian)
    return Moments(rows.fit.tokens, hessian, none, none).upper() / scale
