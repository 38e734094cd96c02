"""What would become of each node, and what TVM's front end has no converter for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.compiler.ir.errors import UnsupportedError
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import DEQUANTIZE, DEQUANTIZE_PER_CHANNEL, QUANTIZE, aten
from qcompile.compiler.ir.quant import FloatSpec
from qcompile.passes.base import RunOptions, run
from qcompile.passes.graph.decompose_attention import DecomposeAttention
from qcompile.passes.graph.fusion import ACTIVATIONS
from qcompile.passes.quantization.insert_observers import InsertObservers
from qcompile.targets.base import Scheme
from qcompile.targets.device import Device
from qcompile.targets.plans import NodePlan
from qcompile.targets.tvm.capabilities import INTEGER_OPS, conv_reason
from qcompile.targets.tvm.machine import Machine
from qcompile.targets.tvm.program import decomposed, relax_module
from qcompile.targets.tvm.tools import load_tvm

_CONVERSIONS = (QUANTIZE, DEQUANTIZE, DEQUANTIZE_PER_CHANNEL)
_FREE = (aten.sym_size.int, aten.reshape.default, aten.permute.default, aten.flatten.using_ints)


def refuse_unsupported(graph: Graph) -> None:
    """Raise for what TVM's front end cannot import.

    Raises:
        UnsupportedError: Names all ops that have no converter, or says why one of them failed.
    """
    load_tvm()
    from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

    known = ExportedProgramImporter().create_convert_map()
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
    relax_module(graph, Machine("x86_64", (), ""))  # its shapes may be what TVM cannot infer


def plan(graph: Graph, scheme: Scheme, device: Device) -> list[NodePlan]:
    """Return the plan of every computing node, in order."""
    integer: set[fx.Node] = set()
    if scheme.weight is not None and scheme.activation is not None:
        run(graph, [DecomposeAttention()], RunOptions(check=False))
        observers = InsertObservers(INTEGER_OPS, scheme.activation, scheme.weight)
        integer = observers.integer_nodes(graph)
    return [_plan(graph, n, n in integer, scheme, device) for n in graph.nodes if _computes(n)]


def _plan(graph: Graph, node: fx.Node, integer: bool, scheme: Scheme, device: Device) -> NodePlan:
    op = str(node.target).split(".")[1]
    sizes = dict(_stored(graph, node, scheme))
    rest = (sum(sizes.values()), tuple(sizes))
    name = next(iter(sizes), node.name)
    fact = device.facts("tvm")[scheme.precision]
    if integer:
        return NodePlan(name, op, str(scheme.activation).split()[0], fact.fast, fact.why, *rest)
    if node.target in ACTIVATIONS and scheme.activation is not None:
        return NodePlan(name, op, "fused", True, "the quantizer after it saturates there", *rest)
    if node.target in INTEGER_OPS.moves:
        return NodePlan(name, op, "moved", True, "moves values without computing", *rest)
    why = "TVM's default schedule, not tuned" if scheme.activation is None else "no integer kernel"
    return NodePlan(name, op, "fp32", False, why, *rest)


def _computes(node: fx.Node) -> bool:
    is_op = node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)
    return is_op and isinstance(node.meta.get("val"), Tensor) and bool(node.all_input_nodes)


def _stored(graph: Graph, node: fx.Node, scheme: Scheme) -> Iterator[tuple[str, int]]:
    """Yield the bytes of each constant that a layer or a table reads."""
    if node.target not in (*INTEGER_OPS.layers, aten.embedding.default):
        return
    for constant in [n for n in node.all_input_nodes if n.op == "get_attr"]:
        shape = tuple(graph.weights.peek(str(constant.target)).shape)
        is_weight = len(shape) > 1 and node.target in INTEGER_OPS.layers
        spec: Any = (scheme.weight if is_weight else None) or FloatSpec(32)
        yield str(constant.target), spec.storage_bytes(shape)


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
