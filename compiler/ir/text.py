"""The IR as text: for golden tests, ``--dump-ir``, and the check that a pass counted its rewrites."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from qcompile.compiler.ir.weights import Weights

if TYPE_CHECKING:
    from qcompile.compiler.ir.graph import DynamicDim

_DTYPES = {
    torch.float32: "f32", torch.float64: "f64", torch.float16: "f16", torch.bfloat16: "bf16",
    torch.int8: "i8", torch.int16: "i16", torch.int32: "i32", torch.int64: "i64",
    torch.uint8: "u8", torch.uint16: "u16", torch.bool: "bool",
}  # fmt: skip


def graph_text(
    graph: fx.Graph,
    weights: Weights,
    outputs: tuple[str, ...],
    dynamic: Mapping[str, Mapping[int, DynamicDim]],
) -> str:
    """Return one line a node.

    ``name = op(args)  # dtype[shape]``, and after a constant's shape eight digits of its SHA-256.
    Symbolic sizes are printed by the names that the user gave them.
    """
    symbols = _symbols(graph, dynamic)
    lines = [_line(node, weights, outputs, symbols) for node in graph.nodes]
    return "\n".join(lines) + "\n"


def dtype_text(dtype: torch.dtype) -> str:
    """Return the short name of a dtype, ``f32``."""
    return _DTYPES.get(dtype, str(dtype).removeprefix("torch."))


def shape_text(value: Any, symbols: Mapping[str, str] | None = None) -> str:
    """Return ``f32[batch, 3, 32, 32]`` for a tensor, ``""`` for anything else."""
    if not isinstance(value, Tensor):
        return ""
    sizes = ", ".join(_size(size, symbols or {}) for size in value.shape)
    return f"{dtype_text(value.dtype)}[{sizes}]"


def _size(size: Any, symbols: Mapping[str, str]) -> str:
    text = str(size)
    for symbol, name in symbols.items():
        text = text.replace(symbol, name)
    return text


def _symbols(graph: fx.Graph, dynamic: Mapping[str, Mapping[int, DynamicDim]]) -> dict[str, str]:
    found = {}
    for node in graph.find_nodes(op="placeholder"):
        for axis, dim in dynamic.get(str(node.target), {}).items():
            if isinstance(value := node.meta.get("val"), Tensor):
                found[str(value.shape[axis])] = dim.name
    return dict(sorted(found.items(), key=lambda item: (-len(item[0]), item[0])))


def _line(
    node: fx.Node, weights: Weights, outputs: tuple[str, ...], symbols: Mapping[str, str]
) -> str:
    if node.op == "output":
        names = zip(outputs, node.args[0], strict=True)  # type: ignore[arg-type]
        return "return " + ", ".join(f"{name}={value}" for name, value in names)
    if node.op == "get_attr":
        name = str(node.target)
        shape = shape_text(weights.peek(name))
        return f"{node.name} = get_attr {name}  # {shape} {weights.digest(name)}"
    comment = shape_text(node.meta.get("val"), symbols)
    suffix = f"  # {comment}" if comment else ""
    if node.op == "placeholder":
        return f"{node.name} = input {node.target}{suffix}"
    args = [_argument(a) for a in node.args]
    args += [f"{key}={_argument(value)}" for key, value in node.kwargs.items()]
    return f"{node.name} = {_target(node.target)}({', '.join(args)}){suffix}"


def _target(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    return str(getattr(target, "__name__", target))


def _argument(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_argument(v) for v in value) + "]"
    return str(value)
