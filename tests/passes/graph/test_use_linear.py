"""use-linear: a product with a constant matrix is a linear layer, stored weights included."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import aten
from qcompile.compiler.ir.stored import StoredTensor
from qcompile.passes.base import Pass, run
from qcompile.passes.graph.use_linear import UseLinear

Rewrite = Callable[[Graph, Pass], int]


class Product(nn.Module):
    """Two layers as GPT-2 spells them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6, 2))
        self.b1, self.b2 = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.b2, torch.addmm(self.b1, x, self.first), self.second)


def test_golden(
    golden: Callable[[str, str], None],
    rewrite: Rewrite,
    quarters: Callable[[nn.Module], nn.Module],
) -> None:
    graph = trace(quarters(Product()), torch.randn(3, 4))
    assert rewrite(graph, UseLinear()) == 2
    golden("use_linear.txt", graph.to_text())


def test_a_stored_weight_stays_in_its_file(tmp_path: Path) -> None:
    module = Product().eval()
    graph = trace(module, torch.randn(3, 4))
    save_file({"w": module.first.data}, tmp_path / "w.safetensors")
    graph.weights["first"] = graph.weights.peek("first").to("meta")
    graph.weights.store("first", StoredTensor(tmp_path / "w.safetensors", "w"))
    expected = graph.run(graph.inputs)["output"]
    run(graph, [UseLinear()])
    assert graph.weights.peek("first").is_meta
    assert graph.weights.stored["first"].shape() == (6, 4)
    torch.testing.assert_close(graph.weights["first"], module.first.data.t())
    torch.testing.assert_close(graph.run(graph.inputs)["output"], expected)


class Others(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4))
        self.whole = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        scaled = torch.addmm(self.b, x, self.whole, alpha=2)
        twice = torch.addmm(self.b, x, self.w) + x @ self.w  # a second reader
        return twice + scaled + torch.addmm(self.b, x, x) + torch.addmm(x, x, x)


def test_what_is_no_layer_stays(rewrite: Rewrite) -> None:
    graph = trace(Others(), torch.randn(4, 4))
    assert rewrite(graph, UseLinear()) == 0
    assert len(graph.calls(aten.addmm.default)) == 4
