"""GPTQ: round a weight column by column, each time spreading the error over the columns to come.

For a layer y = W x with inputs X, H = X^T X; ``feedback.py`` has the recursion. The scales are fixed
beforehand, those of groups too. Convolutions are unfolded; each group of a grouped one has its own H,
so a depthwise layer costs a 9 x 9 problem a channel.

``gptaq`` first moves the weight to where it makes the float layer's output from the *quantized* input:
with X the quantized and F the float input, W <- W + W (F - X)^T X (H + damping)^-1. Rounding noise is
white while activations are not, so this filters part of it out.

Source: Frantar et al. 2022 (https://arxiv.org/abs/2210.17323), algorithm 1; Li et al. 2025, GPTAQ
(https://arxiv.org/abs/2504.02692), for the asymmetric target; damping as in FORMATS B.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from qcompile.compiler.ir.quant import QuantParams, QuantSpec
from qcompile.passes.calibration.parallel import total
from qcompile.passes.quantization.feedback import BLOCK, round_columns
from qcompile.passes.quantization.layer import Layer
from qcompile.passes.quantization.rounding import Rounded

DAMPING = 0.01
DRIFT_DAMPING = 0.1
"""Of the mean of H, when the weight moves: the drift is noise for the most part, and must not be fitted."""
ROWS = 1 << 15
"""Rows of the unfolded input that are enough for H; more are taken evenly spaced."""


MAX_COLUMNS = 4096
"""A wider layer is rounded to nearest: its moments would take gigabytes."""


@dataclass(frozen=True)
class Moments:
    """Second moments of a layer's unfolded inputs, float64 ``[groups, columns, columns]``.

    Args:
        hessian: ``X^T X`` of the quantized input.
        drift: ``(F - X)^T X``, what the float input has that the quantized one lacks.
    """

    hessian: Tensor
    drift: Tensor

    @cached_property
    def upper(self) -> Tensor:
        """The upper Cholesky factor of the inverse of H with damping."""
        lower: Tensor = torch.linalg.cholesky_ex(_damped_inverse(self.hessian, DAMPING))[0]
        return lower.transpose(1, 2)


def moments(layer: Layer, inputs: Sequence[tuple[Tensor, Tensor]]) -> Moments:
    """Return the moments over batches of (float, quantized) inputs."""

    def of(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        exact, rows = (unfold(layer, x) for x in pair)
        stride = max(1, rows.shape[1] * len(inputs) // ROWS)
        exact, rows = exact[:, ::stride], rows[:, ::stride]
        transposed = rows.transpose(1, 2)
        return (transposed @ rows).double(), ((exact - rows).transpose(1, 2) @ rows).double()

    hessian, drift = total(of, inputs)
    return Moments(hessian, drift)


def gptq(layer: Layer, spec: QuantSpec, params: QuantParams, seen: Moments) -> Rounded:
    """Return the weight rounded with error feedback.

    Args:
        layer: A 1-d or 2-d convolution or a linear layer.
        spec: Format of the codes.
        params: Scales.
        seen: Of the layer's inputs.
    """
    return _round_columns(layer, spec, params, as_matrix(layer), seen.upper, "gptq")


def gptaq(layer: Layer, spec: QuantSpec, params: QuantParams, seen: Moments) -> Rounded:
    """Return the weight moved to the float output, then rounded with error feedback."""
    return _round_columns(layer, spec, params, moved_matrix(layer, seen), seen.upper, "gptaq")


def as_matrix(layer: Layer) -> Tensor:
    """Return the weight as float64 ``[groups, out / groups, columns]``."""
    return layer.weight.reshape(layer.groups, layer.weight.shape[0] // layer.groups, -1).double()


def moved_matrix(layer: Layer, seen: Moments) -> Tensor:
    """Return the weight that makes the float output from the quantized input, as a matrix."""
    matrix = as_matrix(layer)
    return matrix + matrix @ seen.drift @ _damped_inverse(seen.hessian, DRIFT_DAMPING)


def as_grid(layer: Layer, spec: QuantSpec, params: QuantParams) -> tuple[Tensor, Tensor]:
    """Return scales and zero points, float64 ``[groups, out / groups, columns]``, or 1 column for all."""
    rows = layer.groups, layer.weight.shape[0] // layer.groups
    values = params.scale, params.zero_point
    if spec.group_size is not None:
        spread = spec.expanded(params, layer.weight)
        values = spread.scale, spread.zero_point
    scale, zero_point = (_broadcast(v, layer.weight).reshape(*rows, -1).double() for v in values)
    return scale, zero_point


def _broadcast(value: Tensor, weight: Tensor) -> Tensor:
    """Return one value a row, or one an element where a row has several."""
    if value.numel() in (1, weight.shape[0]):
        return value.flatten().expand(weight.shape[0])
    return value.expand(weight.shape)


def _round_columns(
    layer: Layer, spec: QuantSpec, params: QuantParams, matrix: Tensor, upper: Tensor, name: str
) -> Rounded:
    scales, zero_points = as_grid(layer, spec, params)

    def nearest(column: int, current: Tensor) -> tuple[Tensor, Tensor]:
        at = column if scales.shape[2] > 1 else 0
        scale, zero_point = scales[:, :, at], zero_points[:, :, at]
        code = ((current / scale).round() + zero_point).clamp(spec.qmin, spec.qmax)
        return code, spec.rounded((code - zero_point) * scale)

    codes = round_columns(matrix, upper, nearest, BLOCK if spec.is_blockwise else None)
    return Rounded(spec, codes.reshape(layer.weight.shape).to(spec.dtype), params, name)


def _damped_inverse(h: Tensor, damping: float) -> Tensor:
    """Return the inverse of H plus damping, which grows until a Cholesky factor exists."""
    mean = h.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12)
    identity = torch.eye(h.shape[1], dtype=h.dtype)
    while True:
        lower, failed = torch.linalg.cholesky_ex(h + (damping * mean)[:, None, None] * identity)
        if not bool(failed.any()):
            return torch.cholesky_inverse(lower)
        damping *= 10


def unfold(layer: Layer, x: Tensor) -> Tensor:
    """Return the inputs that each output position reads, ``[groups, positions, columns]``."""
    if not layer.is_convolution:
        return x.reshape(1, -1, x.shape[-1])
    args = [*layer.node.args[3:], *[[1], [0], [1], 1][max(0, len(layer.node.args) - 3) :]]
    stride, padding, dilation = (_pair(a, layer.weight.dim() - 2) for a in args[:3])
    kernel = list(layer.weight.shape[2:])
    if len(kernel) == 1:
        x, kernel = x.unsqueeze(2), [1, *kernel]
        stride, padding, dilation = [1, *stride], [0, *padding], [1, *dilation]
    sizes = [tuple(size) for size in (kernel, dilation, padding, stride)]
    patches = functional.unfold(x, *sizes)
    batch, _, positions = patches.shape
    grouped = patches.reshape(batch, layer.groups, -1, positions)
    return grouped.permute(1, 0, 3, 2).reshape(layer.groups, batch * positions, -1)


def _pair(value: Any, rank: int) -> list[int]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    return [int(v) for v in (values if len(values) == rank else values * rank)]
