"""Which ops an engine computes in integers: a table that each emitter fills in for its engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qcompile.compiler.ir.ops import aten

Op = Any
MOVES: frozenset[Op] = frozenset(
    {
        aten.flatten.using_ints,
        aten.view.default,
        aten.reshape.default,
        aten.permute.default,
        aten.transpose.int,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.unsqueeze.default,
        aten.slice.Tensor,
        aten.select.int,
        aten.max_pool2d.default,
    }
)
"""What moves or selects codes as it does values, in every engine so far."""


@dataclass(frozen=True)
class IntegerOps:
    """The engine's integer ops.

    Args:
        layers: Ops with a constant weight as second argument.
        needs_output: Those ops that stay float unless their output is quantized too.
        arithmetic: Ops on activations; integer where that spares a conversion.
        products: Products of two activations; always worth it.
        moves: Ops that only move or select values: their output has their input's scale.
        unit_range: Ops whose output lies in [0, 1] whatever the data.
    """

    layers: frozenset[Op]
    needs_output: frozenset[Op]
    arithmetic: frozenset[Op]
    products: frozenset[Op]
    moves: frozenset[Op]
    unit_range: frozenset[Op]

    def computes(self, op: Op) -> bool:
        """Return whether the op has an integer kernel of its own."""
        return op in self.layers or op in self.arithmetic or op in self.products
