"""What would become of each node, and what TVM's front end has no converter for."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from qcompile.compiler.ir.errors import UnsupportedError
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import aten
from qcompile.targets import integer_plan
from qcompile.targets.base import Scheme
from qcompile.targets.device import Device
from qcompile.targets.plans import NodePlan
from qcompile.targets.tvm.capabilities import INTEGER_OPS, conv_reason
from qcompile.targets.tvm.machine import Machine
from qcompile.targets.tvm.program import decomposed, front_end_ops, imported

_FREE = (aten.sym_size.int, aten.reshape.default, aten.permute.default, aten.flatten.using_ints)


def refuse_unsupported(graph: Graph, machine: Machine) -> None:
    """Raise for what TVM's front end cannot import.

    Raises:
        UnsupportedError: Names all ops that have no converter, or says why one of them failed.
    """
    known = front_end_ops()
    program = decomposed(graph)
    problems = [
        f"{node.target} (at {node.name})"
        for node in program.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload) and node.target.__name__ not in known
    ]
    if problems:
        raise UnsupportedError(
            f"TVM has no form for {len(problems)} part(s) of this model: {', '.join(problems)}; "
            "rewrite them in the model, or use --format onnx"
        )
    imported(program, machine)  # its shapes may be what TVM cannot infer


def plan(graph: Graph, scheme: Scheme, device: Device) -> list[NodePlan]:
    """Return the plan of every computing node, in order."""
    fact = device.facts("tvm")[scheme.precision]
    return integer_plan.plan(graph, scheme, fact, INTEGER_OPS, (), {})


def floats(graph: Graph) -> list[dict[str, Any]]:
    """Return what a lowered graph computes in float: ``op``, ``count``, ``why``."""
    counted: Counter[tuple[str, str]] = Counter()
    for node in graph.nodes:
        if node.op != "call_function" or getattr(node.target, "namespace", "") != "aten":
            continue
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.is_floating_point() and node.target not in _FREE:
            op = str(node.target).split(".")[1]
            reason = conv_reason(node) if node.target == aten.conv2d.default else ""
            counted[op, reason or "no integer kernel, or no codes around it"] += 1
    return [{"op": op, "count": n, "why": why} for (op, why), n in sorted(counted.items())]
