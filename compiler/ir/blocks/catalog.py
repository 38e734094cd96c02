"""Every block format by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from qcompile.compiler.ir.blocks.floats import FLOAT_FORMATS
from qcompile.compiler.ir.blocks.format import BlockFormat
from qcompile.compiler.ir.blocks.k_affine import AFFINE_K_FORMATS
from qcompile.compiler.ir.blocks.k_signed import SIGNED_K_FORMATS
from qcompile.compiler.ir.blocks.lattice import LATTICE_FORMATS
from qcompile.compiler.ir.blocks.legacy import LEGACY_FORMATS
from qcompile.compiler.ir.blocks.table import TABLE_FORMATS

_ALL: tuple[BlockFormat, ...] = (
    *FLOAT_FORMATS,
    *LEGACY_FORMATS,
    *AFFINE_K_FORMATS,
    *SIGNED_K_FORMATS,
    *TABLE_FORMATS,
    *LATTICE_FORMATS,
)

BLOCK_FORMATS: Mapping[str, BlockFormat] = MappingProxyType({f.name: f for f in _ALL})
