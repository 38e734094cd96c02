"""Super-blocks of 256 whose sub-blocks have a scale and a minimum: Q2_K, Q4_K, Q5_K (FORMATS A.1.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompile.compiler.ir.blocks.affine import AffineFormat
from qcompile.compiler.ir.blocks.affine_search import Affine, Tries, search_affine
from qcompile.compiler.ir.blocks.bits import join_bits, join_half, split_bits, split_half
from qcompile.compiler.ir.blocks.format import Fields, present
from qcompile.compiler.ir.blocks.legacy import WEIGHTED_TRIES
from qcompile.compiler.ir.blocks.searches import search_unsigned
from qcompile.compiler.ir.blocks.sums import quotient, root, total


@dataclass(frozen=True, kw_only=True)
class AffineK(AffineFormat):
    """``x = d * scale * code - dmin * min``.

    Args:
        limit: The largest scale and min of a sub-block.
        tries: The scales that an encoder tries without weights.
        spread: Errors of weighted searches count by weight * sqrt(spread * mean(x^2) + x^2).
    """

    limit: int
    tries: Tries
    spread: float

    @property
    def scale_range(self) -> tuple[int, int]:
        """The least and largest scale, and min."""
        return 0, self.limit

    def steps(self, fields: Fields) -> tuple[Tensor, Tensor]:
        """Return step and low of each sub-block."""
        step = present(fields.d).float()[:, None] * present(fields.scales).float()
        return step, present(fields.dmin).float()[:, None] * present(fields.mins).float()

    def importance(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Return ggml's weights of squared errors, by the mean square of each super-block."""
        return spread_importance(rows, weights, self.block, self.spread)

    def fit(self, x: Tensor, importance: Tensor | None) -> Fields:
        """Return scales and mins of each sub-block, what they are units of, and the nearest codes."""
        groups = columns(x, self.run)
        if importance is None:
            found = search_affine(groups, self._magnitudes(groups), self.highest, self.tries)
            d, scales = _shared_by_largest(per_block(found.scale.clamp(min=0), x), self.limit)
            dmin, mins = _shared_by_largest(per_block(found.low, x), self.limit)
        else:
            weights = columns(importance, self.run)
            found = search_affine(groups, weights, self.highest, WEIGHTED_TRIES)
            both = torch.cat([per_block(found.scale.clamp(min=0), x), per_block(found.low, x)], 1)
            shares = per_block(total(weights), x)
            unit, units = _shared_by_search(both, torch.cat([shares, shares], 1), self.limit)
            (d, dmin), (scales, mins) = unit.split(len(x)), units.split(len(x))
        return self.rounded(x, Fields(_codes(found, x), d, dmin, scales, mins))

    def _magnitudes(self, groups: Tensor) -> Tensor:
        if self.tries.absolute:
            return groups.abs()
        return root(total(groups.square()) / self.run) + groups.abs()


@dataclass(frozen=True)
class Q2K(AffineK):
    """Q2_K: 16 sub-blocks, scale and min in the two halves of a byte."""

    def read(self, parts: Mapping[str, Tensor]) -> Fields:
        """Return the fields."""
        codes, both = split_bits(parts["qs"], 2, 32), parts["scales"]
        return Fields(
            codes, split_half(parts["d"]), split_half(parts["dmin"]), both & 15, both >> 4
        )

    def write(self, fields: Fields) -> dict[str, Tensor]:
        """Return the parts."""
        both = present(fields.scales) | (present(fields.mins) << 4)
        halves = {"d": join_half(present(fields.d)), "dmin": join_half(present(fields.dmin))}
        return {"scales": both, "qs": join_bits(fields.codes, 2, 32), **halves}


@dataclass(frozen=True)
class Q45K(AffineK):
    """Q4_K and Q5_K: 8 sub-blocks, scales and mins of 6 bits in 12 bytes, fifth bits apart."""

    def read(self, parts: Mapping[str, Tensor]) -> Fields:
        """Return the fields."""
        codes = split_bits(parts["qs"], 4, 32)
        if self.bits == 5:
            codes |= split_bits(parts["qh"], 1, 32) << 4
        scales, mins = _split_six_bits(parts["scales"])
        return Fields(codes, split_half(parts["d"]), split_half(parts["dmin"]), scales, mins)

    def write(self, fields: Fields) -> dict[str, Tensor]:
        """Return the parts."""
        parts = {
            "d": join_half(present(fields.d)),
            "dmin": join_half(present(fields.dmin)),
            "scales": _join_six_bits(present(fields.scales), present(fields.mins)),
            "qs": join_bits(fields.codes & 15, 4, 32),
        }
        if self.bits == 5:
            parts["qh"] = join_bits(fields.codes >> 4, 1, 32)
        return parts


def columns(x: Tensor, run: int) -> Tensor:
    """Return ``[blocks, block]`` as groups of ``run`` elements in columns."""
    return x.reshape(-1, run).T


def per_block(values: Tensor, x: Tensor) -> Tensor:
    """Return one value a group as ``[groups of a block, blocks]``; ``x`` is ``[blocks, block]``."""
    return values.reshape(len(x), -1).T.contiguous()


def spread_importance(rows: Tensor, weights: Tensor, block: int, spread: float) -> Tensor:
    """Return weights * sqrt(spread * mean(x^2) + x^2), the mean over a block; ggml's rule."""
    squares = rows.square().reshape(-1, block)
    mean = spread * total(squares.T)[:, None] / block
    return weights.reshape(-1, block) * root(mean + squares)


def _codes(found: Affine, x: Tensor) -> Tensor:
    return found.codes.T.reshape(len(x), -1, len(found.codes))


def _shared_by_largest(values: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Return the unit of each block and values in units, where the largest is ``limit`` units."""
    peak = values.amax(0) + 0.0  # not -0.0
    inverse = quotient(limit, torch.where(peak > 0, peak, torch.inf))
    units = (values * inverse).round().clamp(0, limit)
    return (peak / limit).half(), units.T.to(torch.uint8)


def _shared_by_search(values: Tensor, weights: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Return the unit of each block and values in units, of least weighted squared error."""
    found = search_unsigned(values, weights, limit)
    return found.scale.half(), found.levels.T.to(torch.uint8)


def _split_six_bits(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Return 8 scales and 8 mins: of the last four of each, the high two bits are in the first four."""
    first, second, third = packed.split(4, 1)
    scales = torch.cat([first & 63, (third & 15) | ((first >> 6) << 4)], 1)
    return scales, torch.cat([second & 63, (third >> 4) | ((second >> 6) << 4)], 1)


def _join_six_bits(scales: Tensor, mins: Tensor) -> Tensor:
    first = scales[:, :4] | ((scales[:, 4:] >> 4) << 6)
    second = mins[:, :4] | ((mins[:, 4:] >> 4) << 6)
    return torch.cat([first, second, (scales[:, 4:] & 15) | ((mins[:, 4:] & 15) << 4)], 1)


_UNITS, _SIX, _QH, _QS = (("d", 2), ("dmin", 2)), ("scales", 12), ("qh", 32), ("qs", 128)
_Q4_LAYOUT, _Q5_LAYOUT = (*_UNITS, _SIX, _QS), (*_UNITS, _SIX, _QH, _QS)
_Q2_LAYOUT = (("scales", 16), ("qs", 64), *_UNITS)
_Q2_TRIES = Tries(-0.5, 0.1, 15, absolute=True)
_Q4_TRIES, _Q5_TRIES = Tries(-1.0, 0.1, 20), Tries(-0.5, 0.1, 15)

AFFINE_K_FORMATS = (
    Q2K("Q2_K", 10, 256, _Q2_LAYOUT, run=16, bits=2, limit=15, tries=_Q2_TRIES, spread=1.0),
    Q45K("Q4_K", 12, 256, _Q4_LAYOUT, run=32, bits=4, limit=63, tries=_Q4_TRIES, spread=2.0),
    Q45K("Q5_K", 13, 256, _Q5_LAYOUT, run=32, bits=5, limit=63, tries=_Q5_TRIES, spread=2.0),
)
