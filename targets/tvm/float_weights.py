"""Weights of float layers: as they are, or as the codes that the kernels decode."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import DEQUANTIZE, DEQUANTIZE_BLOCKWISE, DEQUANTIZE_PER_CHANNEL


@dataclass(frozen=True)
class FloatWeight:
    """What a kernel is given.

    Args:
        node: The constant: float32, or int8 codes.
        scale: float32 ``[out]`` or ``[out, groups]``; ``None`` for float32 weights.
        bits: Of a stored weight: 32, 8, 4.
    """

    node: fx.Node
    scale: Tensor | None = None
    bits: int = 32


def float_weight(graph: Graph, node: Any) -> FloatWeight | None:
    """Return a layer's weight; ``None`` for one that is not constant, or that kernels do not decode."""
    if not isinstance(node, fx.Node):
        return None
    if node.op == "get_attr":
        return FloatWeight(node) if node.meta["val"].dtype == torch.float32 else None
    decode: Decoder | None = _DECODERS.get(node.target)
    codes = node.args[0] if node.args else None
    if decode is None or not isinstance(codes, fx.Node) or codes.op != "get_attr":
        return None
    return decode(graph, node, codes) if codes.meta["val"].dtype == torch.int8 else None


def _per_tensor(graph: Graph, node: fx.Node, codes: fx.Node) -> FloatWeight | None:
    scale, zero, low, high = node.args[1:5]
    found = torch.full((graph.channels(codes, 0),), float(scale))  # type: ignore[arg-type]
    return None if zero else FloatWeight(codes, found, _bits(low, high))


def _per_channel(graph: Graph, node: fx.Node, codes: fx.Node) -> FloatWeight | None:
    scale, zeros = (graph.constant(n) for n in node.args[1:3])
    axis, low, high = node.args[3:6]
    if scale is None or zeros is None or axis != 0 or zeros.any():
        return None
    return FloatWeight(codes, scale.float(), _bits(low, high))


def _blockwise(graph: Graph, node: fx.Node, codes: fx.Node) -> FloatWeight | None:
    _, scale_node, zero, bits, float_bits = node.args
    scale = graph.constant(scale_node)
    if scale is None or zero is not None or float_bits != 32 or bits not in (4, 8):
        return None
    out, groups, *rest = scale.shape
    if any(size != 1 for size in rest):
        return None
    whole = scale.float().reshape(out, groups).expand(graph.channels(codes, 0), groups)
    return FloatWeight(codes, whole.squeeze(1).contiguous(), int(str(bits)))


def _bits(low: Any, high: Any) -> int:
    """Return in how many bits codes within limits are stored."""
    return 4 if low >= -8 and high <= 7 else 8


Decoder = Callable[[Graph, fx.Node, fx.Node], FloatWeight | None]
_DECODERS: Mapping[Any, Decoder] = {
    DEQUANTIZE: _per_tensor,
    DEQUANTIZE_PER_CHANNEL: _per_channel,
    DEQUANTIZE_BLOCKWISE: _blockwise,
}
