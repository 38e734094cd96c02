"""eliminate-dead-code: equal calls become one, unused ones none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import aten
from qcompile.passes.base import Pass, run
from qcompile.passes.graph.eliminate_dead_code import EliminateDeadCode

Rewrite = Callable[[Graph, Pass], int]


class Repeats(nn.Module):
    """Computes the same twice, two calls deep."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.relu(self.fc(x)), torch.relu(self.fc(x))
        return left.add(right) * torch.sigmoid(x)


class Applies(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def test_golden(
    golden: Callable[[str, str], None],
    rewrite: Rewrite,
    quarters: Callable[[nn.Module], nn.Module],
) -> None:
    graph = trace(quarters(Repeats()), torch.ones(2, 4))
    (sigmoid,) = graph.calls(aten.sigmoid.default)
    with graph.after(sigmoid):  # tracing leaves nothing dead
        graph.add_call(aten.exp.default, graph.add_call(aten.neg.default, sigmoid))
    assert rewrite(graph, EliminateDeadCode()) == 4
    golden("eliminate_dead_code.txt", graph.to_text())


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.sum(0) * x.sum(1),
        lambda x: x.sum(0) * x.sum(0, keepdim=True),
        lambda x: x.to(torch.float64) + x.to(torch.float16),
        lambda x: torch.clamp(x, 0, 1) + torch.clamp(x, 0, 2),
        lambda x: torch.full_like(x, 1) * torch.full_like(x, 2) + x,
    ],
)
def test_calls_with_other_arguments_stay(
    function: Callable[[Tensor], Tensor], rewrite: Rewrite
) -> None:
    assert rewrite(trace(Applies(function), torch.rand(3, 3)), EliminateDeadCode()) == 0


def test_random_calls_stay() -> None:
    graph = trace(Applies(lambda x: x + torch.rand(4) - torch.rand(4)), torch.zeros(4))
    assert run(graph, [EliminateDeadCode()])[0].rewrites == 0
    assert bool((graph.run(graph.inputs)["output"] != 0).any())


def test_inputs_and_outputs_stay(rewrite: Rewrite) -> None:
    class Ignores(nn.Module):
        def forward(self, x: Tensor, unused: Tensor) -> tuple[Tensor, Tensor]:
            return x.exp(), x.exp()

    graph = trace(Ignores(), [torch.randn(2), torch.randn(3)])
    assert rewrite(graph, EliminateDeadCode()) == 1
    assert list(graph.inputs) == ["x", "unused"]
    assert list(graph.run(graph.inputs)) == ["output_0", "output_1"]


def test_equal_calls_on_two_results_of_one_op_stay(rewrite: Rewrite) -> None:
    def halves(x: Tensor) -> Tensor:
        left, right = torch.split(x, 2, 1)
        return left.exp() - right.exp()

    graph = trace(Applies(halves), torch.randn(3, 4))
    assert rewrite(graph, EliminateDeadCode()) == 0
