"""What would become of each node, said before any work: for ``--dry-run`` and for early refusals."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, fx

from qcompile.compiler.ir.errors import UnsupportedError
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import aten
from qcompile.compiler.ir.text import dtype_text
from qcompile.passes.quantization.quantize_stored_weights import RECURRENT
from qcompile.targets import integer_plan
from qcompile.targets.device import Device
from qcompile.targets.onnx.capabilities import INTEGER_OPS, WHY_FLOAT
from qcompile.targets.onnx.registry import registry
from qcompile.targets.order import Scheme
from qcompile.targets.plans import NodePlan

TABLES = (*RECURRENT, aten.embedding.default)
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
    fact = device.facts("onnx")[scheme.precision]
    return integer_plan.plan(graph, scheme, fact, INTEGER_OPS, TABLES, WHY_FLOAT)


def _translatable(node: fx.Node) -> bool:
    """Return whether ``torch.onnx`` has the op, or takes it apart into others.

    What nobody reads, such as an assertion about sizes, does not reach the file.
    """
    op = node.target
    if not isinstance(op, torch._ops.OpOverload) or op.namespace == "quantized_decomposed":
        return True
    if not node.users:
        return True
    known = registry().is_registered(op) or op in decomposed()
    return bool(known or op._can_decompose())


@cache
def decomposed() -> frozenset[object]:
    """Return the ops that ``torch.export`` takes apart."""
    return frozenset(torch.export.default_decompositions())
