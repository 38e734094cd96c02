"""From a float weight to codes: scales by importance-weighted clip search, then rounding to nearest.

Every method here and beside has one shape: float weight and what is known of its input, to codes and
scales. A method other than rounding to nearest is kept only where it has the lower error on its own
layer's output.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qcompile.compiler.ir.quant import Granularity, QuantParams, QuantSpec

CLIPS = tuple(1 - i / 80 for i in range(33))
"""Shares of the largest magnitude that the search tries, 1 down to 0.6."""


@dataclass(frozen=True)
class Rounded:
    """A weight in integers.

    Args:
        codes: Shape of the weight, the spec's dtype.
        params: Broadcast against the weight.
        method: How it was rounded.
    """

    codes: Tensor
    params: QuantParams
    method: str


def clip_search(weight: Tensor, spec: QuantSpec, importance: Tensor) -> QuantParams:
    """Return the scales with the least importance-weighted squared error (FORMATS B.0).

    Args:
        weight: ``[out, in / groups, ...]``.
        spec: Per tensor, or per channel along axis 0.
        importance: ``E[x**2]`` of what each weight is multiplied by; broadcasts against the weight.
    """
    full = spec.min_max(weight)
    best, least = full.scale, torch.full_like(full.scale, torch.inf)
    per_tensor = spec.granularity is Granularity.PER_TENSOR
    dims = [d for d in range(weight.dim()) if per_tensor or d != spec.axis]
    for clip in CLIPS:
        params = QuantParams(full.scale * clip, full.zero_point)
        error = (weight - spec.fake_quantize(weight, params)).square() * importance
        total = error.sum(dims, keepdim=not per_tensor)
        better = total < least
        best, least = torch.where(better, params.scale, best), torch.where(better, total, least)
    return QuantParams(best, full.zero_point)


def round_to_nearest(weight: Tensor, spec: QuantSpec, importance: Tensor) -> Rounded:
    """Return the weight rounded to nearest with searched scales."""
    params = clip_search(weight, spec, importance)
    return Rounded(spec.encode(weight, params), params, "nearest")
