"""Scales, minima and units of a K-quant together: what a search of one sub-block after the other leaves.

ggml fits each sub-block's real scale and minimum, and rounds them to small integers afterwards, when units
are known (``affine_search.py``). Here the integers beside those are tried with the codes that suit them, and
then the units by least squares at the integers and codes as they are, a few rounds of it; no round makes
the error of a block larger.

Source: FORMATS A.1.8, an experiment of this project; nothing but the encoder differs.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TypeGuard

import torch
from torch import Tensor

from qcompile.compiler.ir.blocks.affine import AffineFormat
from qcompile.compiler.ir.blocks.format import BlockFormat, Fields, present

ROUNDS = 3
BLOCKS_AT_ONCE = 1024
STEPS = (0, -1, 1)
"""Of scales, and of minima: the first is what is there, which stays where others are no better."""


def improvable(format: BlockFormat) -> TypeGuard[AffineFormat]:
    """Return whether a format has integers as scales."""
    return isinstance(format, AffineFormat) and format.scale_range is not None


def encode_jointly(format: AffineFormat, rows: Tensor) -> Tensor:
    """Return the blocks of rows, of no larger squared error than ``format.encode`` gives.

    Args:
        format: That is ``improvable``.
        rows: ``[rows, columns]``.

    Returns:
        uint8 ``[rows, bytes]``.
    """
    packed = format.encode(rows).reshape(-1, format.size)
    blocks = rows.detach().float().reshape(-1, format.block)
    parts = zip(blocks.split(BLOCKS_AT_ONCE), packed.split(BLOCKS_AT_ONCE), strict=True)
    better = [format.pack(improve(format, x, format.unpack(data))) for x, data in parts]
    return torch.cat(better).reshape(len(rows), -1)


def improve(format: AffineFormat, x: Tensor, fields: Fields) -> Fields:
    """Return fields of no larger squared error.

    Args:
        format: One whose scales are integers (``scale_range``).
        x: ``[blocks, block]``, float32.
        fields: Of an encoder.
    """
    groups = x.reshape(len(x), -1, format.run)
    for _ in range(ROUNDS):
        fields = format.rounded(x, _integers(format, groups, fields))
        fields = _units(format, x, fields)
    return fields


def _integers(format: AffineFormat, x: Tensor, fields: Fields) -> Fields:
    """Return the best integers beside those that are there, for each sub-block by itself."""
    scales, mins = present(fields.scales), fields.mins
    best, least = fields, _errors(format, x, fields)
    for scale, low in itertools.product(STEPS, STEPS if mins is not None else (0,)):
        if scale == low == 0:
            continue
        tried = replace(
            fields,
            scales=_moved(scales, scale, format),
            mins=None if mins is None else _moved(mins, low, format),
        )
        errors = _errors(format, x, tried)
        better = errors < least
        least = torch.where(better, errors, least)
        best = _picked(better, tried, best)
    return best


def _moved(values: Tensor, by: int, format: AffineFormat) -> Tensor:
    assert format.scale_range is not None
    return (values.int() + by).clamp(*format.scale_range).to(values.dtype)


def _picked(better: Tensor, tried: Fields, best: Fields) -> Fields:
    scales = torch.where(better, present(tried.scales), present(best.scales))
    if tried.mins is None:
        return replace(best, scales=scales)
    return replace(best, scales=scales, mins=torch.where(better, tried.mins, present(best.mins)))


def _errors(format: AffineFormat, x: Tensor, fields: Fields) -> Tensor:
    """Return the squared error of each sub-block with the codes that suit it: ``[blocks, groups]``."""
    return format.squared_errors(x, *format.steps(fields)).sum(2)


def _units(format: AffineFormat, x: Tensor, fields: Fields) -> Fields:
    """Return the units of each block by least squares, with codes that suit them, where that is better."""
    levels = format.level(fields.codes).reshape(len(x), -1, format.run)
    rises = (present(fields.scales).float()[..., None] * levels).reshape(x.shape)
    if fields.mins is None:
        d = (rises * x).sum(1) / rises.square().sum(1)
        fitted = replace(fields, d=_usable(d, present(fields.d)))
    else:
        d, dmin = _two_units(rises, _falls(fields, format.run), x)
        sound = (d > 0) & (dmin >= 0)
        d, dmin = (torch.where(sound, unit, torch.nan) for unit in (d, dmin))
        fitted = replace(
            fields, d=_usable(d, present(fields.d)), dmin=_usable(dmin, present(fields.dmin))
        )
    fitted = format.rounded(x, fitted)
    worse = _error(format, x, fitted) >= _error(format, x, fields)
    codes = torch.where(worse[:, None], fields.codes, fitted.codes)
    pairs = zip(_rest(fields), _rest(fitted), strict=True)
    return Fields(codes, *(_kept(worse, *pair) for pair in pairs))


def _falls(fields: Fields, run: int) -> Tensor:
    """Return what the unit of minima is multiplied by: ``[blocks, block]``."""
    return -present(fields.mins).float().repeat_interleave(run, 1)


def _two_units(rises: Tensor, falls: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the units of rises and falls that fit x best."""
    aa, bb, ab = rises.square().sum(1), falls.square().sum(1), (rises * falls).sum(1)
    ax, bx = (rises * x).sum(1), (falls * x).sum(1)
    determinant = aa * bb - ab * ab
    return (ax * bb - bx * ab) / determinant, (aa * bx - ab * ax) / determinant


def _usable(unit: Tensor, before: Tensor) -> Tensor:
    """Return units in float16, the ones before where these are no numbers that it holds."""
    half = unit.half()
    return torch.where(half.isfinite(), half, before)


def _error(format: AffineFormat, x: Tensor, fields: Fields) -> Tensor:
    return (format.values(fields) - x).square().sum(1)


def _rest(fields: Fields) -> tuple[Tensor | None, ...]:
    return fields.d, fields.dmin, fields.scales, fields.mins


def _kept(worse: Tensor, before: Tensor | None, after: Tensor | None) -> Tensor | None:
    if before is None or after is None:
        return after
    return torch.where(worse.reshape(-1, *[1] * (before.dim() - 1)), before, after)
