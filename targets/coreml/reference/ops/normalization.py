"""Normalizations. Source of the formulas: coremltools' op definitions, normalization.py."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.registry import op

Scalar = Tensor | float


@op("batch_norm")
def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Scalar = 1e-5,
) -> Tensor:
    """``gamma * (x - mean) / sqrt(variance + epsilon) + beta`` by channel, ``[N, C, ...]``."""
    _check_channels("batch_norm", x, mean, variance, gamma, beta)
    return F.batch_norm(x, mean, variance, gamma, beta, eps=float(epsilon))


@op("instance_norm")
def instance_norm(
    x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: Scalar = 1e-5
) -> Tensor:
    """``batch_norm`` with the mean and the (biased) variance of each image and channel.

    That is a group norm with a group for each channel; torch's own refuses images of one pixel.
    """
    _check_channels("instance_norm", x, gamma, beta)
    return torch.group_norm(x, x.shape[1], gamma, beta, float(epsilon), False)


@op("layer_norm")
def layer_norm(
    x: Tensor,
    axes: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Scalar = 1e-5,
) -> Tensor:
    """``gamma * (x - mean) / sqrt(variance + epsilon) + beta``, mean and variance over ``axes``.

    ``gamma`` and ``beta`` have the sizes of these axes, in the order of the dimensions.
    """
    dims = _normalized_dims(x, axes)
    sizes = [x.shape[d] for d in dims]
    if any(p is not None and list(p.shape) != sizes for p in (gamma, beta)):
        raise ExecutionError(f"layer_norm over axes of {sizes} has a parameter of another shape")
    if dims == list(range(x.ndim - len(dims), x.ndim)):
        return F.layer_norm(x, sizes, gamma, beta, float(epsilon))
    variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    normalized = (x - mean) * torch.rsqrt(variance + float(epsilon))
    along = [x.shape[d] if d in dims else 1 for d in range(x.ndim)]
    if gamma is not None:
        normalized = normalized * gamma.reshape(along)
    return normalized if beta is None else normalized + beta.reshape(along)


def _normalized_dims(x: Tensor, axes: Tensor | None) -> list[int]:
    given = list(range(x.ndim)) if axes is None else axes.tolist()
    if not given or any(not -x.ndim <= a < x.ndim for a in given):
        raise ExecutionError(f"layer_norm has axes {given}, but there are {x.ndim} dimensions")
    return sorted({a % x.ndim for a in given})


@op("l2_norm")
def l2_norm(x: Tensor, epsilon: Scalar = 1e-6) -> Tensor:
    """``x / sqrt(sum(x^2) + epsilon)`` over the last three dimensions."""
    if x.ndim < 3:
        raise ExecutionError(f"l2_norm needs three dimensions, not {x.ndim}")
    squares = torch.sum(torch.square(x), (-3, -2, -1), keepdim=True)
    return x / torch.sqrt(squares + float(epsilon))


@op("local_response_norm")
def local_response_norm(
    x: Tensor, size: Tensor, alpha: Scalar = 1e-4, beta: Scalar = 0.75, k: Scalar = 1.0
) -> Tensor:
    """``x / (k + alpha / size * sum(x_j^2))^beta``, the sum over ``size`` channels around each.

    Of an even number the additional channel lies before, as in PyTorch; MIL leaves that open.
    """
    count = int(size)
    if count < 1 or x.ndim < 3:
        raise ExecutionError(f"local_response_norm over {count} channels of {list(x.shape)}")
    if (
        count // 2 >= x.shape[1]
    ):  # torch pads by the size: a window beyond all channels is all of them
        sums = torch.sum(torch.square(x), 1, keepdim=True)
        return x / (sums * (float(alpha) / count) + float(k)) ** float(beta)
    return F.local_response_norm(x, count, float(alpha), float(beta), float(k))


def _check_channels(name: str, x: Tensor, *vectors: Tensor | None) -> None:
    if x.ndim < 2 or any(v is not None and v.shape != x.shape[1:2] for v in vectors):
        raise ExecutionError(f"{name} of {list(x.shape)} has a parameter of another size")
