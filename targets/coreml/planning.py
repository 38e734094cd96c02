"""What Core ML refuses, all of it before any work; and what would become of each node."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from qcompile.compiler.ir.errors import UnsupportedError
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import aten
from qcompile.compiler.ir.quant import FloatSpec
from qcompile.compiler.ir.text import dtype_text
from qcompile.passes.quantization.insert_observers import InsertObservers
from qcompile.passes.quantization.quantize_stored_weights import RECURRENT
from qcompile.targets.coreml.capabilities import INTEGER_OPS
from qcompile.targets.coreml.convert import ORIGIN, lower
from qcompile.targets.coreml.lowering import register
from qcompile.targets.coreml.tools import load_coremltools, quiet
from qcompile.targets.device import Device
from qcompile.targets.order import Scheme
from qcompile.targets.plans import NodePlan

_DTYPES = {"f16", "f32", "f64", "bf16", "i8", "i16", "i32", "i64", "u8", "bool"}
INT32 = (-(2**31), 2**31 - 1)
_COMPUTED = ("number", "Scalar", "Tensor")
"""Types of arguments, in PyTorch's schemas, whose numbers are operands."""
_TORCH = f"{Path(torch.__file__).parent}{os.sep}"


def refuse_unsupported(graph: Graph) -> None:
    """Raise for dtypes, shapes and ops that Core ML has no form for.

    Raises:
        UnsupportedError: Names all of them, with their source lines.
    """
    problems = [*_dtype_problems(graph), *_shape_problems(graph)]
    if not problems:
        problems = _op_problems(graph)
    if problems:
        raise UnsupportedError(
            f"Core ML has no form for {len(problems)} part(s) of this model: {'; '.join(problems)}; "
            "rewrite them in the model"
        )


def plan(graph: Graph, scheme: Scheme, device: Device) -> list[NodePlan]:
    """Return the plan of every computing node, in order."""
    integer: set[fx.Node] = set()
    if scheme.activation is not None and scheme.weight is not None:
        observers = InsertObservers(INTEGER_OPS, scheme.activation, scheme.weight)
        integer = observers.integer_nodes(graph)
    found = [_plan(graph, n, n in integer, scheme, device) for n in graph.nodes]
    return [p for p in found if p is not None]


def _plan(
    graph: Graph, node: fx.Node, integer: bool, scheme: Scheme, device: Device
) -> NodePlan | None:
    is_op = node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)
    if not is_op or not node.all_input_nodes or not _has_value(node):
        return None
    op = str(node.target).split(".")[1]
    sizes = _stored(graph, node, scheme)
    name = next(iter(sizes)) if sizes else node.name
    rest = (sum(sizes.values()), tuple(sizes))
    if node.target in INTEGER_OPS.moves:
        return NodePlan(name, op, "moved", True, "moves values without computing", *rest)
    fact = device.facts("coreml")[scheme.precision]
    if not (sizes or integer):
        return NodePlan(name, op, f"fp{scheme.float_bits}", True, "float arithmetic", *rest)
    return NodePlan(
        name, op, "int8" if integer else f"fp{scheme.float_bits}", fact.fast, fact.why, *rest
    )


def _has_value(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor) or node.target in RECURRENT


def _stored(graph: Graph, node: fx.Node, scheme: Scheme) -> dict[str, int]:
    if node.target not in (*INTEGER_OPS.layers, *RECURRENT, aten.embedding.default):
        return {}
    found = {}
    for constant in [n for n in node.all_input_nodes if n.op == "get_attr"]:
        shape = tuple(graph.weights.peek(str(constant.target)).shape)
        plain = FloatSpec(scheme.float_bits).storage_bytes(shape)
        coded = plain if scheme.weight is None else scheme.weight.storage_bytes(shape)
        found[str(constant.target)] = min(plain, coded) if len(shape) > 1 else plain
    return found


def _dtype_problems(graph: Graph) -> list[str]:
    found = []
    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and (kind := dtype_text(value.dtype)) not in _DTYPES:
            found.append(f"{kind} {_place(node)}")
    for name in graph.weights:
        tensor = graph.weights.peek(name)
        if (
            tensor.dtype == torch.int64
            and not tensor.is_meta
            and tensor.numel()
            and not _is_int32(tensor)
        ):
            found.append(f"int64 values beyond int32 in {name}")
    return found + [
        f"the number {number}, beyond int32 {_place(node)}"
        for node in graph.nodes
        for number in _numbers(node)
        if not INT32[0] <= number <= INT32[1]
    ]


def _numbers(node: fx.Node) -> list[int]:
    """Return the integers that a call computes with, not those that it counts elements by."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return []
    declared = node.target._schema.arguments
    given = [*zip(declared, node.args, strict=False)]
    given += [(a, node.kwargs[a.name]) for a in declared if a.name in node.kwargs]
    return [v for a, v in given if str(a.type) in _COMPUTED and type(v) is int]


def _is_int32(tensor: Tensor) -> bool:
    return bool(tensor.min() >= INT32[0] and tensor.max() <= INT32[1])


def _shape_problems(graph: Graph) -> list[str]:
    found = []
    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and free_unbacked_symbols(value.shape):
            found.append(f"a shape that depends on data, {node.target} {_place(node)}")
    return found


def _op_problems(graph: Graph) -> list[str]:
    load_coremltools()
    register()
    with quiet():
        from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY
        from coremltools.converters.mil.frontend.torch.utils import sanitize_op_kind
    found = []
    for node in [n for n in lower(graph).program.graph.nodes if n.op == "call_function"]:
        if isinstance(node.target, torch._ops.OpOverload):
            name = node.target.name()
        else:
            name = getattr(node.target, "__name__", str(node.target))
        if _TORCH_OPS_REGISTRY.get_func(sanitize_op_kind(name)) is None:
            found.append(f"{name} {_place(node)}")
    return found


def _place(node: fx.Node) -> str:
    """Return the model's own source line of a node, the innermost outside of torch, if it is known."""
    trace: Any = node.meta.get("stack_trace") or ""
    lines = [line.strip() for line in str(trace).splitlines()]
    files = [
        (line, lines[i + 1] if i + 1 < len(lines) else "")
        for i, line in enumerate(lines)
        if line.startswith("File ") and not line.startswith(f'File "{_TORCH}')
    ]
    name = node.meta.get("custom", {}).get(ORIGIN, node.name)
    if not files:
        return f"(at {name})"
    line, code = files[-1]
    file, _, number = line.removeprefix("File ").partition(", line ")
    where = file.strip('"').rpartition("/")[2]
    return f"(at {name}, {where}:{number.split(',')[0]}: {code})"
