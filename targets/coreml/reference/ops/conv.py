"""Convolutions. Source of the formulas: coremltools' op definitions, conv.py."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.limits import bounded
from qcompile.targets.coreml.reference.ops.windows import (
    Pads,
    integers,
    is_symmetric,
    padded,
    pads_of,
    steps_of,
)
from qcompile.targets.coreml.reference.registry import op


@op("conv")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Tensor | None = None,
    pad_type: str = "valid",
    pad: Tensor | None = None,
    dilations: Tensor | None = None,
    groups: Tensor | int = 1,
) -> Tensor:
    """Convolution of ``[n, c_in, ...]`` with ``[c_out, c_in / groups, ...]``, 1-D to 3-D."""
    rank = x.ndim - 2
    stride, dilation = steps_of(strides, "strides", rank), steps_of(dilations, "dilations", rank)
    kernel = _dilated(weight, dilation)
    pads = pads_of(pad_type, pad, x.shape[2:], kernel, stride)
    before = [pair[0] for pair in pads]
    if is_symmetric(pads):
        bounded(
            [*x.shape[:2], *(n + 2 * p for n, p in zip(x.shape[2:], before, strict=True))], x.dtype
        )
    else:
        x, before = padded(x, pads), [0] * rank
    return torch.convolution(
        x, weight, bias, stride, before, dilation, False, [0] * rank, int(groups)
    )


@op("conv_quantized")
def conv_quantized(
    x: Tensor,
    weight: Tensor,
    quantization_type: str,
    quant_scale: Tensor,
    quant_bias: Tensor,
    bias: Tensor | None = None,
    nbits: Tensor | int = 8,
    **attributes: Tensor | str,
) -> Tensor:
    """``conv`` with ``weight * quant_scale + quant_bias``; ``bias`` is added as it stands.

    Scale and bias of the quantization have one element, or one for each output channel. The type
    ``lut`` is documented too, but the op has no input for its table.

    Raises:
        ExecutionError: The type is not ``linear``, or a code has more than ``nbits`` bits.
    """
    if quantization_type.lower() != "linear":
        raise ExecutionError(
            f"quantization_type {quantization_type!r} cannot be computed, as the op has no input "
            "for a table; only 'linear' can"
        )
    if not 1 <= int(nbits) <= 8 or int(weight.max()) >= 1 << int(nbits):
        raise ExecutionError(f"the weight has codes up to {int(weight.max())} in {int(nbits)} bits")
    by_channel = (-1, *[1] * (weight.ndim - 1))
    wide = weight.float() * quant_scale.reshape(by_channel) + quant_bias.reshape(by_channel)
    plain = None if bias is None else bias.float()
    return conv(x, wide, plain, **attributes)  # type: ignore[arg-type]


@op("conv_transpose")
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: Tensor | None = None,
    output_shape: Tensor | None = None,
    pad_type: str = "valid",
    strides: Tensor | None = None,
    dilations: Tensor | None = None,
    groups: Tensor | int = 1,
) -> Tensor:
    """Transposed convolution of ``[n, c_in, ...]`` with ``[c_in, c_out / groups, ...]``.

    It is the gradient of the ``conv`` that has these attributes and an input of the result's size:
    the padding of that ``conv`` is cut off. ``same`` without ``output_shape`` gives ``size * stride``.

    Raises:
        ExecutionError: ``output_shape`` is none that this ``conv`` maps to the size of ``x``.
    """
    rank = x.ndim - 2
    stride, dilation = steps_of(strides, "strides", rank), steps_of(dilations, "dilations", rank)
    kernel = _dilated(weight, dilation)
    sizes = zip(x.shape[2:], stride, kernel, strict=True)
    full = [(size - 1) * step + window for size, step, window in sizes]
    channels = weight.shape[1] * int(groups)
    bounded([x.shape[0], channels, *full], x.dtype)
    wanted = _wanted_sizes(x, channels, output_shape, pad_type, stride)
    pads = _cuts(pad_type, pad, full, wanted, kernel, stride)
    plan = _Transposed(stride, dilation, int(groups))
    if is_symmetric(pads):
        return plan.run(x, weight, bias, [pair[0] for pair in pads], [0] * rank)
    extra = [max(0, -after) for _, after in pads]
    if any(e >= max(s, d) for e, s, d in zip(extra, stride, dilation, strict=True)):
        raise ExecutionError(f"no conv maps spatial sizes {wanted} to {list(x.shape[2:])}")
    found = plan.run(x, weight, bias, [0] * rank, extra)
    for axis, (before, after) in enumerate(pads):
        size = full[axis] - before - after
        found = found.narrow(2 + axis, before, size)
    return found


@dataclass(frozen=True)
class _Transposed:
    strides: list[int]
    dilations: list[int]
    groups: int

    def run(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, cut: list[int], extra: list[int]
    ) -> Tensor:
        return torch.convolution(
            x, weight, bias, self.strides, cut, self.dilations, True, extra, self.groups
        )


def _wanted_sizes(
    x: Tensor, channels: int, output_shape: Tensor | None, pad_type: str, strides: list[int]
) -> list[int] | None:
    """Return the result's spatial sizes where the program says them."""
    if output_shape is not None:
        found = integers(output_shape, 0, x.ndim)
        if found[:2] != [x.shape[0], channels] or min(found) < 1:
            raise ExecutionError(f"output_shape {found} is not [{x.shape[0]}, {channels}, ...]")
        return found[2:]
    if pad_type.lower() == "same":
        return [size * step for size, step in zip(x.shape[2:], strides, strict=True)]
    return None


def _cuts(
    pad_type: str,
    pad: Tensor | None,
    full: list[int],
    wanted: list[int] | None,
    kernel: list[int],
    strides: list[int],
) -> Pads:
    """Return what to cut off the full result; a negative number means that it is too short."""
    if pad_type.lower() == "same_lower":
        raise ExecutionError("conv_transpose has no pad_type 'same_lower'")
    pads = pads_of(pad_type, pad, wanted or full, kernel, strides)
    if wanted is None:
        return pads
    return [
        (before, size - before - target)
        for size, (before, _), target in zip(full, pads, wanted, strict=True)
    ]


def _dilated(weight: Tensor, dilations: list[int]) -> list[int]:
    return [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
