"""Spell scaled dot-product attention as products and a softmax, which engines have in integers.

Before:  y = scaled_dot_product_attention(q, k, v, mask)
After:   s = matmul(mul(q, 1/sqrt(d)), transpose(k, -2, -1));  p = softmax(add(s, mask), -1)
         y = matmul(p, v)

A boolean mask becomes 0 where it is true and -1e4 elsewhere, whose exponential is 0 in float32 as
that of the -inf is that it stands for. Only a row that masks everything differs: it has the mean of
v here, but zeros in PyTorch. A causal mask of static size becomes a constant. Left as they are:
causal attention of dynamic size, grouped queries, dropout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from qcompile.compiler.ir.graph import Graph, is_dynamic
from qcompile.compiler.ir.ops import aten
from qcompile.passes.base import Pass

_ATTENTION = aten.scaled_dot_product_attention.default
_OPTIONS = ("attn_mask", "dropout_p", "is_causal")


@dataclass(frozen=True)
class DecomposeAttention(Pass):
    """Rewrite attention; the scale goes to the queries.

    Args:
        masked: Added to the scores of what is masked. The default is out of reach of any score and
            fits float16; where the sum is quantized it leaves the scores no codes. -30 does, and
            keeps e**-30 = 1e-13 of the weight that the key would have without the mask.
    """

    name = "decompose-attention"
    masked: float = -1e4

    def run(self, graph: Graph) -> int:
        found = [call for node in graph.calls(_ATTENTION) if (call := _read(node))]
        for call in found:
            with graph.before(call.node):
                new = _decomposed(graph, call, self.masked)
            graph.replace(call.node, new)
        return len(found)


@dataclass(frozen=True)
class _Call:
    """One attention that can be rewritten.

    Args:
        node: The call.
        mask: Additive or boolean; ``None`` without.
        causal: Queries and keys of the causal mask; ``None`` without.
        scale: Of the scores.
    """

    node: fx.Node
    mask: Any
    causal: tuple[int, int] | None
    scale: float


def _read(node: fx.Node) -> _Call | None:
    query, key = (n.meta["val"].shape for n in node.args[:2])  # type: ignore[union-attr]
    rest: dict[str, Any] = dict(zip(_OPTIONS, node.args[3:], strict=False)) | dict(node.kwargs)
    if rest.get("dropout_p") or rest.get("enable_gqa"):
        return None
    sizes, causal = (query[-2], key[-2]), bool(rest.get("is_causal"))
    if causal and any(map(is_dynamic, sizes)):
        return None
    if (scale := rest.get("scale")) is None:
        if is_dynamic(query[-1]):
            return None
        scale = 1 / math.sqrt(int(query[-1]))
    static = (int(sizes[0]), int(sizes[1])) if causal else None
    return _Call(node, rest.get("attn_mask"), static, float(scale))


def _decomposed(graph: Graph, call: _Call, masked: float) -> fx.Node:
    q, k, v = call.node.args[:3]
    scaled = graph.add_call(aten.mul.Tensor, q, call.scale)
    transposed = graph.add_call(aten.transpose.int, k, -2, -1)
    scores = graph.add_call(aten.matmul.default, scaled, transposed)
    for mask in _masks(graph, call, masked):
        scores = graph.add_call(aten.add.Tensor, scores, mask)
    weights = graph.add_call(aten.softmax.int, scores, -1)
    return graph.add_call(aten.matmul.default, weights, v)


def _masks(graph: Graph, call: _Call, masked: float) -> Sequence[fx.Node]:
    """Return what is added to the scores."""
    dtype, name = call.node.meta["val"].dtype, call.node.name
    if call.causal is not None:
        above = torch.ones(call.causal, dtype=torch.bool).triu(1)
        return [graph.add_constant(f"{name}_causal", (above * masked).to(dtype))]
    if call.mask is None:
        return []
    if call.mask.meta["val"].dtype != torch.bool:
        return [call.mask]
    kept = graph.add_constant(f"{name}_kept", torch.zeros((), dtype=dtype))
    low = graph.add_constant(f"{name}_masked", torch.tensor(masked, dtype=dtype))
    return [graph.add_call(aten.where.self, call.mask, kept, low)]
