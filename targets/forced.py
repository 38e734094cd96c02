"""Error engine, value by value, on the engine's own values: each op is judged alone (docs/decisions/002)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.interpret import ConstantReader
from qcompile.passes.quantization.records import sqnr_db


class ForcedRun(ConstantReader):
    """Runs the graph, but goes on from the engine's codes after each quantizer.

    Args:
        graph: The quantized graph.
        forced: What the engine stored, by quantizer.
    """

    def __init__(self, graph: Graph, forced: Mapping[fx.Node, Tensor]) -> None:
        super().__init__(graph.module, graph.weights)
        self.forced = forced
        self.rows: list[dict[str, Any]] = []

    def run_node(self, n: fx.Node) -> Any:
        """Run one node; compare and replace what the engine stored."""
        value = super().run_node(n)
        if (engine := self.forced.get(n)) is None:
            return value
        source = n.args[0]
        assert isinstance(source, fx.Node)
        self.rows.append(code_row(source.name, value, engine))
        return engine


def code_row(name: str, expected: Tensor, found: Tensor) -> dict[str, Any]:
    """Return how codes differ: share, and by how many at most."""
    distance = (expected.to(torch.int32) - found.to(torch.int32)).abs()
    return {**row(name, distance), "largest": int(distance.max()) if distance.numel() else 0}


def float_row(name: str, expected: Tensor, found: Tensor) -> dict[str, Any]:
    """Return how float values differ; what is infinite or NaN in both alike is equal.

    -1000 dB stands for another shape, an infinity or NaN in one of them only, or anything for zeros.
    """
    expected, found = expected.double(), found.double()
    if found.shape != expected.shape:
        return {**row(name, torch.full_like(expected, math.inf)), "sqnr_db": -1000.0}
    same = (expected == found) | (expected.isnan() & found.isnan())
    alike = same & ~expected.isfinite()
    expected, found = expected.where(~alike, 0.0), found.where(~alike, 0.0)
    measured = row(name, (expected - found).abs())
    if measured["differing"]:
        both_finite = bool(expected.isfinite().all() and found.isfinite().all())
        quality = sqnr_db([(expected, found)]) if both_finite else None
        measured["sqnr_db"] = -1000.0 if quality is None else quality
    return measured


def row(name: str, difference: Tensor) -> dict[str, Any]:
    """Return one line of error engine: how many values, which share differs, and by how much at most."""
    count = difference.numel()
    return {
        "name": name,
        "values": count,
        "differing": float((difference != 0).double().mean()) if count else 0.0,
        "largest": float(difference.max()) if count else 0.0,
        "sqnr_db": None,
    }
