"""Observers: each looks at a tensor's values over all samples and proposes a range for its codes.

min-max         smallest and largest value seen
moving-average  exponential average of each batch's min-max (momentum 0.9)
percentile      99.99 % and 99.999 % of the values on each side
mse             the range with the least mean squared error of quantizing
entropy         the range whose quantized histogram is nearest to the full one (Kullback-Leibler)

None of them is best everywhere (FORMATS B.0): ``choose`` takes, tensor by tensor, the proposal with
the least measured error. Where the caller measures the error, the best proposal is then moved to
where that error is least: ``search``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from qcompile.compiler.ir.quant import QuantParams, QuantSpec
from qcompile.passes.calibration.parallel import each

BINS = 8192
MOMENTUM = 0.9
_COARSE = (0.5, 0.6, 0.7, 0.8, 0.9, 1.1)
STEPS = (_COARSE, _COARSE, (0.95, 1.05), (0.975, 1.025))
"""What ``search`` multiplies an end of the range by, from coarse to fine."""
Range = tuple[float, float]
Measure = Callable[[QuantParams, float], float]
"""The error of a proposal; of one that reaches the number given, no more than that it does."""


@dataclass
class Histogram:
    """Counts of values in equal bins, float64.

    Args:
        low: Lower edge of the first bin.
        high: Upper edge of the last.
        counts: ``[BINS]``.
        average: Moving average of each batch's smallest and largest value.
    """

    low: float
    high: float
    counts: Tensor
    average: Range

    @cached_property
    def centers(self) -> Tensor:
        """Middle of each bin, ``[BINS]``."""
        width = (self.high - self.low) / BINS
        return self.low + width * (torch.arange(BINS, dtype=torch.float64) + 0.5)

    def error(self, spec: QuantSpec, params: QuantParams) -> float:
        """Return the mean squared error of quantizing the values so; zeros are exact."""
        one = QuantParams(params.scale.reshape(1, 1), params.zero_point.reshape(1, 1))
        return float(self.errors(spec, one)[0])

    def errors(self, spec: QuantSpec, params: QuantParams) -> Tensor:
        """Return the error of each of several parameters, ``[candidates]``.

        A value inside the range has the error of uniform rounding, step**2 / 12; one outside, the
        distance to the nearest end.

        Args:
            spec: Format of the codes.
            params: ``[candidates, 1]``.
        """
        step = params.scale.double()
        low = (spec.qmin - params.zero_point - 0.5) * step
        high = (spec.qmax - params.zero_point + 0.5) * step
        first = torch.searchsorted(self.centers, low).flatten()
        last = torch.searchsorted(self.centers, high).flatten()
        count, mean, square = self._sums
        inside = count[last] - count[first]
        error = inside * step.flatten() ** 2 / 12
        for end, part in ((spec.qmin, (0, first)), (spec.qmax, (last, BINS))):
            edge = ((end - params.zero_point) * step).flatten()
            n, m, s = (total[part[1]] - total[part[0]] for total in (count, mean, square))
            error = error + (s - 2 * edge * m + edge**2 * n).clamp(min=0)
        return error / count[-1].clamp(min=1)

    @cached_property
    def _sums(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return running sums of the counts, the values and their squares, ``[BINS + 1]`` each."""
        parts = (self.counts, self.counts * self.centers, self.counts * self.centers**2)
        return tuple(torch.cat([torch.zeros(1).double(), p.cumsum(0)]) for p in parts)  # type: ignore[return-value]


def histogram(batches: Sequence[Tensor], limit: int = 1 << 21) -> Histogram:
    """Return the histogram of values over batches.

    Args:
        batches: Any shapes. Zeros are left out: they cost nothing in any range.
        limit: Beyond this many values an evenly spaced part is counted; the range is of all.
    """
    ends = each(lambda b: (float(b.min()), float(b.max())), batches)
    lows, highs = [low for low, _ in ends], [high for _, high in ends]
    low, high = min(0.0, *lows), max(0.0, *highs)
    average = _moving_average(lows), _moving_average(highs)
    counts = torch.zeros(BINS, dtype=torch.float64)
    if high == low:
        return Histogram(low, low + 1.0, counts, average)
    stride = max(1, sum(b.numel() for b in batches) // limit)

    def count(batch: Tensor) -> Tensor:
        values = batch.flatten()[::stride]
        return torch.histc(values[values != 0], BINS, low, high).double()

    for part in each(count, batches):
        counts += part
    return Histogram(low, high, counts, average)


def _moving_average(values: Sequence[float]) -> float:
    average = values[0]
    for value in values[1:]:
        average = MOMENTUM * average + (1 - MOMENTUM) * value
    return average


def _percentile(share: float) -> Callable[[Histogram, QuantSpec], Range]:
    def of(seen: Histogram, spec: QuantSpec) -> Range:
        below = seen.counts.cumsum(0)
        total = float(below[-1])
        centers = seen.centers
        high = centers[int(torch.searchsorted(below, total * share).clamp(max=BINS - 1))]
        low = centers[int(torch.searchsorted(below, total * (1 - share)).clamp(max=BINS - 1))]
        return min(0.0, float(low)), max(0.0, float(high))

    return of


def _mse(seen: Histogram, spec: QuantSpec) -> Range:
    best = (seen.low, seen.high)
    shares = [1 - i / 64 for i in range(48)]
    for _ in range(2):
        ranges = [best, *_around(best, seen, shares)]
        ends = torch.tensor(ranges, dtype=torch.float64)
        errors = seen.errors(spec, spec.params(ends[:, :1], ends[:, 1:]))
        best = ranges[int(errors.argmin())]
    return best


def _around(best: Range, seen: Histogram, shares: Sequence[float]) -> list[Range]:
    lows = [(seen.low * s, best[1]) for s in shares] if seen.low < 0 else []
    highs = [(best[0], seen.high * s) for s in shares] if seen.high > 0 else []
    both = [(seen.low * s, seen.high * s) for s in shares]
    return both + highs + lows


def _entropy(seen: Histogram, spec: QuantSpec) -> Range:
    """Source: TensorRT's 8-bit inference talk (Migacz 2017); here ranges keep their asymmetry."""
    best, least = (seen.low, seen.high), float("inf")
    levels = spec.qmax - spec.qmin
    for share in [1 - i / 16 for i in range(12)]:
        low, high = seen.low * share, seen.high * share
        centers = seen.centers
        inside = (centers >= low) & (centers <= high)
        clipped = seen.counts * inside
        first, last = int(inside.nonzero()[0]), int(inside.nonzero()[-1])
        reference = clipped.clone()
        reference[first] += seen.counts[:first].sum()
        reference[last] += seen.counts[last + 1 :].sum()
        code = ((centers - low) / max(high - low, 1e-30) * levels).round().clamp(0, levels).long()
        used = (clipped > 0).double()
        mass = torch.zeros(levels + 1, dtype=torch.float64).index_add(0, code, clipped)
        bins = torch.zeros(levels + 1, dtype=torch.float64).index_add(0, code, used)
        spread = (mass / bins.clamp(min=1))[code] * used
        divergence = _divergence(reference, spread)
        if divergence < least:
            best, least = (low, high), divergence
    return best


def _divergence(p: Tensor, q: Tensor) -> float:
    p, q = p / p.sum().clamp(min=1e-30), q / q.sum().clamp(min=1e-30)
    both = (p > 0) & (q > 0)
    missing = float(p[(p > 0) & (q <= 0)].sum())
    return float((p[both] * (p[both] / q[both]).log()).sum()) + missing * 20


OBSERVERS: Mapping[str, Callable[[Histogram, QuantSpec], Range]] = {
    "min-max": lambda seen, spec: (seen.low, seen.high),
    "moving-average": lambda seen, spec: seen.average,
    "percentile-99.999": _percentile(0.99999),
    "percentile-99.99": _percentile(0.9999),
    "mse": _mse,
    "entropy": _entropy,
}


@dataclass(frozen=True)
class Choice:
    """The range that was chosen for one tensor.

    Args:
        observer: Whose proposal it is.
        params: Scale and zero point.
        error: Its mean squared error.
        errors: Those of all observers.
    """

    observer: str
    params: QuantParams
    error: float
    errors: Mapping[str, float] = field(default_factory=dict)


def choose(
    seen: Histogram,
    spec: QuantSpec,
    measure: Measure | None = None,
) -> Choice:
    """Return the proposal with the least error; of equal ones the first in ``OBSERVERS``.

    Args:
        seen: The values.
        spec: The format, per tensor.
        measure: Error of a proposal; by default the mean squared error of the tensor itself.
    """
    error = measure or (lambda params, enough: seen.error(spec, params))
    proposals = {name: propose(seen, spec) for name, propose in OBSERVERS.items()}
    params = {
        name: spec.params(torch.tensor(low), torch.tensor(high))
        for name, (low, high) in proposals.items()
    }
    errors = {name: error(p, math.inf) for name, p in params.items()}
    best = min(errors, key=lambda name: errors[name])
    choice = Choice(best, params[best], errors[best], errors)
    return choice if measure is None else _search(choice, proposals[best], spec, measure)


def _search(choice: Choice, around: Range, spec: QuantSpec, measure: Measure) -> Choice:
    """Move one end of the range at a time to where the measured error is least."""
    for steps in STEPS:
        for end in (0, 1):
            base = around[end]
            for moved in [base * step for step in steps] if base else []:
                low, high = (moved, around[1]) if end == 0 else (around[0], moved)
                params = spec.params(torch.tensor(low), torch.tensor(high))
                if (error := measure(params, choice.error)) < choice.error:
                    errors = {**choice.errors, "search": error}
                    choice, around = Choice("search", params, error, errors), (low, high)
    return choice
