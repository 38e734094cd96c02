"""use-global-pooling: means over a whole image, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import aten
from qcompile.passes.base import Pass
from qcompile.passes.graph.use_global_pooling import POOL, UseGlobalPooling

Rewrite = Callable[[Graph, Pass], int]


class Pools(nn.Module):
    """The spellings of global pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kept = torch.mean(torch.relu(x), (-2, -1), keepdim=True)
        return self.fc(x.mean((2, 3))), kept, F.avg_pool2d(x, (4, 6))


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
    shapes = {"x": {0: torch.export.Dim("batch")}}
    graph = trace(quarters(Pools()), torch.randn(2, 3, 4, 6), shapes)
    assert rewrite(graph, UseGlobalPooling()) == 3
    golden("use_global_pooling.txt", graph.to_text())
    assert [tuple(v.shape) for v in graph.run({"x": torch.ones(5, 3, 4, 6)}).values()] == [
        (5, 2), (5, 3, 1, 1), (5, 3, 1, 1),
    ]  # fmt: skip


def test_other_means_stay(rewrite: Rewrite) -> None:
    functions: list[Callable[[Tensor], Tensor]] = [
        lambda x: x.mean((1, 2)),
        lambda x: x.mean(3),
        lambda x: x.mean((1, 2, 3)),
        lambda x: x.mean(),
        lambda x: x[0].mean((1, 2)),
        lambda x: x.mean((2, 3), dtype=torch.float64),
        lambda x: x.flatten(2).mean(2),
        lambda x: F.avg_pool2d(x, 4),
        lambda x: F.avg_pool2d(x, 2),
        lambda x: F.avg_pool2d(x, (4, 6), padding=(1, 1)),
        lambda x: F.avg_pool2d(x, (4, 6), divisor_override=5),
        lambda x: F.avg_pool2d(x[0], (4, 6)),
        lambda x: F.max_pool2d(x, (4, 6)),
    ]
    every = Applies(lambda x: [function(x) for function in functions])
    assert rewrite(trace(every, torch.randn(2, 3, 4, 6)), UseGlobalPooling()) == 0


def test_windows_are_spelled_in_many_ways(rewrite: Rewrite) -> None:
    sizes: list[Any] = [4, (4,), (4, 4), [4, 4]]
    every = Applies(lambda x: [F.avg_pool2d(x, size) for size in sizes])
    graph = trace(every, torch.randn(2, 3, 4, 4))
    assert rewrite(graph, UseGlobalPooling()) == 4
    assert len(graph.calls(POOL)) == 4


def test_an_image_of_free_size(rewrite: Rewrite) -> None:
    sides = {2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    graph = trace(Applies(lambda x: x.mean((2, 3))), torch.randn(2, 3, 4, 6), {"x": sides})
    assert rewrite(graph, UseGlobalPooling()) == 1
    other = torch.randn(2, 3, 9, 5)
    torch.testing.assert_close(graph.run({"x": other})["output"], other.mean((2, 3)))


def test_a_window_that_is_the_image_only_sometimes_stays(rewrite: Rewrite) -> None:
    sides = {2: torch.export.Dim("height", min=8)}
    pool = Applies(lambda x: F.avg_pool2d(x, (4, 6)))
    graph = trace(pool, torch.randn(2, 3, 8, 6), {"x": sides})
    (node,) = graph.calls(aten.avg_pool2d.default)
    node.args = (node.args[0], [8, 6])  # all of the example, not of a higher image
    assert rewrite(graph, UseGlobalPooling()) == 0
