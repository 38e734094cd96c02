"""Error engine, value by value: what the saved package computes against the quantized graph.

As for ONNX (docs/decisions/002), each value is compared with what the graph makes of the *package's own*
values before it, so that each op is judged alone. Compressed weights must be equal in every value.

Between an op in float16 and the same op in float32 on the same inputs stand a rounding of the result
(2**-12 at most, relative: 77 dB for values of one size) and, where an op of the graph is several of the
program, one for each of them; sums in another order add far less. 50 dB leaves room for some twenty
roundings and for values of different sizes; a wrong axis, pad or zero point leaves less than 30.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.interpret import ConstantReader
from qcompile.compiler.ir.ops import QUANTIZE, WEIGHT_DECODERS
from qcompile.targets.coreml.lowering import TABLE
from qcompile.targets.coreml.names import plain_name
from qcompile.targets.coreml.recurrent import GATES
from qcompile.targets.coreml.reference.interpreter import Interpreter
from qcompile.targets.coreml.reference.package import read_package
from qcompile.targets.coreml.session import output_tensors
from qcompile.targets.forced import code_row, float_row, row
from qcompile.targets.order import Emitted

LIMIT_DB = {16: 50.0, 32: 90.0}
"""By the bits of floats in the program; see above."""


def engine_errors(
    graph: Graph,
    package: Path,
    emitted: Emitted,
    inputs: Mapping[str, Any],
    given: Mapping[str, Tensor],
) -> list[dict[str, Any]]:
    """Return a row a value that graph and package share, as ``Emitter.engine_errors`` says.

    Args:
        graph: The quantized graph.
        package: The saved ``.mlpackage``.
        emitted: What ``emit`` returned.
        inputs: The package's inputs.
        given: The same as the graph takes them.
    """
    interpreter = Interpreter(read_package(package), cache_bytes=0)  # each weight is read once
    nodes = {n.name: n for n in graph.nodes}
    seen: dict[fx.Node, Tensor] = {}
    weights: dict[fx.Node, dict[str, Any]] = {}

    def observe(name: str, value: Any) -> None:
        plain = plain_name(name)
        moved_from = plain.removesuffix(GATES).removesuffix(TABLE)
        node = nodes.get(emitted.origins.get(name, emitted.origins.get(moved_from, "")))
        if node is None or not isinstance(value, Tensor):
            return
        if _is_weight(node):
            moved = plain.endswith(GATES) and name not in emitted.origins
            expected = decoded(graph, node)
            weights[node] = _weight_row(node, expected, _as_torch(value) if moved else value)
        else:
            seen[node] = value.clone()

    tensors = {
        name: torch.from_numpy(np.array(inputs[name])).to(kind.dtype)
        for name, kind in interpreter.inputs
    }
    found = output_tensors(interpreter.run(tensors, observe), emitted.engine["options"])
    limit = LIMIT_DB[emitted.engine["options"]["float_bits"]]
    run = _Forced(graph, seen, weights, limit)
    with torch.no_grad():
        outputs = run.run(*(given[name] for name in graph.inputs))
    for name, expected, value in zip(graph.outputs, outputs, found, strict=True):
        run.rows.append({**float_row(name, expected, value), "limit_db": limit})
    return run.rows


def _as_torch(weight: Tensor) -> Tensor:
    """Return a weight of an LSTM with its gates in PyTorch's order again."""
    i, f, o, g = weight.chunk(4)
    return torch.cat([i, f, g, o])


def decoded(graph: Graph, node: fx.Node) -> Tensor:
    """Return what a decoder makes of the graph's constants, by other decoders if need be."""

    def read(argument: fx.Node) -> Tensor:
        value = graph.constant(argument)
        return decoded(graph, argument) if value is None else value

    args, kwargs = fx.map_arg((node.args, node.kwargs), read)
    assert callable(node.target)
    value: Tensor = node.target(*args, **kwargs)
    return value


class _Forced(ConstantReader):
    """Runs the graph, but goes on from the package's value wherever there is one."""

    def __init__(
        self,
        graph: Graph,
        seen: Mapping[fx.Node, Tensor],
        weights: Mapping[fx.Node, dict[str, Any]],
        limit_db: float,
    ) -> None:
        super().__init__(graph.module, graph.weights)
        self.source, self.seen, self.compared, self.limit_db = graph, seen, weights, limit_db
        self.rows: list[dict[str, Any]] = []

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if not isinstance(value, Tensor):
            return value
        if _is_weight(n):
            self.rows.append(self._weight(n, value))
            return value
        found = self.seen.get(n)
        if found is None or found.shape != value.shape:
            return value
        if n.target == QUANTIZE:
            assert isinstance(n.args[0], fx.Node)
            self.rows.append(code_row(n.args[0].name, value, found))
        elif value.is_floating_point():
            self.rows.append({**float_row(n.name, value, found), "limit_db": self.limit_db})
        return found.to(value.dtype)

    def _weight(self, node: fx.Node, value: Tensor) -> dict[str, Any]:
        """Return a weight's row; coremltools stores equal weights once, under the name of one."""
        if node in self.compared:
            return self.compared[node]
        twins = (n for n, row in self.compared.items() if row["values"] == value.numel())
        same = any(torch.equal(decoded(self.source, n), value) for n in twins)
        return _weight_row(node, value, value if same else None)


def _is_weight(node: fx.Node) -> bool:
    codes = node.args[0] if node.args else None
    return node.target in WEIGHT_DECODERS and isinstance(codes, fx.Node) and codes.op == "get_attr"


def _weight_row(node: fx.Node, value: Tensor, found: Tensor | None) -> dict[str, Any]:
    """Compare a decoded weight; one that is not in the package differs in every value."""
    codes = node.args[0]
    assert isinstance(codes, fx.Node)
    if found is None or found.numel() != value.numel():
        difference = torch.full_like(value, math.inf)
    else:  # a palette's table has the palette's rank
        difference = (value - found.float().reshape(value.shape)).abs()
    return {**row(str(codes.target), difference), "exact": True}
