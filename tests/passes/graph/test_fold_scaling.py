"""fold-scaling: a product with a positive number becomes another scale of the same codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import DEQUANTIZE, QUANTIZE, aten
from qcompile.passes.base import Pass
from qcompile.passes.graph.fold_scaling import FoldScaling

Rewrite = Callable[[Graph, Pass], int]
CODES = (0.25, 3, 0, 255, torch.uint8)
"""Scale, zero point, smallest and largest code, dtype."""


class Applies(nn.Module):
    """A function of the input, as its codes say it."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(DEQUANTIZE(QUANTIZE(x, *CODES), *CODES))


def make_graph(function: Callable[[Tensor], Any]) -> Graph:
    return trace(Applies(function), torch.randn(4, 4) * 20)


def test_golden(golden: Callable[[str, str], None], rewrite: Rewrite) -> None:
    graph = make_graph(lambda d: d * 0.5)
    assert rewrite(graph, FoldScaling()) == 1
    golden("fold_scaling.txt", graph.to_text())


@pytest.mark.parametrize(
    ("function", "scale"),
    [
        (lambda d: d * 3, 0.75),
        (lambda d: d / 8.0, 0.03125),
        (lambda d: d * 2.0 / 4.0, 0.125),
    ],
)
def test_scales(function: Callable[[Tensor], Tensor], scale: float, rewrite: Rewrite) -> None:
    graph = make_graph(function)
    assert rewrite(graph, FoldScaling()) >= 1
    assert not graph.calls(aten.mul.Tensor, aten.div.Tensor)
    assert [n.args[1] for n in graph.calls(DEQUANTIZE)] == [scale]


def test_other_readers_keep_the_old_scale(rewrite: Rewrite) -> None:
    graph = make_graph(lambda d: (d * 0.5, d.exp()))
    assert rewrite(graph, FoldScaling()) == 1
    assert [n.args[1] for n in graph.calls(DEQUANTIZE)] == [0.25, 0.125]


def test_what_is_no_scaling_of_codes_stays(rewrite: Rewrite) -> None:
    functions: list[Callable[[Tensor], Tensor]] = [
        lambda d: d * -2.0,  # codes would run backwards
        lambda d: d * 0.0,
        lambda d: d * float("inf"),
        lambda d: d * d,
        lambda d: d.exp() * 2.0,  # no codes
        lambda d: torch.div(d, 2.0, rounding_mode="floor"),
        lambda d: d + 2.0,
    ]
    every = make_graph(lambda d: [function(d) for function in functions])
    every.inputs["x"].clamp_(min=0.5)  # 0 * inf is no number
    assert rewrite(every, FoldScaling()) == 0
