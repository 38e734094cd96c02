"""Codes that name vectors of a grid: IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S (FORMATS A.1.2).

The encoder is ours, not ggml's: it weighs every vector of the grid (``lattice_search``).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompile.compiler.ir.blocks.bits import (
    join_bits,
    join_half,
    join_words,
    split_bits,
    split_half,
    split_words,
)
from qcompile.compiler.ir.blocks.format import BlockFormat, Fields, present
from qcompile.compiler.ir.blocks.grids import grid
from qcompile.compiler.ir.blocks.k_affine import spread_importance
from qcompile.compiler.ir.blocks.lattice_search import Lattice, search_lattice


@dataclass(frozen=True, kw_only=True)
class LatticeFormat(BlockFormat):
    """``x = d * (0.5 + scale) * unit * grid[code] * sign``.

    Args:
        run: Elements that share a scale.
        unit: A power of two.
        even: Each 8 elements have an even number of minus signs, so that 7 of them are stored.
        spread: Errors of weighted searches count by weight * sqrt(spread * mean(x^2) + x^2).
    """

    run: int
    unit: float
    even: bool
    spread: float

    def read(self, parts: Mapping[str, Tensor]) -> Fields:
        """Return the fields."""
        codes, signs, scales = self.read_codes(parts)
        if self.even:
            signs = signs | (_parity(signs) << 7)
        return Fields(codes.to(torch.int16), split_half(parts["d"]), scales=scales, signs=signs)

    def write(self, fields: Fields) -> dict[str, Tensor]:
        """Return the parts."""
        signs = present(fields.signs) & 127 if self.even else present(fields.signs)
        parts = self.write_codes(fields.codes.int(), signs, present(fields.scales))
        return {"d": join_half(present(fields.d)), **parts}

    @abstractmethod
    def read_codes(self, parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes, signs as stored (uint8, 8 elements) and scales (uint8)."""

    @abstractmethod
    def write_codes(self, codes: Tensor, signs: Tensor, scales: Tensor) -> dict[str, Tensor]:
        """Return the parts that ``read_codes`` reads."""

    @property
    def grid(self) -> Tensor:
        """The vectors that codes name, all positive: float32 ``[vectors, elements]``; do not change it."""
        return grid(self.name)

    def steps(self, fields: Fields) -> Tensor:
        """Return what the vectors of each run are multiplied by: float32 ``[blocks, block / run]``."""
        units = 0.5 + present(fields.scales).float()
        return present(fields.d).float()[:, None] * units * self.unit

    def values(self, fields: Fields) -> Tensor:
        """Return what fields decode to, in ggml's order of operations."""
        step = self.steps(fields)
        sizes = self.grid[fields.codes.int()].reshape(*step.shape, self.run)
        signs = 1 - 2 * split_bits(present(fields.signs), 1, 1).float()
        return (step[..., None] * sizes).reshape(signs.shape) * signs

    def importance(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Return ggml's weights of squared errors."""
        return spread_importance(rows, weights, self.block, self.spread)

    def fit(self, x: Tensor, importance: Tensor | None) -> Fields:
        """Return the best fields of a search over scales and all vectors.

        Without weights squared errors count by mean(x^2) / 2 + x^2, ggml's rule for IQ2_S.
        """
        if importance is None:
            importance = x.square().mean(1, keepdim=True) / 2 + x.square()
        negative = x < 0
        if self.even:
            negative = _made_even(negative, importance * x.square())
        lattice = Lattice(self.grid, self.run, self.unit)
        found = search_lattice(torch.where(negative, -x, x), importance, lattice)
        signs = join_bits(negative, 1, 1)
        return Fields(found.codes, found.d, scales=found.scales, signs=signs)


@dataclass(frozen=True)
class SignWords(LatticeFormat):
    """IQ2_XXS, IQ3_XXS: for 32 elements a word of four times 7 signs and a scale of 4 bits.

    The words follow the codes of each 32 elements, or of all.
    """

    def read_codes(self, parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes, signs and scales."""
        codes, packed = parts["qs"], parts.get("words")
        if packed is None:
            pairs = codes.reshape(len(codes), -1, 8)
            codes, packed = pairs[..., :4].flatten(1), pairs[..., 4:].flatten(1)
        words = split_words(packed, 4)
        signs = (words[..., None] >> torch.tensor([0, 7, 14, 21])) & 127
        return codes, signs.flatten(1).to(torch.uint8), (words >> 28).to(torch.uint8)

    def write_codes(self, codes: Tensor, signs: Tensor, scales: Tensor) -> dict[str, Tensor]:
        """Return the parts."""
        fours = signs.long().reshape(len(signs), -1, 4) << torch.tensor([0, 7, 14, 21])
        packed = join_words(fours.sum(2) | (scales.long() << 28), 4)
        bytes_ = codes.to(torch.uint8)
        if len(self.layout) == 3:
            return {"qs": bytes_, "words": packed}
        halves = (bytes_.reshape(len(codes), -1, 4), packed.reshape(len(codes), -1, 4))
        return {"qs": torch.cat(halves, 2).flatten(1)}


@dataclass(frozen=True)
class CodeWords(LatticeFormat):
    """IQ2_XS: for 8 elements a word of a 9-bit code and 7 signs."""

    def read_codes(self, parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes, signs and scales."""
        words = split_words(parts["qs"], 2)
        return words & 511, (words >> 9).to(torch.uint8), split_bits(parts["scales"], 4, 1)

    def write_codes(self, codes: Tensor, signs: Tensor, scales: Tensor) -> dict[str, Tensor]:
        """Return the parts."""
        words = codes.long() | (signs.long() << 9)
        return {"qs": join_words(words, 2), "scales": join_bits(scales, 4, 1)}


@dataclass(frozen=True)
class SignBytes(LatticeFormat):
    """IQ2_S, IQ3_S: all signs are stored; the high bits of codes are apart."""

    @property
    def high_bits(self) -> int:
        """Bits of a code above the lowest 8."""
        return 2 if self.run == 16 else 1

    def read_codes(self, parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes, signs and scales."""
        high = split_bits(parts["qh"], self.high_bits, 1)
        codes = parts["qs"].int() | (high.int() << 8)
        return codes, parts["signs"], split_bits(parts["scales"], 4, 1)

    def write_codes(self, codes: Tensor, signs: Tensor, scales: Tensor) -> dict[str, Tensor]:
        """Return the parts."""
        return {
            "qs": (codes & 255).to(torch.uint8),
            "qh": join_bits(codes >> 8, self.high_bits, 1),
            "signs": signs,
            "scales": join_bits(scales, 4, 1),
        }


def _parity(signs: Tensor) -> Tensor:
    """Return 1 where the number of bits set is odd."""
    folded = signs ^ (signs >> 4)
    folded = folded ^ (folded >> 2)
    return (folded ^ (folded >> 1)) & 1


def _made_even(negative: Tensor, cost: Tensor) -> Tensor:
    """Return signs of which each 8 are even: where they are not, the cheapest one is changed."""
    eights = negative.reshape(-1, 8)
    odd = eights.sum(1) % 2 == 1
    cheapest = torch.nn.functional.one_hot(cost.reshape(-1, 8).argmin(1), 8).bool()
    return (eights ^ (cheapest & odd[:, None])).reshape(negative.shape)


_D, _QS = ("d", 2), ("qs", 64)
_XS_LAYOUT = (_D, _QS, ("scales", 8))
_IQ2S_LAYOUT = (_D, ("qs", 32), ("signs", 32), ("qh", 8), ("scales", 8))
_IQ3S_LAYOUT = (_D, _QS, ("qh", 8), ("signs", 32), ("scales", 4))
_IQ3XXS_LAYOUT = (_D, _QS, ("words", 32))

LATTICE_FORMATS = (
    SignWords("IQ2_XXS", 16, 256, (_D, _QS), run=32, unit=0.25, even=True, spread=1.0),
    CodeWords("IQ2_XS", 17, 256, _XS_LAYOUT, run=16, unit=0.25, even=True, spread=1.0),
    SignBytes("IQ2_S", 22, 256, _IQ2S_LAYOUT, run=16, unit=0.25, even=False, spread=2.0),
    SignWords("IQ3_XXS", 18, 256, _IQ3XXS_LAYOUT, run=32, unit=0.5, even=True, spread=2.0),
    SignBytes("IQ3_S", 21, 256, _IQ3S_LAYOUT, run=32, unit=2.0, even=False, spread=2.0),
)
