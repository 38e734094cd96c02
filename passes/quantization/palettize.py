"""From a float weight to indices into tables: exact importance-weighted k-means (FORMATS B.12).

A table's float64 centers are the best there are; stored entries are rounded to float16 or int8, and
each weight then takes the entry nearest to it. With channel scales, rows are divided by their largest
magnitude or by their root mean square, whichever leaves the smaller error; tables and scales are then
fitted in turns, each by weighted least squares with the indices held.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qcompile.compiler.ir.palette import Entries, PaletteParams, PaletteSpec, nearest_entry
from qcompile.compiler.ir.quant import WeightSpec
from qcompile.compiler.ir.storage import SMALLEST_HALF, half_scale, to_half
from qcompile.passes.quantization.kmeans import kmeans
from qcompile.passes.quantization.rounding import Coded, Palettized, round_to_nearest

LEAST_IMPORTANCE = 1e-3
"""Of the mean: no weight is free to go wherever the samples do not look."""
TURNS = 4
INT8_MAX = 127


def code_weight(weight: Tensor, spec: WeightSpec, importance: Tensor) -> Coded:
    """Return the weight in a format of either kind, each value by itself; see ``palettize``."""
    if isinstance(spec, PaletteSpec):
        return palettize(weight, spec, importance)
    return round_to_nearest(weight, spec, importance)


def palettize(weight: Tensor, spec: PaletteSpec, importance: Tensor) -> Palettized:
    """Return the weight in the tables with the least importance-weighted squared error.

    Args:
        weight: ``[out, in / groups, ...]``.
        spec: Its group size divides ``out``.
        importance: ``E[x**2]`` of what each weight is multiplied by; broadcasts against the weight.
    """
    rows = weight.flatten(1).double()
    h = importance.expand(weight.shape).flatten(1).double()
    mean = h.mean()
    h = torch.where(mean > 0, h.clamp(min=float(LEAST_IMPORTANCE * mean)), 1.0)
    found = [_fit(rows, h, spec, scale) for scale in _scales(rows, spec)]
    params = min(found, key=lambda p: _error(rows, h, spec, p))
    return Palettized(spec, spec.encode(weight, params), params, "k-means")


def stored(lut: Tensor, spec: PaletteSpec, scale: Tensor | None) -> PaletteParams:
    """Return tables as they are stored: ascending, rounded to float16 or int8.

    Args:
        lut: float64 ``[groups, entries]``.
        spec: Of the entries.
        scale: Of the channels.
    """
    lut = lut.sort(1).values
    if spec.entries is Entries.FP16:
        return PaletteParams(to_half(lut), scale)
    unit = half_scale((lut.abs().amax() / INT8_MAX).float())
    codes = (lut / unit).round().clamp(-INT8_MAX, INT8_MAX)
    return PaletteParams(to_half(codes * unit), scale, codes.to(torch.int8), unit)


def in_units(rows: Tensor, params: PaletteParams) -> Tensor:
    """Return rows ``[out, columns]`` as values of the tables, ``[groups, ...]``."""
    scaled = rows if params.scale is None else rows / params.scale[:, None]
    return scaled.reshape(len(params.lut), -1)


def _scales(rows: Tensor, spec: PaletteSpec) -> list[Tensor | None]:
    """Return the channel scales to start from."""
    if not spec.channel_scale:
        return [None]
    largest, square = rows.abs().amax(1), rows.square().mean(1).sqrt()
    return [half_scale(largest.clamp(min=SMALLEST_HALF)), half_scale(square)]


def _fit(rows: Tensor, h: Tensor, spec: PaletteSpec, scale: Tensor | None) -> PaletteParams:
    """Return tables and scales: k-means, then turns of least squares while the error falls."""
    groups = 1 if spec.group_size is None else len(rows) // spec.group_size
    empty = PaletteParams(rows.new_zeros(groups, 1), scale)
    weights = h if scale is None else h * scale[:, None].double().square()
    lut = kmeans(in_units(rows, empty), weights.reshape(groups, -1), spec.size)
    best = stored(lut, spec, scale)
    least = _error(rows, h, spec, best)
    for _ in range(TURNS):
        params = _turn(rows, h, spec, best)
        if (error := _error(rows, h, spec, params)) >= least:
            break
        best, least = params, error
    return best


def _turn(rows: Tensor, h: Tensor, spec: PaletteSpec, params: PaletteParams) -> PaletteParams:
    """Return scales, then tables, that suit the present indices."""
    codes = nearest_entry(params.lut.double(), in_units(rows, params))
    scale = params.scale
    if scale is not None:
        values = params.lut.double().gather(1, codes).reshape(rows.shape)
        power = (h * values.square()).sum(1)
        fitted = (h * values * rows).sum(1) / power.clamp(min=1e-300)
        usable = (power > 0) & (fitted >= SMALLEST_HALF)
        scale = torch.where(usable, to_half(fitted.clamp(max=65504)), scale)
    params = PaletteParams(params.lut, scale)
    weights = (h if scale is None else h * scale[:, None].double().square()).reshape(
        len(params.lut), -1
    )
    lut = params.lut.double()
    mass = torch.zeros_like(lut).scatter_add_(1, codes, weights)
    moment = torch.zeros_like(lut).scatter_add_(1, codes, weights * in_units(rows, params))
    return stored(torch.where(mass > 0, moment / mass.clamp(min=1e-300), lut), spec, scale)


def _error(rows: Tensor, h: Tensor, spec: PaletteSpec, params: PaletteParams) -> float:
    decoded = spec.decode(spec.encode(rows, params), params)
    return float((h * (rows - decoded).square()).sum())
