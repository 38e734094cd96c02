"""Ops on 8-bit codes, channels last, that ``kernels/`` computes; here in PyTorch, exactly.

Sums of products are integers. What follows is float32 as in the kernels: ``round(sum * multiplier +
offset)``, halves to even, limited to ``low`` and ``high``. With ``dtype`` "float32" values are returned
instead of codes, neither rounded nor limited.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

_DTYPES = {"uint8": torch.uint8, "int8": torch.int8, "float32": torch.float32}


def _requantize(
    sums: Tensor,
    multiplier: Tensor | float,
    offset: Tensor | float,
    low: int,
    high: int,
    dtype: str,
) -> Tensor:
    values = sums.float() * multiplier + offset
    if dtype == "float32":
        return values
    return values.round().clamp(low, high).to(_DTYPES[dtype])


@torch.library.custom_op("qcompile::integer_conv2d", mutates_args=())
def integer_conv2d(
    x: Tensor, weight: Tensor, multiplier: Tensor, offset: Tensor, stride: list[int], padding: list[int],
    groups: int, zero_point: int, low: int, high: int, dtype: str,
) -> Tensor:  # fmt: skip
    """Return a convolution of codes.

    Args:
        x: ``[batch, height, width, in]``, int8 or uint8.
        weight: ``[out, in / groups, height, width]``, int8, zero point 0.
        multiplier: float32 ``[out]``: the scales of input and weight over the output's.
        offset: float32 ``[out]``: the bias over the output's scale, and the output's zero point.
        stride: Of both axes.
        padding: Of both axes, with zeros, that is with ``zero_point``.
        groups: 1, or the number of channels.
        zero_point: Of ``x``.
        low: The least code of the output.
        high: The greatest.
        dtype: Of the output.

    Returns:
        ``[batch, height, width, out]``.
    """
    values = x.permute(0, 3, 1, 2).double() - zero_point
    sums = functional.conv2d(values, weight.double(), None, stride, padding, 1, groups)
    rows = sums.permute(0, 2, 3, 1)
    return _requantize(rows, multiplier, offset, low, high, dtype).contiguous()


@integer_conv2d.register_fake
def _(
    x: Tensor, weight: Tensor, multiplier: Tensor, offset: Tensor, stride: list[int], padding: list[int],
    groups: int, zero_point: int, low: int, high: int, dtype: str,
) -> Tensor:  # fmt: skip
    size = [
        (x.shape[i + 1] + 2 * padding[i] - weight.shape[i + 2]) // stride[i] + 1 for i in (0, 1)
    ]
    return x.new_empty((x.shape[0], *size, weight.shape[0]), dtype=_DTYPES[dtype])


@torch.library.custom_op("qcompile::integer_linear", mutates_args=())
def integer_linear(
    x: Tensor, weight: Tensor, multiplier: Tensor, offset: Tensor,
    zero_point: int, low: int, high: int, dtype: str,
) -> Tensor:  # fmt: skip
    """Return a product of codes ``[rows, in]`` and weights ``[out, in]``; see ``integer_conv2d``."""
    sums = (x.double() - zero_point) @ weight.double().T
    return _requantize(sums, multiplier, offset, low, high, dtype)


@integer_linear.register_fake
def _(
    x: Tensor, weight: Tensor, multiplier: Tensor, offset: Tensor,
    zero_point: int, low: int, high: int, dtype: str,
) -> Tensor:  # fmt: skip
    return x.new_empty((x.shape[0], weight.shape[0]), dtype=_DTYPES[dtype])


@torch.library.custom_op("qcompile::integer_add", mutates_args=())
def integer_add(
    a: Tensor,
    b: Tensor,
    scale_a: float,
    scale_b: float,
    offset: float,
    low: int,
    high: int,
    dtype: str,
) -> Tensor:
    """Return ``round(a * scale_a + b * scale_b + offset)`` of codes of one shape."""
    right = b.float() * torch.tensor(scale_b) + torch.tensor(offset)
    return _requantize(a.float() * torch.tensor(scale_a) + right, 1.0, 0.0, low, high, dtype)


@integer_add.register_fake
def _(
    a: Tensor,
    b: Tensor,
    scale_a: float,
    scale_b: float,
    offset: float,
    low: int,
    high: int,
    dtype: str,
) -> Tensor:
    return torch.empty_like(a, dtype=_DTYPES[dtype])


@torch.library.custom_op("qcompile::integer_table", mutates_args=())
def integer_table(x: Tensor, table: Tensor) -> Tensor:
    """Return ``table[x]``.

    Args:
        x: Codes, int8 or uint8.
        table: 256 codes, from the least ``x`` on.
    """
    first = -128 if x.dtype == torch.int8 else 0
    return table[x.long() - first]


@integer_table.register_fake
def _(x: Tensor, table: Tensor) -> Tensor:
    return torch.empty_like(x, dtype=table.dtype)


@torch.library.custom_op("qcompile::integer_global_average", mutates_args=())
def integer_global_average(
    x: Tensor, multiplier: float, offset: float, low: int, high: int, dtype: str
) -> Tensor:
    """Return ``round(sum * multiplier + offset)`` over height and width.

    Args:
        x: ``[batch, height, width, channels]``.
        multiplier: Quotient of the scales over the number of pixels.
        offset: What the zero points make.
        low: The least code of the output.
        high: The greatest.
        dtype: Of the output.

    Returns:
        ``[batch, 1, 1, channels]``.
    """
    sums = x.long().sum((1, 2), keepdim=True)
    return _requantize(sums, torch.tensor(multiplier), torch.tensor(offset), low, high, dtype)


@integer_global_average.register_fake
def _(x: Tensor, multiplier: float, offset: float, low: int, high: int, dtype: str) -> Tensor:
    return x.new_empty((x.shape[0], 1, 1, x.shape[3]), dtype=_DTYPES[dtype])


@torch.library.custom_op("qcompile::integer_max_pool2d", mutates_args=())
def integer_max_pool2d(
    x: Tensor, kernel: list[int], stride: list[int], padding: list[int], low: int, high: int
) -> Tensor:
    """Return the greatest code of each window of ``[batch, height, width, channels]``."""
    values = x.permute(0, 3, 1, 2).float()
    found = functional.max_pool2d(values, kernel, stride, padding)
    return found.clamp(low, high).permute(0, 2, 3, 1).to(x.dtype).contiguous()


@integer_max_pool2d.register_fake
def _(
    x: Tensor, kernel: list[int], stride: list[int], padding: list[int], low: int, high: int
) -> Tensor:
    size = [(x.shape[i + 1] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in (0, 1)]
    return x.new_empty((x.shape[0], *size, x.shape[3]))


@torch.library.custom_op("qcompile::quantize_channels_last", mutates_args=())
def quantize_channels_last(
    x: Tensor, scale: float, zero_point: int, low: int, high: int, dtype: str
) -> Tensor:
    """Return float32 ``[batch, channels, height, width]`` as codes ``[batch, height, width, channels]``."""
    codes = (x * torch.tensor(1 / scale)).round() + zero_point
    return codes.clamp(low, high).permute(0, 2, 3, 1).to(_DTYPES[dtype]).contiguous()


@quantize_channels_last.register_fake
def _(x: Tensor, scale: float, zero_point: int, low: int, high: int, dtype: str) -> Tensor:
    size = (x.shape[0], x.shape[2], x.shape[3], x.shape[1])
    return x.new_empty(size, dtype=_DTYPES[dtype])


CONV = torch.ops.qcompile.integer_conv2d.default
LINEAR = torch.ops.qcompile.integer_linear.default
ADD = torch.ops.qcompile.integer_add.default
TABLE = torch.ops.qcompile.integer_table.default
GLOBAL_AVERAGE = torch.ops.qcompile.integer_global_average.default
MAX_POOL = torch.ops.qcompile.integer_max_pool2d.default
QUANTIZE_CHANNELS_LAST = torch.ops.qcompile.quantize_channels_last.default
OPS = (CONV, LINEAR, ADD, TABLE, GLOBAL_AVERAGE, MAX_POOL, QUANTIZE_CHANNELS_LAST)
