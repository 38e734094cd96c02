"""The inputs and outputs of a graph as a manifest describes them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from qcompile.compiler.ir.graph import Graph
from qcompile.runtime.manifest import TensorInfo


def inputs(graph: Graph) -> tuple[TensorInfo, ...]:
    """Return the inputs as the manifest describes them."""
    found = []
    for name, example in graph.inputs.items():
        free = graph.dynamic.get(name, {})
        shape = tuple(free[a].name if a in free else s for a, s in enumerate(example.shape))
        found.append(TensorInfo(name, _numpy_name(example), shape))
    return tuple(found)


def outputs(graph: Graph) -> tuple[TensorInfo, ...]:
    """Return the outputs as the manifest describes them."""
    (output,) = graph.module.graph.find_nodes(op="output")
    symbols = {}
    for node in graph.module.graph.find_nodes(op="placeholder"):
        for axis, dim in graph.dynamic.get(str(node.target), {}).items():
            symbols[str(node.meta["val"].shape[axis])] = dim.name
    found = []
    for name, node in zip(graph.outputs, output.args[0], strict=True):
        value: Any = node.meta["val"] if "val" in node.meta else graph.constant(node)
        shape = [symbols.get(str(s), int(s) if str(s).isdigit() else str(s)) for s in value.shape]
        found.append(TensorInfo(name, _numpy_name(value), tuple(shape)))
    return tuple(found)


def _numpy_name(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
