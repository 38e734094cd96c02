"""Layers in float32 that ``kernels/float_*.py`` compute, images channels last; here in PyTorch, exactly.

Weights are float32, or codes of 8 or 4 bits with a scale for each feature, or for each group of a feature's
input channels. Results are limited to ``low`` and ``high``, which a layer's activation function gives.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

from qcompile.compiler.ir.storage import spread


def decoded(weight: Tensor, scale: Tensor | None) -> Tensor:
    """Return float32 weights ``[out, in, ...]``.

    Args:
        weight: As they are, or int8 codes.
        scale: ``[out]``, or ``[out, groups]`` of the input channels.
    """
    if scale is None:
        return weight
    blocks = scale.reshape(*scale.shape, *[1] * (weight.dim() - scale.dim()))
    return weight.float() * spread(blocks, tuple(weight.shape))


@torch.library.custom_op("qcompile::float_conv2d", mutates_args=())
def float_conv2d(
    x: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor | None, stride: list[int],
    padding: list[int], groups: int, bits: int, low: float, high: float,
) -> Tensor:  # fmt: skip
    """Return a convolution.

    Args:
        x: ``[batch, height, width, in]``.
        weight: ``[out, in / groups, height, width]``.
        scale: See ``decoded``.
        bias: ``[out]``.
        stride: Of both axes.
        padding: Of both axes, with zeros.
        groups: 1, or the number of channels.
        bits: Of a stored weight: 32, 8, 4.
        low: The least result.
        high: The greatest.

    Returns:
        ``[batch, height, width, out]``.
    """
    image, kernel = x.permute(0, 3, 1, 2), decoded(weight, scale)
    found = functional.conv2d(image, kernel, bias, stride, padding, 1, groups)
    return found.clamp(low, high).permute(0, 2, 3, 1).contiguous()


@float_conv2d.register_fake
def _(
    x: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor | None, stride: list[int],
    padding: list[int], groups: int, bits: int, low: float, high: float,
) -> Tensor:  # fmt: skip
    size = [
        (x.shape[i + 1] + 2 * padding[i] - weight.shape[i + 2]) // stride[i] + 1 for i in (0, 1)
    ]
    return x.new_empty((x.shape[0], *size, weight.shape[0]))


@torch.library.custom_op("qcompile::float_linear", mutates_args=())
def float_linear(
    x: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor | None,
    bits: int, low: float, high: float,
) -> Tensor:  # fmt: skip
    """Return the product of ``[..., in]`` and weights ``[out, in]``; see ``float_conv2d``."""
    return functional.linear(x, decoded(weight, scale), bias).clamp(low, high)


@float_linear.register_fake
def _(
    x: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor | None,
    bits: int, low: float, high: float,
) -> Tensor:  # fmt: skip
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@torch.library.custom_op("qcompile::float_add", mutates_args=())
def float_add(a: Tensor, b: Tensor, low: float, high: float) -> Tensor:
    """Return the sum of values of one shape, within limits."""
    return (a + b).clamp(low, high)


@float_add.register_fake
def _(a: Tensor, b: Tensor, low: float, high: float) -> Tensor:
    return torch.empty_like(a)


@torch.library.custom_op("qcompile::float_global_average", mutates_args=())
def float_global_average(x: Tensor) -> Tensor:
    """Return the means ``[batch, 1, 1, channels]`` of ``[batch, height, width, channels]``."""
    return x.mean((1, 2), keepdim=True)


@float_global_average.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], 1, 1, x.shape[3]))


@torch.library.custom_op("qcompile::float_max_pool2d", mutates_args=())
def float_max_pool2d(x: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """Return the greatest value of each window of ``[batch, height, width, channels]``."""
    found = functional.max_pool2d(x.permute(0, 3, 1, 2), kernel, stride, padding)
    return found.permute(0, 2, 3, 1).contiguous()


@float_max_pool2d.register_fake
def _(x: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    size = [(x.shape[i + 1] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in (0, 1)]
    return x.new_empty((x.shape[0], *size, x.shape[3]))


CONV = torch.ops.qcompile.float_conv2d.default
LINEAR = torch.ops.qcompile.float_linear.default
ADD = torch.ops.qcompile.float_add.default
GLOBAL_AVERAGE = torch.ops.qcompile.float_global_average.default
MAX_POOL = torch.ops.qcompile.float_max_pool2d.default
