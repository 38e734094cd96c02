"""What would become of each node, and what TVM's front end has no converter for."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.compiler.ir.errors import UnsupportedError
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import WEIGHT_DECODERS, aten
from qcompile.targets import integer_plan
from qcompile.targets.device import Device
from qcompile.targets.order import Scheme
from qcompile.targets.plans import NodePlan
from qcompile.targets.tvm.capabilities import INTEGER_OPS, conv_reason
from qcompile.targets.tvm.machine import Machine
from qcompile.targets.tvm.program import decomposed, front_end_ops, imported

UNTUNED = "TVM's default schedule, neither tiled nor tuned"
_PRODUCTS = (
    *("matmul", "bmm", "mm", "addmm", "conv1d", "conv3d", "convolution", "conv_transpose1d"),
    *("conv_transpose2d", "scaled_dot_product_attention", "lstm", "gru", "rnn_tanh", "rnn_relu"),
)
"""Ops without a kernel whose time grows with a product of three sizes."""
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
    is_float = scheme.activation is None and Machine.of(device).vectors is not None
    reasons = _slow(graph) if is_float else {}
    rows = integer_plan.plan(graph, scheme, fact, INTEGER_OPS, (), {})
    return [replace(r, fast=False, why=reasons[r.name]) if r.name in reasons else r for r in rows]


def _slow(graph: Graph) -> dict[str, str]:
    """Return why a float program has no kernel for a node, by its name and those of its constants."""
    found = {}
    for node in graph.nodes:
        if reason := _slow_reason(node):
            constants = [str(n.target) for n in node.all_input_nodes if n.op == "get_attr"]
            found.update(dict.fromkeys((node.name, *constants), reason))
    return found


def _slow_reason(node: fx.Node) -> str:
    if not isinstance(node.target, torch._ops.OpOverload):
        return ""
    if node.target == aten.conv2d.default:
        reason = conv_reason(node)
        return reason and f"{reason}: {UNTUNED}"
    name = node.target.overloadpacket.__name__
    is_product = name in _PRODUCTS or (name == "linear" and not _is_stored(node.args[1]))
    return UNTUNED if is_product else ""


def _is_stored(weight: Any) -> bool:
    return weight.op == "get_attr" or weight.target in WEIGHT_DECODERS


def slow_floats(graph: Graph) -> list[dict[str, Any]]:
    """Return what a lowered graph leaves to TVM's default schedule: ``op``, ``count``, ``why``."""
    slow = [(str(n.target).split(".")[1], why) for n in graph.nodes if (why := _slow_reason(n))]
    return [{"op": op, "count": n, "why": why} for (op, why), n in sorted(Counter(slow).items())]


def floats(graph: Graph) -> list[dict[str, Any]]:
    """Return what a lowered graph computes in float: ``op``, ``count``, ``why``."""
    counted: Counter[tuple[str, str]] = Counter()
    for node in graph.nodes:
        if node.op != "call_function" or getattr(node.target, "namespace", "") != "aten":
            continue
        value = node.meta.get("val")
        value = value[0] if isinstance(value, tuple) else value
        if isinstance(value, Tensor) and value.is_floating_point() and node.target not in _FREE:
            op = str(node.target).split(".")[1]
            reason = conv_reason(node) if node.target == aten.conv2d.default else ""
            counted[op, reason or "no integer kernel, or no codes around it"] += 1
    return [{"op": op, "count": n, "why": why} for (op, why), n in sorted(counted.items())]
