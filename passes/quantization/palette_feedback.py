"""Indices with error feedback onto a fixed table, and tables fitted to indices.

GPTQ as for a grid: a column's weights take the nearest entries of their tables, the columns to come
take over the error. With the indices held, the output error is a quadratic form in the entries: the
table with the least error solves one small system of equations a table.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from qcompile.compiler.ir.palette import PaletteParams, nearest_entry
from qcompile.compiler.ir.storage import to_half
from qcompile.passes.quantization.feedback import BLOCK, round_columns
from qcompile.passes.quantization.gptq import DAMPING, Moments, as_matrix, moved_matrix
from qcompile.passes.quantization.layer import Layer
from qcompile.passes.quantization.palettize import stored
from qcompile.passes.quantization.rounding import Palettized

WORK = 2e10
"""Multiplications that fitting a layer's tables may take; a larger layer keeps its tables."""
CHUNK = 1 << 24
"""Elements of the one-hot indices that are held at once."""


def feedback(layer: Layer, start: Palettized, seen: Moments, *, moved: bool = False) -> Palettized:
    """Return new indices into the same tables.

    Args:
        layer: A 1-d or 2-d convolution or a linear layer.
        start: Has the tables.
        seen: Of the layer's inputs.
        moved: Whether the weight first moves to the float output (``gptaq``).
    """
    matrix = moved_matrix(layer, seen) if moved else as_matrix(layer)
    params, shape = start.params, matrix.shape[:2]
    lut = params.lut.double()
    scale = torch.ones(1) if params.scale is None else params.scale.reshape(shape)
    scale = scale.double().expand(shape)

    def nearest(column: int, current: Tensor) -> tuple[Tensor, Tensor]:
        code = nearest_entry(lut, (current / scale).reshape(len(lut), -1))
        value = to_half(lut.gather(1, code).reshape(shape) * scale)
        return code.reshape(shape), value

    codes = round_columns(matrix, seen.upper, nearest, BLOCK).to(torch.uint8)
    method = "gptaq" if moved else "gptq"
    return replace(start, codes=codes.reshape(layer.weight.shape), method=method)


def refit(
    layer: Layer, start: Palettized, seen: Moments, *, moved: bool = False
) -> Palettized | None:
    """Return the same indices into tables with the least output error; ``None`` for too much work.

    Args:
        layer: A 1-d or 2-d convolution or a linear layer.
        start: Has the indices.
        seen: Of the layer's inputs.
        moved: Whether the target is the weight that ``gptaq`` rounds.
    """
    target = moved_matrix(layer, seen) if moved else as_matrix(layer)
    if target.numel() * target.shape[2] * start.spec.size > WORK:
        return None
    lut = start.params.lut.double()
    form, linear = _normal_equations(target, start, seen.hessian)
    mean = form.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-30)
    form = form + (DAMPING * mean)[:, None, None] * torch.eye(lut.shape[1], dtype=form.dtype)
    new = lut + torch.linalg.solve(form, linear)
    order = new.argsort(dim=1, stable=True)
    params = stored(new, start.spec, start.params.scale)
    grouped = start.codes.reshape(len(lut), -1).long()
    codes = order.argsort(1).gather(1, grouped).reshape(start.codes.shape).to(torch.uint8)
    return replace(start, codes=codes, params=params, method=f"{start.method}+refit")


def _normal_equations(target: Tensor, start: Palettized, hessian: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``sum A^T H A`` and ``sum A^T H (w - A lut)`` over each table's rows.

    A is a row's one-hot indices times its scale, ``[columns, entries]``.
    """
    params, entries = start.params, start.spec.size
    columns, tables = target.shape[2], len(params.lut)
    codes = start.codes.reshape(-1, columns).long()
    scale = _row_scale(params, len(codes))
    left = target.reshape(-1, columns) - start.decoded.double().reshape(-1, columns)
    per_group, per_table = len(codes) // len(hessian), len(codes) // tables
    form = torch.zeros(tables, entries, entries, dtype=torch.float64)
    linear = torch.zeros(tables, entries, dtype=torch.float64)
    width = max(1, CHUNK // (columns * (entries if len(hessian) == 1 else entries + columns)))
    for first in range(0, len(codes), width):
        rows = torch.arange(first, min(len(codes), first + width))
        a = torch.nn.functional.one_hot(codes[rows], entries).double() * scale[rows, None, None]
        h = hessian[rows // per_group] if len(hessian) > 1 else hessian[0]
        ha = h @ a
        form.index_add_(0, rows // per_table, a.transpose(1, 2) @ ha)
        linear.index_add_(0, rows // per_table, torch.einsum("rck,rc->rk", ha, left[rows]))
    return form, linear


def _row_scale(params: PaletteParams, rows: int) -> Tensor:
    return torch.ones(rows).double() if params.scale is None else params.scale.double()
