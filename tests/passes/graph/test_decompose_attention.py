"""decompose-attention: PyTorch's attention by ops that engines have in integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import aten
from qcompile.passes.base import Pass, run
from qcompile.passes.graph.decompose_attention import DecomposeAttention

ATTENTION = aten.scaled_dot_product_attention.default
Rewrite = Callable[[Graph, Pass], int]


class Attention(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, mask, **self.options)


def values(*, key_heads: int = 2, head: int = 8) -> dict[str, Tensor]:
    keys = (3, key_heads, 7, head)
    return {"q": torch.randn(3, 2, 5, head), "k": torch.randn(keys), "v": torch.randn(keys)}


def padding() -> Tensor:
    """Every sample has another length, none is empty."""
    return (torch.arange(7) < torch.tensor([[7], [4], [1]]))[:, None, None]


INPUTS: dict[str, Callable[[], dict[str, Tensor]]] = {
    "plain": values,
    "rank-3": lambda: {n: x.flatten(0, 1) for n, x in values().items()},
    "odd-head": lambda: values(head=5),
    "float-mask": lambda: {**values(), "mask": torch.randn(3, 1, 5, 7)},
    "bool-mask": lambda: {**values(), "mask": padding()},
    "bool-matrix": lambda: {**values(), "mask": torch.ones(5, 7, dtype=torch.bool).tril()},
}


@pytest.mark.parametrize("case", INPUTS)
@pytest.mark.parametrize("options", [{}, {"scale": 0.3}], ids=["default-scale", "scale"])
def test_same_function(case: str, options: dict[str, Any], rewrite: Rewrite) -> None:
    graph = trace(Attention(**options), INPUTS[case]())
    assert rewrite(graph, DecomposeAttention()) == 1
    assert not graph.calls(ATTENTION)


def test_causal(rewrite: Rewrite) -> None:
    assert rewrite(trace(Attention(is_causal=True), values()), DecomposeAttention()) == 1


def test_masked_keys_have_no_weight() -> None:
    inputs = {**values(), "mask": padding()}
    graph = trace(Attention(), inputs)
    run(graph, [DecomposeAttention()])
    changed = {**inputs, "v": torch.where(padding().transpose(2, 3), inputs["v"], 1e6)}
    assert torch.equal(graph.run(changed)["output"], graph.run(inputs)["output"])


def test_dynamic_sizes() -> None:
    inputs = values()
    dims = {0: torch.export.Dim("batch", min=1, max=64), 2: torch.export.Dim("keys", max=64)}
    batch = {0: dims[0]}
    graph = trace(Attention(), inputs, {"q": batch, "k": dims, "v": dims})
    assert run(graph, [DecomposeAttention()])[0].rewrites == 1
    other = {"q": torch.randn(1, 2, 5, 8), **dict.fromkeys("kv", torch.randn(1, 2, 11, 8))}
    torch.testing.assert_close(graph.run(other)["output"], Attention()(**other))


def test_golden(golden: Callable[[str, str], None]) -> None:
    class Both(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
            masked = F.scaled_dot_product_attention(q, k, v, mask)
            return F.scaled_dot_product_attention(masked, k, v, is_causal=True)

    graph = trace(Both(), {**values(head=4), "mask": padding()})
    assert run(graph, [DecomposeAttention()])[0].rewrites == 2
    golden("decompose_attention.txt", graph.to_text())


def test_leaves_causal_attention_of_dynamic_size() -> None:
    dims = {2: torch.export.Dim("tokens", min=2, max=64)}
    inputs = dict.fromkeys("qkv", torch.randn(1, 2, 5, 8))
    graph = trace(Attention(is_causal=True), inputs, dict.fromkeys("qkv", dims))
    assert run(graph, [DecomposeAttention()])[0].rewrites == 0


def test_leaves_grouped_queries() -> None:
    graph = trace(Attention(enable_gqa=True), values(key_heads=1))
    assert run(graph, [DecomposeAttention()])[0].rewrites == 0


def test_leaves_dropout() -> None:
    graph = trace(Attention(dropout_p=0.5), values())
    assert run(graph, [DecomposeAttention()])[0].rewrites == 0
