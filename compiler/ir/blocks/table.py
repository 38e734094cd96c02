"""Codes that are indices into one table of 16 levels: IQ4_NL and IQ4_XS (FORMATS A.1.2, A.1.3)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompile.compiler.ir.blocks.affine import AffineFormat
from qcompile.compiler.ir.blocks.bits import join_bits, join_half, split_bits, split_half
from qcompile.compiler.ir.blocks.format import Fields, present
from qcompile.compiler.ir.blocks.k_affine import columns, per_block, spread_importance
from qcompile.compiler.ir.blocks.searches import search_symmetric
from qcompile.compiler.ir.blocks.sums import largest, reciprocal

LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""ggml's ``kvalues_iq4nl``."""


@dataclass(frozen=True)
class TableFormat(AffineFormat):
    """``x = step * LEVELS[code]``; a block of 32, or 8 of them with scales of 6 bits."""

    def read(self, parts: Mapping[str, Tensor]) -> Fields:
        """Return the fields."""
        scales = None
        if "scales_l" in parts:
            low, high = split_bits(parts["scales_l"], 4, 1), split_bits(parts["scales_h"], 2, 1)
            scales = (low | (high << 4)).to(torch.int8) - 32
        return Fields(split_bits(parts["qs"], 4, 16), split_half(parts["d"]), scales=scales)

    def write(self, fields: Fields) -> dict[str, Tensor]:
        """Return the parts."""
        parts = {"d": join_half(present(fields.d)), "qs": join_bits(fields.codes, 4, 16)}
        if fields.scales is not None:
            scales = (present(fields.scales) + 32).to(torch.uint8)
            parts["scales_l"] = join_bits(scales & 15, 4, 1)
            parts["scales_h"] = join_bits(scales >> 4, 2, 1)
        return parts

    @property
    def scale_range(self) -> tuple[int, int] | None:
        """The least and largest scale of a run: 6 bits of IQ4_XS."""
        return (-32, 31) if self.block > self.run else None

    def steps(self, fields: Fields) -> tuple[Tensor, None]:
        """Return the step of each run of 32."""
        d = present(fields.d).float()[:, None]
        return (d if fields.scales is None else d * present(fields.scales).float()), None

    def level(self, codes: Tensor) -> Tensor:
        """Return the entries of the table."""
        return _entries(torch.tensor(LEVELS, dtype=torch.float32), codes.int())

    def nearest(self, levels: Tensor) -> Tensor:
        """Return the index of the nearest entry; of two as near, the larger."""
        return _entries(_nearest_to_halves()[0], _halves(levels))

    def nearest_levels(self, levels: Tensor) -> Tensor:
        """Return the nearest entries."""
        return self.level(self.nearest(levels))

    def importance(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Return ggml's weights of squared errors."""
        return spread_importance(rows, weights, self.block, 2.0)

    def fit(self, x: Tensor, importance: Tensor | None) -> Fields:
        """Return ggml's fields; it rounds codes before the scale is rounded to float16."""
        groups = columns(x, self.run)
        weights = groups.square() if importance is None else columns(importance, self.run)
        found = search_symmetric(groups, weights, _inverses, _nearest_level, level_first=True)
        step, d, scales = found.scale, found.scale, None
        if self.block > self.run:
            d, units = _shared(per_block(found.scale, x))
            step, scales = (d * units).T.flatten(), units.T.to(torch.int8)
        codes = self.nearest(x.reshape(-1, self.run) * reciprocal(step)[:, None]).reshape(x.shape)
        return Fields(codes, d.half(), scales=scales)


def _inverses(peak: Tensor) -> Tensor:
    """Return the inverse scales that ggml tries."""
    return torch.cat([(1 / (peak / 127))[None], torch.arange(-134.0, -119.0)[:, None] / peak])


def _shared(scales: Tensor) -> tuple[Tensor, Tensor]:
    """Return the unit of each block and scales in units, where the largest is -32 units."""
    d = largest(scales) / -32
    return d, (scales * reciprocal(d)).round().clamp(-32, 31)


def _nearest_level(levels: Tensor) -> Tensor:
    return _entries(_nearest_to_halves()[1], _halves(levels))


@functools.cache
def _nearest_to_halves() -> tuple[Tensor, Tensor]:
    """Return the nearest entry, its index and itself, from each half step on: -128, -127.5, ... 127.5.

    Middles between entries are whole or half numbers, so that all numbers of a half step share one.
    """
    table = torch.tensor(LEVELS, dtype=torch.float32)
    middles = (table[1:] + table[:-1]) / 2
    codes = torch.bucketize(torch.arange(-256, 256) / 2, middles, right=True)
    return codes.to(torch.uint8), table[codes]


def _halves(levels: Tensor) -> Tensor:
    return ((levels * 2).floor_().clamp_(-256, 255) + 256).int()


def _entries(table: Tensor, indices: Tensor) -> Tensor:
    """Return ``table[indices]``; ``index_select`` takes a third of the time."""
    return table.index_select(0, indices.flatten()).reshape(indices.shape)


_XS_LAYOUT = (("d", 2), ("scales_h", 2), ("scales_l", 4), ("qs", 128))

TABLE_FORMATS = (
    TableFormat("IQ4_NL", 20, 32, (("d", 2), ("qs", 16)), run=32, bits=4),
    TableFormat("IQ4_XS", 23, 256, _XS_LAYOUT, run=32, bits=4),
)
