"""F32, F16 and BF16: formats without blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompile.compiler.ir.blocks.bits import as_dtype
from qcompile.compiler.ir.blocks.format import BlockFormat, Fields


@dataclass(frozen=True)
class FloatFormat(BlockFormat):
    """Numbers of one floating-point dtype; its ``codes`` are the numbers."""

    dtype: torch.dtype

    def read(self, parts: Mapping[str, Tensor]) -> Fields:
        """Return the numbers."""
        return Fields(as_dtype(parts["x"], self.dtype))

    def write(self, fields: Fields) -> dict[str, Tensor]:
        """Return the bytes of the numbers."""
        return {"x": as_dtype(fields.codes, torch.uint8)}

    def values(self, fields: Fields) -> Tensor:
        """Return the numbers as float32."""
        return fields.codes.float()

    def fit(self, x: Tensor, importance: Tensor | None) -> Fields:
        """Return the nearest numbers, half to even.

        Raises:
            ValueError: A number above the dtype's largest.
        """
        codes = x.to(self.dtype)
        if not codes.isfinite().all():
            raise ValueError(
                f"values up to {x.abs().max():g} are too large for {self.name}, whose largest number is "
                f"{torch.finfo(self.dtype).max:g}: use F32"
            )
        return Fields(codes)


FLOAT_FORMATS = (
    FloatFormat("F32", 0, 1, (("x", 4),), torch.float32),
    FloatFormat("F16", 1, 1, (("x", 2),), torch.float16),
    FloatFormat("BF16", 30, 1, (("x", 2),), torch.bfloat16),
)
