"""fold-constants: what depends on constants alone is computed once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import DEQUANTIZE, QUANTIZE, aten
from qcompile.passes.base import Pass, run
from qcompile.passes.graph.fold_constants import FoldConstants

Rewrite = Callable[[Graph, Pass], int]


class Computes(nn.Module):
    """Normalizes its weight, and makes positions, at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.t() * 2 + torch.arange(4)
        return x @ weight


class Applies(nn.Module):
    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


def test_golden(
    golden: Callable[[str, str], None],
    rewrite: Rewrite,
    quarters: Callable[[nn.Module], nn.Module],
) -> None:
    graph = trace(quarters(Computes()), torch.ones(2, 3))
    assert rewrite(graph, FoldConstants()) == 4
    golden("fold_constants.txt", graph.to_text())


def test_the_model_is_left_as_it_was() -> None:
    net = Computes()
    before = net.weight.detach().clone()
    run(trace(net, torch.ones(2, 3)), [FoldConstants()])
    assert torch.equal(net.weight, before)


def test_what_depends_on_an_input_stays(rewrite: Rewrite) -> None:
    graph = trace(Applies(lambda x, w: (x * w).exp()), torch.randn(4, 4))
    assert rewrite(graph, FoldConstants()) == 0


def test_what_depends_on_a_free_axis_stays(rewrite: Rewrite) -> None:
    positions = Applies(lambda x, w: x + torch.arange(x.shape[0])[:, None])
    graph = trace(positions, torch.randn(4, 4), {"x": {0: torch.export.Dim("rows")}})
    rewrite(graph, FoldConstants())
    other = torch.randn(7, 4)
    expected = other + torch.arange(7)[:, None]
    torch.testing.assert_close(graph.run({"x": other})["output"], expected)


def test_random_numbers_stay_random() -> None:
    graph = trace(Applies(lambda x, w: x + torch.rand(4)), torch.zeros(4, 4))
    assert run(graph, [FoldConstants()])[0].rewrites == 0
    first, second = (graph.run(graph.inputs)["output"] for _ in range(2))
    assert not torch.equal(first, second)


def test_what_grows_too_much_stays(rewrite: Rewrite) -> None:
    grows = Applies(lambda x, w: x + w[0, 0].expand(200, 1).repeat(1, 100)[:4, :4])
    graph = trace(grows, torch.randn(4, 4))
    assert len(graph.calls(aten.repeat.default)) == 1
    rewrite(graph, FoldConstants(max_growth=10_000))
    assert len(graph.calls(aten.repeat.default)) == 1
    rewrite(graph, FoldConstants(max_growth=100_000))
    assert not graph.calls(aten.repeat.default)


def test_a_quantized_weight_stays_quantized(rewrite: Rewrite) -> None:
    options = (0.1, 0, -127, 127, torch.int8)
    stored = Applies(lambda x, w: DEQUANTIZE(QUANTIZE(w, *options), *options) @ x)
    graph = trace(stored, torch.eye(4))
    assert rewrite(graph, FoldConstants()) == 0
    assert len(graph.calls(QUANTIZE, DEQUANTIZE)) == 2


def test_an_output_may_be_constant(rewrite: Rewrite) -> None:
    graph = trace(Applies(lambda x, w: w.t().exp()), torch.randn(2, 2))
    assert rewrite(graph, FoldConstants()) >= 1
    assert not [n for n in graph.nodes if n.op == "call_function"]
    assert list(graph.inputs) == ["x"]
