"""What would become of each node, said before any work: for ``--dry-run`` and for early refusals."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.compiler.ir.errors import UnsupportedError
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import aten
from qcompile.compiler.ir.quant import FloatSpec
from qcompile.compiler.ir.text import dtype_text
from qcompile.passes.base import RunOptions, run
from qcompile.passes.graph.decompose_attention import DecomposeAttention
from qcompile.passes.graph.fusion import ACTIVATIONS
from qcompile.passes.quantization.insert_observers import InsertObservers
from qcompile.passes.quantization.quantize_stored_weights import RECURRENT
from qcompile.targets.base import Scheme
from qcompile.targets.device import Device
from qcompile.targets.onnx.capabilities import INTEGER_OPS, WHY_FLOAT
from qcompile.targets.onnx.export import OPSET, quiet
from qcompile.targets.plans import NodePlan

_DTYPES = {"f32", "f64", "f16", "bf16", "i8", "i16", "i32", "i64", "u8", "u16", "bool"}


def refuse_unsupported(graph: Graph) -> None:
    """Raise for dtypes and ops that ONNX has no form for.

    Raises:
        UnsupportedError: Names all of them with their places.
    """
    problems = []
    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and (kind := dtype_text(value.dtype)) not in _DTYPES:
            problems.append(f"{kind} (at {node.name})")
        if node.op == "call_function" and not _translatable(node):
            problems.append(f"{node.target} (at {node.name})")
    if problems:
        raise UnsupportedError(
            f"ONNX has no form for {len(problems)} part(s) of this model: {', '.join(problems)}; "
            "rewrite them in the model with ops that torch.onnx translates"
        )


def plan(graph: Graph, scheme: Scheme, device: Device) -> list[NodePlan]:
    """Return the plan of every computing node, in order; attention is taken apart as in a build."""
    integer: set[fx.Node] = set()
    if scheme.weight is not None and scheme.activation is not None:
        run(graph, [DecomposeAttention()], RunOptions(check=False))
        integer = InsertObservers(INTEGER_OPS, scheme.activation, scheme.weight).integer_nodes(
            graph
        )
    found = [_plan(graph, n, n in integer, scheme, device) for n in graph.nodes]
    return [p for p in found if p is not None]


def _plan(
    graph: Graph, node: fx.Node, integer: bool, scheme: Scheme, device: Device
) -> NodePlan | None:
    if not _computes(node):
        return None
    op = str(node.target).split(".")[1]
    sizes = _stored(graph, node, scheme)
    name = next(iter(sizes)) if sizes else node.name
    rest = (sum(sizes.values()), tuple(sizes))
    fact = device.facts("onnx")[scheme.precision]
    if integer:
        return NodePlan(name, op, str(scheme.activation).split()[0], fact.fast, fact.why, *rest)
    if node.target in ACTIVATIONS and scheme.activation is not None:
        why = "the quantizer after it saturates there"
        return NodePlan(name, op, "fused", True, why, *rest)
    if node.target in INTEGER_OPS.moves:
        return NodePlan(name, op, "moved", True, "moves values without computing", *rest)
    runs = f"fp{scheme.float_bits}"
    if scheme.activation is None:
        return NodePlan(name, op, runs, fact.fast, fact.why, *rest)
    return NodePlan(name, op, runs, False, WHY_FLOAT.get(op, "no integer kernel"), *rest)


def _computes(node: fx.Node) -> bool:
    """Return whether a node makes values from values: no size, no constant, no part of a tuple."""
    if node.target in RECURRENT:
        return True
    is_op = node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)
    return is_op and isinstance(node.meta.get("val"), Tensor) and bool(node.all_input_nodes)


def _stored(graph: Graph, node: fx.Node, scheme: Scheme) -> dict[str, int]:
    """Return the bytes of each constant that a layer, a table or a recurrent layer reads."""
    if node.target not in (*INTEGER_OPS.layers, *RECURRENT, aten.embedding.default):
        return {}
    found = {}
    for constant in [n for n in node.all_input_nodes if n.op == "get_attr"]:
        shape = tuple(graph.weights.peek(str(constant.target)).shape)
        is_weight = constant is node.args[1] or constant is node.args[0] or node.target in RECURRENT
        spec = scheme.weight if is_weight and len(shape) > 1 else None
        found[str(constant.target)] = (spec or FloatSpec(scheme.float_bits)).storage_bytes(shape)
    return found


def _translatable(node: fx.Node) -> bool:
    """Return whether ``torch.onnx`` has the op, or takes it apart into others.

    What nobody reads, such as an assertion about sizes, does not reach the file.
    """
    op = node.target
    if not isinstance(op, torch._ops.OpOverload) or op.namespace == "quantized_decomposed":
        return True
    if not node.users:
        return True
    known = _registry().is_registered(op) or op in _decomposed()
    return bool(known or op._can_decompose())


@cache
def _registry() -> Any:
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with quiet():
        return ONNXRegistry.from_torchlib(OPSET)


@cache
def _decomposed() -> frozenset[object]:
    return frozenset(torch.export.default_decompositions())
