"""``quantize`` and ``dequantize`` of iOS 17. Source: coremltools' op definitions, quantization_ops.py.

Scale and zero point are scalars, or vectors along ``axis``. The arithmetic is float32 also in float16
programs. coremltools' own folding divides in float16 there, so a code may differ by one where the quotient
lies closer to a half than float16 can tell.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.registry import op

_CODES = {"int8": torch.int8, "uint8": torch.uint8}


@op("quantize")
def quantize(
    input: Tensor,
    scale: Tensor,
    output_dtype: str,
    zero_point: Tensor | None = None,
    axis: Tensor | None = None,
) -> Tensor:
    """``clip(round(input / scale) + zero_point)``, half to even; NaN becomes 0.

    Raises:
        ExecutionError: The type is no type of codes, or the parameters do not fit.
    """
    if output_dtype not in _CODES:
        raise ExecutionError(f"quantize makes int8 or uint8, not {output_dtype}")
    kind = _CODES[output_dtype]
    limits = torch.iinfo(kind)
    codes = torch.div(input, along(scale, axis, input)).round_()
    if zero_point is not None:
        codes += along(zero_point, axis, input)
    return codes.clamp_(limits.min, limits.max).nan_to_num_(0.0).to(kind)


@op("dequantize")
def dequantize(
    input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: Tensor | None = None
) -> Tensor:
    """``scale * (input - zero_point)``."""
    values = input.to(torch.float32, copy=True)
    if zero_point is not None:
        values -= along(zero_point, axis, input)
    return values.mul_(along(scale, axis, input))


def along(parameter: Tensor, axis: Tensor | None, data: Tensor) -> Tensor:
    """Return a scalar or a vector as float32, in a shape that goes along ``axis`` of ``data``.

    Raises:
        ExecutionError: It is a vector without an axis, or of another size than this axis.
    """
    if parameter.ndim == 0:
        return parameter.float()
    where = None if axis is None else int(axis)
    if parameter.ndim != 1 or where is None or not -data.ndim <= where < data.ndim:
        shape = list(parameter.shape)
        raise ExecutionError(f"a scale or zero point of {shape} has the axis {where}")
    if len(parameter) != data.shape[where]:
        sizes = f"{len(parameter)} scales or zero points for {data.shape[where]} channels"
        raise ExecutionError(f"there are {sizes}")
    return parameter.float().view(-1, *[1] * (data.ndim - 1 - where % data.ndim))
