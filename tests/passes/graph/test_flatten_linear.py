"""flatten-linear: matrices for linear layers, whatever the rank of their input, free axes included."""

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
from qcompile.passes.graph.flatten_linear import FlattenLinear

Rewrite = Callable[[Graph, Pass], int]


class Applies(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.fc, x)


def test_golden(
    golden: Callable[[str, str], None],
    rewrite: Rewrite,
    quarters: Callable[[nn.Module], nn.Module],
) -> None:
    shapes = {"x": {0: torch.export.Dim("batch")}}
    graph = trace(quarters(Applies(lambda fc, x: fc(x))), torch.randn(2, 5, 4), shapes)
    assert rewrite(graph, FlattenLinear()) == 1
    golden("flatten_linear.txt", graph.to_text())


@pytest.mark.parametrize("shape", [(2, 5, 4), (2, 3, 5, 4), (1, 1, 4)])
def test_ranks(shape: tuple[int, ...], rewrite: Rewrite) -> None:
    nets: list[Callable[[Any, Tensor], Tensor]] = [
        lambda fc, x: fc(x),
        lambda fc, x: F.linear(x, fc.weight),
        lambda fc, x: F.relu(fc(x.transpose(0, 1))),
    ]
    graph = trace(Applies(lambda fc, x: [net(fc, x) for net in nets]), torch.randn(shape))
    assert rewrite(graph, FlattenLinear()) == 3
    assert all(n.meta["val"].dim() == 2 for n in graph.calls(aten.linear.default))


def test_free_axes_stay_free() -> None:
    dims = {"x": {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}}
    net = Applies(lambda fc, x: fc(x) + 1).eval()
    graph = trace(net, torch.randn(2, 5, 4), dims)
    run(graph, [FlattenLinear()])
    for shape in [(1, 1, 4), (3, 7, 4)]:
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(graph.run({"x": x})["output"], net(x))


def test_what_is_no_layer_over_a_sequence_stays(rewrite: Rewrite) -> None:
    functions: list[Callable[[Any, Tensor], Tensor]] = [
        lambda fc, x: fc(x[0]),  # a matrix
        lambda fc, x: fc(x[0, 0]),  # a vector
        lambda fc, x: F.linear(x, x[0]),  # a weight that is computed
    ]
    every = Applies(lambda fc, x: [function(fc, x) for function in functions])
    assert rewrite(trace(every, torch.randn(2, 5, 4)), FlattenLinear()) == 0
