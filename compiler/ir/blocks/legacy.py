"""Blocks of 32 with one scale: Q8_0, Q4_0, Q5_0 (symmetric), Q4_1, Q5_1 (with a minimum).

Without weights the encoders write the bytes of ggml's ``quantize_row_*_ref`` (FORMATS A.1.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompile.compiler.ir.blocks.affine import AffineFormat
from qcompile.compiler.ir.blocks.affine_search import Tries, search_affine
from qcompile.compiler.ir.blocks.bits import join_bits, join_half, split_bits, split_half
from qcompile.compiler.ir.blocks.format import Fields, present
from qcompile.compiler.ir.blocks.searches import search_signed
from qcompile.compiler.ir.blocks.sums import largest, reciprocal, root, total

WEIGHTED_TRIES = Tries(-0.9, 0.05, 36)
"""The scales that ggml tries for a sub-block with a minimum where there is an imatrix."""


@dataclass(frozen=True)
class Bytes8(AffineFormat):
    """Q8_0: int8 codes. ggml ignores an imatrix here, and so do we: the error is 0.7 %."""

    def read(self, parts: Mapping[str, Tensor]) -> Fields:
        """Return codes and scale."""
        return Fields(parts["qs"].view(torch.int8), split_half(parts["d"]))

    def write(self, fields: Fields) -> dict[str, Tensor]:
        """Return the parts."""
        return {
            "d": join_half(present(fields.d)),
            "qs": fields.codes.view(torch.uint8),
        }

    def steps(self, fields: Fields) -> tuple[Tensor, None]:
        """Return the scale of each block."""
        return present(fields.d).float()[:, None], None

    def nearest(self, levels: Tensor) -> Tensor:
        """Return the nearest codes, half away from 0 as C's ``roundf``."""
        size = levels.abs()
        whole = size.floor()
        rounded = (whole + (2 * (size - whole)).floor()) * levels.sign()
        return rounded.clamp(-128, 127).to(torch.int8)

    def nearest_levels(self, levels: Tensor) -> Tensor:
        """Return the codes as numbers."""
        return self.level(self.nearest(levels))

    def fit(self, x: Tensor, importance: Tensor | None) -> Fields:
        """Return codes that reach 127 at the largest magnitude."""
        d = x.abs().amax(1) / 127
        return Fields(self.nearest(x * reciprocal(d)[:, None]), d.half())


@dataclass(frozen=True)
class Packed32(AffineFormat):
    """Q4_0, Q4_1, Q5_0, Q5_1: byte j holds element j and element j + 16, fifth bits apart."""

    def read(self, parts: Mapping[str, Tensor]) -> Fields:
        """Return codes, scale and minimum."""
        codes = split_bits(parts["qs"], 4, 16)
        if self.bits == 5:
            codes |= split_bits(parts["qh"], 1, 1) << 4
        low = split_half(parts["m"]) if "m" in parts else None
        return Fields(codes, split_half(parts["d"]), low)

    def write(self, fields: Fields) -> dict[str, Tensor]:
        """Return the parts."""
        parts = {"d": join_half(present(fields.d)), "qs": join_bits(fields.codes & 15, 4, 16)}
        if fields.dmin is not None:
            parts["m"] = join_half(present(fields.dmin))
        if self.bits == 5:
            parts["qh"] = join_bits(fields.codes >> 4, 1, 1)
        return parts

    def steps(self, fields: Fields) -> tuple[Tensor, Tensor | None]:
        """Return the scale, and the minimum with its sign changed."""
        low = None if fields.dmin is None else -present(fields.dmin).float()[:, None]
        return present(fields.d).float()[:, None], low

    def importance(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Return weights times sqrt(mean square of the row + x squared), ggml's rule."""
        squares = rows.square()
        return weights * root(total(squares.T)[:, None] / rows.shape[1] + squares)

    def fit(self, x: Tensor, importance: Tensor | None) -> Fields:
        """Return ggml's fields: plain rounding, or a search where there are weights."""
        if self.zero:
            return self._signed(x, importance)
        return self._with_minimum(x, importance)

    def _signed(self, x: Tensor, importance: Tensor | None) -> Fields:
        if importance is not None:
            found = search_signed(x.T.contiguous(), importance.T.contiguous(), self.zero)
            return Fields((found.levels.T + self.zero).to(torch.uint8), found.scale.half())
        d = largest(x.T) / -self.zero
        levels = x * reciprocal(d)[:, None]
        codes = (levels + (self.zero + 0.5)).trunc().clamp(0, self.highest)
        return Fields(codes.to(torch.uint8), d.half())

    def _with_minimum(self, x: Tensor, importance: Tensor | None) -> Fields:
        if importance is not None:
            columns = x.T.contiguous(), importance.T.contiguous()
            found = search_affine(*columns, self.highest, WEIGHTED_TRIES)
            return Fields(found.codes.T.to(torch.uint8), found.scale.half(), (-found.low).half())
        low = x.amin(1)
        d = (x.amax(1) - low) / self.highest
        levels = (x - low[:, None]) * reciprocal(d)[:, None]
        codes = (levels + 0.5).trunc().clamp(0, self.highest)
        return Fields(codes.to(torch.uint8), d.half(), low.half())


_D, _M, _QH, _QS = ("d", 2), ("m", 2), ("qh", 4), ("qs", 16)

LEGACY_FORMATS = (
    Bytes8("Q8_0", 8, 32, (_D, ("qs", 32)), run=32, bits=8),
    Packed32("Q4_0", 2, 32, (_D, _QS), run=32, bits=4, zero=8),
    Packed32("Q4_1", 3, 32, (_D, _M, _QS), run=32, bits=4),
    Packed32("Q5_0", 6, 32, (_D, _QH, _QS), run=32, bits=5, zero=16),
    Packed32("Q5_1", 7, 32, (_D, _M, _QH, _QS), run=32, bits=5),
)
