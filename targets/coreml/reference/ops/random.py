"""Random numbers. Source of the distributions: coremltools' op definitions, random.py.

Core ML's generator is not published, so the values are others than on a device: only the distribution is
the same, and that a seed gives the same values on every run. Without a seed nothing can be reproduced, so
such an op is refused.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.limits import bounded
from qcompile.targets.coreml.reference.registry import op

Scalar = Tensor | float
MAX_CATEGORIES = 1 << 24
"""What ``torch.multinomial`` can draw from."""


@op("random_uniform")
def random_uniform(
    shape: Tensor, low: Scalar = 0.0, high: Scalar = 1.0, seed: Tensor | int = -1
) -> Tensor:
    """Values of ``[low, high)``; the rounding to float16 may reach ``high``."""
    drawn = torch.rand(_sizes(shape), generator=_generator(seed))
    return drawn * (float(high) - float(low)) + float(low)


@op("random_normal")
def random_normal(
    shape: Tensor, mean: Scalar = 0.0, stddev: Scalar = 1.0, seed: Tensor | int = -1
) -> Tensor:
    """Values of a normal distribution."""
    return torch.randn(_sizes(shape), generator=_generator(seed)) * float(stddev) + float(mean)


@op("random_bernoulli")
def random_bernoulli(shape: Tensor, prob: Scalar = 0.5, seed: Tensor | int = -1) -> Tensor:
    """1 with the probability ``prob``, else 0."""
    if not 0 <= float(prob) <= 1:
        raise ExecutionError(f"random_bernoulli has the probability {float(prob)}")
    return (torch.rand(_sizes(shape), generator=_generator(seed)) < float(prob)).float()


@op("random_categorical")
def random_categorical(
    x: Tensor, mode: str = "logits", size: Tensor | int = 1, seed: Tensor | int = -1
) -> Tensor:
    """Draw ``size`` indices, with replacement, for each row of logits or probabilities.

    Raises:
        ExecutionError: ``mode`` is unknown, or a row has no valid probabilities.
    """
    if mode not in ("logits", "probs"):
        raise ExecutionError(f"random_categorical has no mode {mode!r}")
    count = bounded([*x.shape[:-1], int(size)], torch.int64)[-1]
    weights = torch.softmax(x, -1) if mode == "logits" else x
    rows = weights.reshape(-1, x.shape[-1])
    if not 1 <= rows.shape[1] <= MAX_CATEGORIES or count < 1:
        raise ExecutionError(f"random_categorical draws {count} of {rows.shape[1]} categories")
    if not bool(((rows >= 0) & rows.isfinite()).all() and (rows.sum(1) > 0).all()):
        raise ExecutionError("random_categorical has a row that is no distribution")
    drawn = torch.multinomial(rows, count, True, generator=_generator(seed))
    return drawn.reshape(*x.shape[:-1], count).float()


def _sizes(shape: Tensor) -> tuple[int, ...]:
    return bounded(shape.tolist(), torch.float32)


def _generator(seed: Tensor | int) -> torch.Generator:
    if int(seed) < 0:
        raise ExecutionError("random values without a seed (-1) cannot be reproduced")
    return torch.Generator().manual_seed(int(seed))
