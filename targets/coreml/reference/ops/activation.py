"""Activations. Source of the formulas: coremltools' op definitions, activation.py."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.registry import op

_GELUS = {"EXACT": "none", "TANH_APPROXIMATION": "tanh"}
"""MIL's name -> torch's."""


@op("relu")
def relu(x: Tensor) -> Tensor:
    """``max(x, 0)``."""
    return torch.relu(x)


@op("relu6")
def relu6(x: Tensor) -> Tensor:
    """``min(max(x, 0), 6)``."""
    return torch.clamp(x, 0, 6)


@op("leaky_relu")
def leaky_relu(x: Tensor, alpha: Tensor) -> Tensor:
    """``x`` where it is not negative, ``alpha * x`` elsewhere."""
    return F.leaky_relu(x, float(alpha))


@op("clamped_relu")
def clamped_relu(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """``leaky_relu``, at most ``beta``."""
    return F.leaky_relu(x, float(alpha)).clamp_(max=float(beta))


@op("thresholded_relu")
def thresholded_relu(x: Tensor, alpha: Tensor) -> Tensor:
    """``x`` where it is at least ``alpha``, 0 elsewhere."""
    return x.masked_fill(x < float(alpha), 0.0)


@op("prelu")
def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    """``leaky_relu`` with a slope for each channel, the second dimension."""
    return torch.where(x > 0, x, x * _of_channels(alpha, x, "prelu"))


@op("elu")
def elu(x: Tensor, alpha: Tensor) -> Tensor:
    """``x`` where it is positive, ``alpha * (e^x - 1)`` elsewhere."""
    return F.elu(x, float(alpha))


@op("gelu")
def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """The Gaussian error linear unit; of infinity infinite, of which torch's kernel makes NaN.

    Raises:
        ExecutionError: ``mode`` is unknown.
    """
    if mode in _GELUS:
        return torch.where(x == math.inf, x, F.gelu(x, approximate=_GELUS[mode]))
    if mode == "SIGMOID_APPROXIMATION":
        return torch.sigmoid(x * 1.702).mul_(x)
    raise ExecutionError(f"gelu has no mode {mode!r}")


@op("linear_activation")
def linear_activation(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """``alpha * x + beta``."""
    return x * float(alpha) + float(beta)


@op("scaled_tanh")
def scaled_tanh(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """``alpha * tanh(beta * x)``."""
    return torch.tanh(x * float(beta)) * float(alpha)


@op("sigmoid")
def sigmoid(x: Tensor) -> Tensor:
    """``1 / (1 + e^-x)``."""
    return torch.sigmoid(x)


@op("sigmoid_hard")
def sigmoid_hard(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """``min(max(alpha * x + beta, 0), 1)``."""
    return (x * float(alpha)).add_(float(beta)).clamp_(0, 1)


@op("silu")
def silu(x: Tensor) -> Tensor:
    """``x * sigmoid(x)``."""
    return F.silu(x)


@op("softplus")
def softplus(x: Tensor) -> Tensor:
    """``log(1 + e^x)``; above 20 that is ``x`` in float32."""
    return F.softplus(x)


@op("softplus_parametric")
def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """``alpha * log(1 + e^(beta * x))`` with ``alpha`` and ``beta`` of each channel."""
    slope = _of_channels(beta, x, "softplus_parametric")
    return F.softplus(x * slope) * _of_channels(alpha, x, "softplus_parametric")


@op("softsign")
def softsign(x: Tensor) -> Tensor:
    """``x / (1 + |x|)``."""
    return F.softsign(x)


@op("softmax")
def softmax(x: Tensor, axis: Tensor | int = -1) -> Tensor:
    """``e^x`` over its sum along ``axis``."""
    if not -x.ndim <= int(axis) < x.ndim:
        raise ExecutionError(f"softmax has axis {int(axis)}, but {x.ndim} dimensions")
    return torch.softmax(x, int(axis))


def _of_channels(vector: Tensor, x: Tensor, name: str) -> Tensor:
    """Return ``[C]`` in a shape that goes along the second dimension of ``x``."""
    if x.ndim < 2 or vector.shape != x.shape[1:2]:
        shapes = f"{list(vector.shape)} for channels of {list(x.shape)}"
        raise ExecutionError(f"{name} has a parameter of shape {shapes}")
    return vector.view(-1, *[1] * (x.ndim - 2))
