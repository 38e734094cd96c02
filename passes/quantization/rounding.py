"""From a float weight to codes: scales by importance-weighted clip search, then rounding to nearest.

Every method here and beside has one shape: float weight and what is known of its input, to codes and
scales. A method other than rounding to nearest is kept only where it has the lower error on its own
layer's output.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompile.compiler.ir.palette import PaletteParams, PaletteSpec
from qcompile.compiler.ir.quant import Granularity, QuantParams, QuantSpec

CLIPS = tuple(1 - i / 80 for i in range(33))
"""Shares of the largest magnitude that the search tries, 1 down to 0.6."""


@dataclass(frozen=True)
class Rounded:
    """A weight in integers.

    Args:
        spec: Their format.
        codes: Shape of the weight, the spec's dtype.
        params: Scales and zero points.
        method: How it was rounded.
    """

    spec: QuantSpec
    codes: Tensor
    params: QuantParams
    method: str

    @property
    def decoded(self) -> Tensor:
        """The real values, float32."""
        return self.spec.decode(self.codes, self.params)


@dataclass(frozen=True)
class Palettized:
    """A weight in indices into tables.

    Args:
        spec: Their format.
        codes: Shape of the weight, uint8.
        params: Tables and scales.
        method: How indices were chosen.
    """

    spec: PaletteSpec
    codes: Tensor
    params: PaletteParams
    method: str

    @property
    def decoded(self) -> Tensor:
        """The real values, float32."""
        return self.spec.decode(self.codes, self.params)


Coded = Rounded | Palettized


def clip_search(weight: Tensor, spec: QuantSpec, importance: Tensor) -> QuantParams:
    """Return the scales with the least importance-weighted squared error (FORMATS B.0).

    Symmetric ranges shrink by ``CLIPS``. Asymmetric ones do too, and then each end alone.

    Args:
        weight: ``[out, in / groups, ...]``.
        spec: Per tensor, per channel, or per group.
        importance: ``E[x**2]`` of what each weight is multiplied by; broadcasts against the weight.
    """
    full = spec.min_max(weight)
    if spec.symmetric:
        shrunk = (QuantParams(spec.storable(full.scale * c), full.zero_point) for c in CLIPS)
        return _least(weight, spec, importance, shrunk)
    low, high = _ends(spec, full)
    best = _least(weight, spec, importance, (spec.params(low * c, high * c) for c in CLIPS))
    low, high = _ends(spec, best)
    lows = (spec.params(low * c, high) for c in CLIPS)
    best = _least(weight, spec, importance, (best, *lows))
    low, high = _ends(spec, best)
    highs = (spec.params(low, high * c) for c in CLIPS)
    return _least(weight, spec, importance, (best, *highs))


def round_to_nearest(weight: Tensor, spec: QuantSpec, importance: Tensor) -> Rounded:
    """Return the weight rounded to nearest with searched scales."""
    params = clip_search(weight, spec, importance)
    return Rounded(spec, spec.encode(weight, params), params, "nearest")


def _least(
    weight: Tensor, spec: QuantSpec, importance: Tensor, candidates: Iterable[QuantParams]
) -> QuantParams:
    """Return for each scale the candidate with the least error; of equals the first."""
    best: QuantParams | None = None
    least = torch.tensor(torch.inf)
    for params in candidates:
        error = (weight - spec.fake_quantize(weight, params)).square() * importance
        total = _sums(error, spec)
        if best is None:
            best, least = params, total
            continue
        better = total < least
        scale = torch.where(better, params.scale, best.scale)
        zero_point = torch.where(better, params.zero_point, best.zero_point)
        best, least = QuantParams(scale, zero_point), torch.where(better, total, least)
    assert best is not None
    return best


def _sums(error: Tensor, spec: QuantSpec) -> Tensor:
    """Return the sum of the errors of what shares a scale, in the shape of the scales."""
    if spec.granularity is Granularity.PER_TENSOR:
        return error.sum(list(range(error.dim())))
    assert spec.axis is not None
    axis = spec.axis % error.dim()
    if spec.group_size is None:
        return error.sum([d for d in range(error.dim()) if d != axis], keepdim=True)
    if axis < 2 < error.dim():
        error = error.sum(list(range(2, error.dim())), keepdim=True)
    missing = -error.shape[axis] % spec.group_size
    padded = torch.nn.functional.pad(error, [0, 0] * (error.dim() - 1 - axis) + [0, missing])
    groups: Tensor = padded.unflatten(axis, (-1, spec.group_size))
    return groups.sum(axis + 1)


def _ends(spec: QuantSpec, params: QuantParams) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest value that the codes reach."""
    scale = params.scale.double()
    return (spec.qmin - params.zero_point) * scale, (spec.qmax - params.zero_point) * scale
