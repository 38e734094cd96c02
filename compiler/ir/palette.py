"""``PaletteSpec``: weights stored as indices into small tables of values, and what they decode to.

    w[o, ...] = table[o // (out / groups)][index[o, ...]] * channel_scale[o]

Core ML's ``constexpr_lut_to_dense`` stores this (FORMATS A.8): a table for the whole tensor or one for
each run of output channels; entries in float16, or in int8 with one float16 scale for all tables.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from qcompile.compiler.ir.storage import to_half


class Entries(StrEnum):
    """How the values of a table are stored."""

    FP16 = "fp16"
    INT8 = "int8"


@dataclass(frozen=True)
class PaletteParams:
    """The tables of one weight.

    Args:
        lut: float32 ``[groups, 2**bits]``, each row ascending, values that float16 holds.
        scale: float32 ``[out]``, positive, values that float16 holds; ``None`` without channel scales.
        lut_codes: int8, ``lut`` in units of ``lut_scale``; ``None`` for float16 entries.
        lut_scale: float32 ``[]``, a float16 value; ``None`` for float16 entries.
    """

    lut: Tensor
    scale: Tensor | None = None
    lut_codes: Tensor | None = None
    lut_scale: Tensor | None = None

    def __post_init__(self) -> None:
        assert (self.lut_codes is None) == (self.lut_scale is None)


@dataclass(frozen=True)
class PaletteSpec:
    """A weight format of indices into tables.

    Args:
        bits: Of an index: 1, 2, 3, 4, 6 or 8.
        group_size: Output channels that share a table; ``None`` for one table.
        channel_scale: Whether each output channel has a scale that multiplies its entries.
        entries: How tables are stored.

    Raises:
        ValueError: A width or a group size that there is not.
    """

    bits: int = 4
    group_size: int | None = None
    channel_scale: bool = False
    entries: Entries = Entries.FP16

    def __post_init__(self) -> None:
        if self.bits not in (1, 2, 3, 4, 6, 8):
            raise ValueError(f"PaletteSpec has 1, 2, 3, 4, 6 or 8 bits, not {self.bits}")
        if self.group_size is not None and self.group_size < 1:
            raise ValueError(f"group_size={self.group_size} holds no channel: give 1 or more")

    @property
    def size(self) -> int:
        """Entries of a table."""
        return 1 << self.bits

    def __str__(self) -> str:
        shape = "per_tensor" if self.group_size is None else f"per_channels({self.group_size})"
        scale = " channel-scale" if self.channel_scale else ""
        return f"palette{self.bits} {self.entries} {shape}{scale}"

    @classmethod
    def parse(cls, text: str) -> PaletteSpec:
        """Read what ``str`` wrote, such as ``palette4 fp16 per_channels(16)``.

        Raises:
            ValueError: The text is no spec.
        """
        pattern = r"palette(\d) (fp16|int8) (?:per_tensor|per_channels\((\d+)\))( channel-scale)?"
        if not (match := re.fullmatch(pattern, text)):
            raise ValueError(f"{text!r} is no PaletteSpec, such as 'palette4 fp16 per_tensor'")
        bits, entries, group, scale = match.groups()
        return cls(int(bits), None if group is None else int(group), bool(scale), Entries(entries))

    def groups(self, shape: tuple[int, ...]) -> int:
        """Return how many tables a weight ``[out, ...]`` has."""
        return 1 if self.group_size is None else -(-shape[0] // self.group_size)

    def storage_bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of indices, tables and scales."""
        indices = -(-_count(shape) * self.bits // 8)
        tables = self.groups(shape) * self.size
        entries = tables + 2 if self.entries is Entries.INT8 else 2 * tables
        return indices + entries + (2 * shape[0] if self.channel_scale else 0)

    def bits_per_weight(self, shape: tuple[int, ...]) -> float:
        """Return ``storage_bytes`` in bits for each element."""
        return 8 * self.storage_bytes(shape) / max(1, _count(shape))

    def encode(self, x: Tensor, params: PaletteParams) -> Tensor:
        """Return the index of the nearest value for each weight: uint8, the shape of ``x``."""
        rows = x.flatten(1) if params.scale is None else x.flatten(1) / params.scale[:, None]
        grouped = rows.reshape(len(params.lut), -1).contiguous()
        return nearest_entry(params.lut, grouped).reshape(x.shape).to(torch.uint8)

    def decode(self, codes: Tensor, params: PaletteParams) -> Tensor:
        """Return the real values of indices: float16 numbers in float32."""
        grouped = codes.reshape(len(params.lut), -1).long()
        values = params.lut.gather(1, grouped).reshape(codes.shape)
        if params.scale is not None:
            values = values * params.scale.reshape(-1, *[1] * (codes.dim() - 1))
        return to_half(values)


def nearest_entry(lut: Tensor, values: Tensor) -> Tensor:
    """Return the index of the entry nearest to each value; of two as near, the larger entry.

    Args:
        lut: ``[groups, entries]``, each row ascending.
        values: ``[groups, n]``, of the same dtype.
    """
    middles = ((lut[:, 1:] + lut[:, :-1]) / 2).contiguous()
    return torch.searchsorted(middles, values.contiguous(), right=True)


def _count(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())
