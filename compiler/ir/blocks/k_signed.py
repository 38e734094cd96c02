"""Super-blocks of 256 with 16 signed scales and no minimum: Q3_K and Q6_K (FORMATS A.1.2, A.1.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompile.compiler.ir.blocks.affine import AffineFormat
from qcompile.compiler.ir.blocks.bits import join_bits, join_half, split_bits, split_half
from qcompile.compiler.ir.blocks.format import Fields, present
from qcompile.compiler.ir.blocks.k_affine import columns, per_block, spread_importance
from qcompile.compiler.ir.blocks.searches import Symmetric, descend_signed, search_signed
from qcompile.compiler.ir.blocks.sums import SMALLEST, largest, quotient, total


@dataclass(frozen=True)
class SignedK(AffineFormat):
    """``x = d * scale * (code - zero)``."""

    @property
    def scale_range(self) -> tuple[int, int]:
        """The least and largest scale: 6 bits of Q3_K, 8 of Q6_K."""
        return (-32, 31) if self.bits == 3 else (-128, 127)

    def steps(self, fields: Fields) -> tuple[Tensor, None]:
        """Return the step of each sub-block."""
        return present(fields.d).float()[:, None] * present(fields.scales).float(), None


@dataclass(frozen=True)
class Q3K(SignedK):
    """Q3_K: third bits in a mask, set where the code is 4 or more; scales of 6 bits."""

    def read(self, parts: Mapping[str, Tensor]) -> Fields:
        """Return the fields."""
        codes = split_bits(parts["qs"], 2, 32) | (split_bits(parts["hmask"], 1, 32) << 2)
        low, high = parts["scales"].split((8, 4), 1)
        scales = split_bits(low, 4, 8) | (split_bits(high, 2, 4) << 4)
        signed = scales.to(torch.int8) - 32
        return Fields(codes, split_half(parts["d"]), scales=signed)

    def write(self, fields: Fields) -> dict[str, Tensor]:
        """Return the parts."""
        scales = (present(fields.scales) + 32).to(torch.uint8)
        six = torch.cat([join_bits(scales & 15, 4, 8), join_bits(scales >> 4, 2, 4)], 1)
        qs, mask = join_bits(fields.codes & 3, 2, 32), join_bits(fields.codes >> 2, 1, 32)
        return {"hmask": mask, "qs": qs, "scales": six, "d": join_half(present(fields.d))}

    def importance(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Return ggml's weights of squared errors."""
        return spread_importance(rows, weights, self.block, 2.0)

    def fit(self, x: Tensor, importance: Tensor | None) -> Fields:
        """Return scales of each sub-block, their unit, and the nearest codes."""
        groups = columns(x, self.run)
        if importance is None:
            found = descend_signed(groups, self.zero)
            d, scales = shared_by_largest(per_block(found.scale, x), -32, 31)
            scales = torch.where(d == 0, -32, scales)  # bytes of 0, as ggml's
        else:
            weights = columns(importance, self.run)
            found = search_signed(groups, weights, self.zero)
            shared = search_signed(per_block(found.scale, x), per_block(total(weights), x), half=32)
            d, scales = shared.scale, shared.levels
        codes = signed_codes(found, x, self.zero)
        return self.rounded(x, Fields(codes, d.half(), scales=scales.T.to(torch.int8)))


@dataclass(frozen=True)
class Q6K(SignedK):
    """Q6_K: four bits and two bits of a code apart, scales of int8."""

    def read(self, parts: Mapping[str, Tensor]) -> Fields:
        """Return the fields."""
        codes = split_bits(parts["ql"], 4, 64) | (split_bits(parts["qh"], 2, 32) << 4)
        scales = parts["scales"].view(torch.int8)
        return Fields(codes, split_half(parts["d"]), scales=scales)

    def write(self, fields: Fields) -> dict[str, Tensor]:
        """Return the parts."""
        return {
            "ql": join_bits(fields.codes & 15, 4, 64),
            "qh": join_bits(fields.codes >> 4, 2, 32),
            "scales": present(fields.scales).view(torch.uint8),
            "d": join_half(present(fields.d)),
        }

    def fit(self, x: Tensor, importance: Tensor | None) -> Fields:
        """Return scales of each sub-block, their unit, and the nearest codes."""
        groups = columns(x, self.run)
        weights = groups.square() if importance is None else columns(importance, self.run)
        found = search_signed(groups, weights, self.zero)
        shared, codes = per_block(found.scale, x), signed_codes(found, x, self.zero)
        zero = shared.abs().amax(0) < SMALLEST
        codes[zero] = 0  # bytes of 0, as ggml's
        d, scales = shared_by_largest(torch.where(zero, 0, shared), -128, 127)
        return self.rounded(x, Fields(codes, d.half(), scales=scales.T.to(torch.int8)))


def shared_by_largest(scales: Tensor, lowest: int, highest: int) -> tuple[Tensor, Tensor]:
    """Return the unit of each block and scales in units, where the largest is ``lowest`` units.

    Args:
        scales: ``[sub-blocks, blocks]``, of either sign.
        lowest: The unit count of the scale of largest magnitude.
        highest: The largest unit count.
    """
    peak = largest(scales)
    inverse = quotient(lowest, torch.where(peak == 0, torch.inf, peak))
    units = (scales * inverse).round().clamp(lowest, highest)
    return torch.where(inverse == 0, 0, 1 / inverse), units


def signed_codes(found: Symmetric, x: Tensor, zero: int) -> Tensor:
    """Return the codes of a search's levels: float32 ``[blocks, groups, run]``; the levels are lost."""
    return found.levels.add_(zero).T.reshape(len(x), -1, len(found.levels))


_Q3_LAYOUT = (("hmask", 32), ("qs", 64), ("scales", 12), ("d", 2))
_Q6_LAYOUT = (("ql", 128), ("qh", 64), ("scales", 16), ("d", 2))

SIGNED_K_FORMATS = (
    Q3K("Q3_K", 11, 256, _Q3_LAYOUT, run=16, bits=3, zero=4),
    Q6K("Q6_K", 14, 256, _Q6_LAYOUT, run=16, bits=6, zero=32),
)
