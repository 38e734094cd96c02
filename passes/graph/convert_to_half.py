"""Store and compute in float16, with float32 inputs and outputs.

Before:  y = linear(x, w)
After:   h = to(x, float16);  z = linear(h, w as float16);  y = to(z, float32)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.compiler.ir.errors import UnsupportedError
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import aten
from qcompile.passes.base import Pass

_CAST = aten.to.dtype
LARGEST = 65504.0


@dataclass(frozen=True)
class ConvertToHalf(Pass):
    """Convert every float32 constant and value; constants beyond float16's range are refused."""

    name = "convert-to-half"

    def requires(self, graph: Graph) -> None:
        big = [n for n in graph.weights if _too_large(graph.weights[n])]
        if big:
            raise UnsupportedError(
                f"{len(big)} weight(s) exceed float16's range of {LARGEST:g}: {', '.join(big)}; "
                "use -p fp32 or int8"
            )

    def run(self, graph: Graph) -> int:
        converted = self._convert_constants(graph) + self._cast_inputs(graph)
        for node in graph.nodes:
            if node.op == "call_function":
                converted += _use_half(node)
                graph.infer(node)
        return converted + self._cast_outputs(graph)

    def _convert_constants(self, graph: Graph) -> int:
        found = [n for n in graph.weights if graph.weights.peek(n).dtype == torch.float32]
        for name in found:
            graph.weights[name] = graph.weights[name].half()
        for node in graph.module.graph.find_nodes(op="get_attr"):
            graph.infer_constant(node)
        return len(found)

    def _cast_inputs(self, graph: Graph) -> int:
        inputs = [n for n in graph.module.graph.find_nodes(op="placeholder") if _needs_cast(n)]
        for node in inputs:
            users = list(node.users)
            with graph.after(inputs[-1]):
                cast = graph.add_call(_CAST, node, torch.float16)
            for user in users:
                user.replace_input_with(node, cast)
        return len(inputs)

    def _cast_outputs(self, graph: Graph) -> int:
        (output,) = graph.module.graph.find_nodes(op="output")
        cast = {}
        for value in output.all_input_nodes:
            if value.meta["val"].dtype == torch.float16:
                with graph.before(output):
                    cast[value] = graph.add_call(_CAST, value, torch.float32)
        for value, new in cast.items():
            output.replace_input_with(value, new)
        return len(cast)


def _use_half(node: fx.Node) -> int:
    """Let an op that names float32 as its result name float16; return whether it did."""
    if torch.float32 not in (*node.args, *node.kwargs.values()) or _is_last_cast(node):
        return 0

    def half(value: Any) -> Any:
        return torch.float16 if value is torch.float32 else value

    node.args = tuple(half(a) for a in node.args)
    node.kwargs = {key: half(value) for key, value in node.kwargs.items()}
    return 1


def _is_last_cast(node: fx.Node) -> bool:
    """Return whether a node turns a float16 value into an output."""
    source = node.args[0] if node.target == _CAST else None
    is_half = isinstance(source, fx.Node) and source.meta["val"].dtype == torch.float16
    return is_half and all(user.op == "output" for user in node.users)


def _needs_cast(placeholder: fx.Node) -> bool:
    value = placeholder.meta.get("val")
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        return False
    return any(u.target != _CAST or u.args[1] != torch.float16 for u in placeholder.users)


def _too_large(tensor: Tensor) -> bool:
    beyond = torch.isfinite(tensor) & (tensor.abs() > LARGEST)  # an infinity stays one
    return tensor.dtype == torch.float32 and bool(beyond.any())
