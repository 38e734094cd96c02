"""What would become of each node, said before any work: for ``--dry-run`` and for early refusals."""

from __future__ import annotations

from torch import Tensor, fx

from qcompile.compiler.ir.errors import UnsupportedError
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.text import dtype_text
from qcompile.passes.graph.fusion import ACTIVATIONS
from qcompile.passes.quantization.insert_observers import InsertObservers
from qcompile.targets.base import NodePlan, Scheme
from qcompile.targets.device import Device
from qcompile.targets.onnx.capabilities import INTEGER_OPS, WHY_FLOAT

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
    """Return the plan of every computing node, in order."""
    integer: set[fx.Node] = set()
    if scheme.weight is not None and scheme.activation is not None:
        integer = InsertObservers(INTEGER_OPS, scheme.activation, scheme.weight).integer_nodes(
            graph
        )
    found = [_plan(graph, n, n in integer, scheme, device) for n in graph.nodes]
    return [p for p in found if p is not None]


def _plan(
    graph: Graph, node: fx.Node, integer: bool, scheme: Scheme, device: Device
) -> NodePlan | None:
    if node.op != "call_function" or not isinstance(node.meta.get("val"), Tensor):
        return None
    op = str(node.target).split(".")[1] if "." in str(node.target) else str(node.target)
    name, size = node.name, 0
    if node.target in INTEGER_OPS.layers:
        weight = node.args[1]
        assert isinstance(weight, fx.Node)
        name = str(weight.target)
        size = _stored_bytes(graph, node, scheme)
    fact = device.precisions[scheme.precision]
    if integer:
        return NodePlan(name, op, str(scheme.activation).split()[0], fact.fast, fact.why, size)
    if node.target in ACTIVATIONS and scheme.activation is not None:
        return NodePlan(name, op, "fused", True, "the quantizer after it saturates there", size)
    if node.target in INTEGER_OPS.moves:
        return NodePlan(name, op, "moved", True, "moves values without computing", size)
    runs = f"fp{scheme.float_bits}"
    if scheme.activation is None:
        return NodePlan(name, op, runs, fact.fast, fact.why, size)
    return NodePlan(name, op, runs, False, WHY_FLOAT.get(op, "no integer kernel"), size)


def _stored_bytes(graph: Graph, node: fx.Node, scheme: Scheme) -> int:
    total = 0
    for index, argument in enumerate(node.args[1:3]):
        if not isinstance(argument, fx.Node) or argument.op != "get_attr":
            continue
        shape = tuple(graph.weights.peek(str(argument.target)).shape)
        count = 1
        for size in shape:
            count *= size
        quantized = index == 0 and scheme.weight is not None
        total += scheme.weight.storage_bytes(shape) if quantized else count * scheme.float_bits // 8  # type: ignore[union-attr]
    return total


def _translatable(node: fx.Node) -> bool:
    import torch

    if not isinstance(node.target, torch._ops.OpOverload):
        return True
    if node.target.namespace not in ("aten", "prims", "quantized_decomposed", "qcompile"):
        return node.target in _registered()
    return True


def _registered() -> set[object]:
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    return set(ONNXRegistry.from_torchlib().functions)
