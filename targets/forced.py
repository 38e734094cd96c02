"""The quantized graph, run on the engine's own codes: each op is judged alone (docs/decisions/002)."""

from __future__ import annotations

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
    """Return how codes differ: share and size."""
    distance = (expected.to(torch.int32) - found.to(torch.int32)).abs()
    differing = float((distance != 0).double().mean()) if distance.numel() else 0.0
    largest = int(distance.max()) if distance.numel() else 0
    row = {"name": name, "values": distance.numel(), "differing": differing}
    return {**row, "largest": largest, "sqnr_db": None}


def float_row(name: str, expected: Tensor, found: Tensor) -> dict[str, Any]:
    """Return how float values differ."""
    difference = (expected.double() - found.double()).abs()
    quality = sqnr_db([(expected, found)])
    return {
        "name": name,
        "values": found.numel(),
        "differing": float((difference != 0).double().mean()),
        "largest": float(difference.max()),
        "sqnr_db": None if quality is None or quality == float("inf") else quality,
    }
