"""What would become of each node in an engine that computes q/dq pairs in integers, before any work."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import aten
from qcompile.compiler.ir.quant import FloatSpec
from qcompile.passes.base import RunOptions, run
from qcompile.passes.graph.decompose_attention import DecomposeAttention
from qcompile.passes.graph.fusion import ACTIVATIONS
from qcompile.passes.quantization.insert_observers import InsertObservers
from qcompile.passes.quantization.integer_ops import IntegerOps
from qcompile.passes.quantization.quantize_stored_weights import RECURRENT
from qcompile.targets.cpu_facts import PrecisionFact
from qcompile.targets.order import Scheme
from qcompile.targets.plans import NodePlan


def plan(
    graph: Graph,
    scheme: Scheme,
    fact: PrecisionFact,
    ops: IntegerOps,
    tables: Collection[Any],
    why_float: Mapping[str, str],
) -> list[NodePlan]:
    """Return the plan of every computing node, in order; attention is taken apart as in a build.

    Args:
        graph: The float graph, the caller's own copy.
        scheme: Formats.
        fact: Of the precision on the device.
        ops: What the engine computes in integers.
        tables: Other ops whose weights are stored in codes: tables, recurrent layers.
        why_float: By the name of an op, why it does not.
    """
    integer: set[fx.Node] = set()
    if scheme.weight is not None and scheme.activation is not None:
        run(graph, [DecomposeAttention()], RunOptions(check=False))
        observers = InsertObservers(ops, scheme.activation, scheme.weight)
        integer = observers.integer_nodes(graph)
    planner = _Planner(graph, scheme, fact, ops, tables, why_float)
    return [planner.plan(n, n in integer) for n in graph.nodes if _computes(n)]


class _Planner:
    def __init__(
        self,
        graph: Graph,
        scheme: Scheme,
        fact: PrecisionFact,
        ops: IntegerOps,
        tables: Collection[Any],
        why_float: Mapping[str, str],
    ) -> None:
        self.graph, self.scheme, self.fact = graph, scheme, fact
        self.ops, self.tables, self.why_float = ops, tables, why_float

    def plan(self, node: fx.Node, integer: bool) -> NodePlan:
        op = str(node.target).split(".")[1]
        sizes = self._stored(node)
        name = next(iter(sizes), node.name)
        rest = (sum(sizes.values()), tuple(sizes))
        fact, activation = self.fact, self.scheme.activation
        if integer:
            return NodePlan(name, op, str(activation).split()[0], fact.fast, fact.why, *rest)
        if node.target in ACTIVATIONS and activation is not None:
            why = "the quantizer after it saturates there"
            return NodePlan(name, op, "fused", True, why, *rest)
        if node.target in self.ops.moves:
            return NodePlan(name, op, "moved", True, "moves values without computing", *rest)
        runs = f"fp{self.scheme.float_bits}"
        if activation is None:
            return NodePlan(name, op, runs, fact.fast, fact.why, *rest)
        return NodePlan(name, op, runs, False, self.why_float.get(op, "no integer kernel"), *rest)

    def _stored(self, node: fx.Node) -> dict[str, int]:
        """Return the bytes of each constant that a layer, a table or a recurrent layer reads."""
        if node.target not in (*self.ops.layers, *RECURRENT, aten.embedding.default):
            return {}
        found = {}
        for constant in [n for n in node.all_input_nodes if n.op == "get_attr"]:
            shape = tuple(self.graph.weights.peek(str(constant.target)).shape)
            in_codes = node.target in self.ops.layers or node.target in self.tables
            is_weight = constant in node.args[:2] or node.target in RECURRENT
            spec = self.scheme.weight if in_codes and is_weight and len(shape) > 1 else None
            plain = FloatSpec(self.scheme.float_bits)
            found[str(constant.target)] = (spec or plain).storage_bytes(shape)
        return found


def _computes(node: fx.Node) -> bool:
    """Return whether a node makes values from values: no size, no constant, no part of a tuple."""
    if node.target in RECURRENT:
        return True
    is_op = node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)
    return is_op and isinstance(node.meta.get("val"), Tensor) and bool(node.all_input_nodes)
