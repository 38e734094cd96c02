"""canonicalize: one spelling for each clamp and each linear layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import aten
from qcompile.passes.base import Pass, run
from qcompile.passes.graph.canonicalize import Canonicalize
from qcompile.passes.graph.remove_identity import RemoveIdentity

Rewrite = Callable[[Graph, Pass], int]


class Spellings(nn.Module):
    """Each op that has another spelling."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardtanh(F.relu6(x), -2, 2) + torch.clamp_min(x, 0) + torch.clamp(x, min=0)
        weight = self.fc.weight
        return torch.addmm(self.fc.bias, x, weight.t()) + torch.mm(x, weight.permute(1, 0))


class Applies(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.fc, x)


def test_golden(
    golden: Callable[[str, str], None],
    rewrite: Rewrite,
    quarters: Callable[[nn.Module], nn.Module],
) -> None:
    graph = trace(quarters(Spellings()), torch.randn(5, 4) * 4)
    assert rewrite(graph, Canonicalize()) == 6
    golden("canonicalize.txt", graph.to_text())


def test_activations(rewrite: Rewrite) -> None:
    def function(fc: Any, x: Tensor) -> list[Tensor]:
        bounded = [F.relu6(x), F.hardtanh(x), F.hardtanh(x, 0.0, 6.0)]
        return [*bounded, torch.clamp_min(x, 0.0), torch.clamp(x, min=0.0)]

    graph = trace(Applies(function), torch.randn(5, 4) * 8)
    assert rewrite(graph, Canonicalize()) == 5
    (output,) = graph.module.graph.find_nodes(op="output")
    assert [(n.target, n.args[1:]) for n in output.args[0]] == [
        (aten.clamp.default, (0, 6)),
        (aten.clamp.default, (-1, 1)),
        (aten.clamp.default, (0, 6)),
        (aten.relu.default, ()),
        (aten.relu.default, ()),
    ]


def test_what_means_something_else_stays(rewrite: Rewrite) -> None:
    functions: list[Callable[[Any, Tensor], Tensor]] = [
        lambda fc, x: torch.clamp_min(x, 1.0),
        lambda fc, x: torch.clamp(x, 0.0, 3.0),
        lambda fc, x: torch.clamp(x, max=0.0),
        lambda fc, x: torch.clamp(x, min=0.5),
        lambda fc, x: F.threshold(x, 0.5, 0.0),
        lambda fc, x: torch.mm(x, fc.weight),  # not transposed
        lambda fc, x: torch.mm(x, x.t()),  # not a constant
        lambda fc, x: torch.addmm(fc.bias, x, fc.weight),
        lambda fc, x: torch.addmm(fc.bias, x, fc.weight.t(), alpha=2),
        lambda fc, x: torch.addmm(fc.bias, x, fc.weight.t(), beta=0.5),
        lambda fc, x: torch.addmm(fc.bias, x, (2 * fc.weight).t()),  # fold-constants comes first
    ]
    every = Applies(lambda fc, x: [function(fc, x) for function in functions])
    assert rewrite(trace(every, torch.randn(4, 4) * 2), Canonicalize()) == 0


def test_threshold_of_zero_is_relu(rewrite: Rewrite) -> None:
    graph = trace(Applies(lambda fc, x: F.threshold(x, 0.0, 0.0)), torch.randn(5, 4))
    assert rewrite(graph, Canonicalize()) == 1


def test_matmul_with_a_transposed_weight_is_linear(rewrite: Rewrite) -> None:
    graph = trace(Applies(lambda fc, x: x @ fc.weight.t()), torch.randn(5, 4))
    assert rewrite(graph, Canonicalize()) == 1


def test_a_transpose_with_another_user_stays(rewrite: Rewrite) -> None:
    def both(fc: Any, x: Tensor) -> Tensor:
        transposed = fc.weight.t()
        return torch.mm(x, transposed) + transposed.sum()

    graph = trace(Applies(both), torch.randn(5, 4))
    assert rewrite(graph, Canonicalize()) == 1
    assert len(graph.calls(aten.linear.default)) == 1
    assert len(graph.calls(aten.t.default, aten.permute.default)) == 1


def test_every_transpose_of_a_weight(rewrite: Rewrite) -> None:
    functions: list[Callable[[Any, Tensor], Tensor]] = [
        lambda fc, x: x @ fc.weight.T,
        lambda fc, x: x @ fc.weight.mT,
        lambda fc, x: x @ fc.weight.transpose(-1, 0),
        lambda fc, x: x[0] @ fc.weight.t(),
        lambda fc, x: x.reshape(1, 4, 4) @ fc.weight.permute(-1, 0),
    ]
    graph = trace(Applies(lambda fc, x: [f(fc, x) for f in functions]), torch.randn(4, 4))
    rewrite(graph, Canonicalize())
    assert len(graph.calls(aten.linear.default)) == len(functions)


def test_what_is_no_transposed_weight_stays(rewrite: Rewrite) -> None:
    functions: list[Callable[[Any, Tensor], Tensor]] = [
        lambda fc, x: x @ fc.weight,
        lambda fc, x: x @ fc.weight.transpose(0, 0),
        lambda fc, x: x @ fc.bias.t(),  # of a vector: itself
        lambda fc, x: x @ x.t(),
        lambda fc, x: fc.weight.t() @ x,
    ]
    graph = trace(Applies(lambda fc, x: [f(fc, x) for f in functions]), torch.randn(4, 4))
    assert rewrite(graph, Canonicalize()) == 0


def test_pads_by_a_constant(rewrite: Rewrite) -> None:
    functions: list[Callable[[Any, Tensor], Tensor]] = [
        lambda fc, x: F.pad(x, (1, 2)),
        lambda fc, x: F.pad(x, (1, 2, 0, 3), value=0.5),
        lambda fc, x: F.pad(x, (-1, 0)),
    ]
    graph = trace(Applies(lambda fc, x: [f(fc, x) for f in functions]), torch.randn(4, 4))
    assert rewrite(graph, Canonicalize()) == 3
    assert len(graph.calls(aten.constant_pad_nd.default)) == 3


def test_pads_by_what_is_there_stay(rewrite: Rewrite) -> None:
    graph = trace(Applies(lambda fc, x: F.pad(x, (1, 1), "reflect")), torch.randn(4, 4))
    assert rewrite(graph, Canonicalize()) == 0


class Heads(nn.Module):
    """What attention does to join its heads, and to tell them apart."""

    def forward(self, x: Tensor) -> Tensor:
        heads = x.view(2, 3, 2, 4).transpose(1, 2).contiguous()
        return heads.transpose(1, 2).contiguous().view(2, 3, 8) * 2


def test_views_become_reshapes(rewrite: Rewrite) -> None:
    graph = trace(Heads(), torch.randn(2, 3, 8))
    found = graph.calls(aten.view.default, aten._unsafe_view.default)
    assert rewrite(graph, Canonicalize()) == len(found) == 2
    assert not graph.calls(aten.view.default, aten._unsafe_view.default)
    shapes = [tuple(n.meta["val"].shape) for n in graph.calls(aten.reshape.default)]
    assert shapes == [(2, 3, 2, 4), (2, 3, 8)]


def test_an_unsafe_view_is_a_reshape(rewrite: Rewrite) -> None:
    """``torch.export`` writes it for the reshape of a product."""
    graph = trace(
        Applies(lambda fc, x: aten._unsafe_view.default(x @ x, [2, 8])), torch.randn(4, 4)
    )
    assert graph.calls(aten._unsafe_view.default)
    assert rewrite(graph, Canonicalize()) == 1
    (reshape,) = graph.calls(aten.reshape.default)
    assert reshape.args[1:] == ([2, 8],)


def test_a_view_outlives_the_copy_before_it() -> None:
    """A view of transposed axes does not run, nor export again, once the copy has been removed."""
    x = torch.randn(2, 3, 8)
    graph = trace(Heads(), x)
    expected = graph.run({"x": x})["output"]
    run(graph, [Canonicalize(), RemoveIdentity()])
    assert not graph.calls(aten.clone.default, aten.contiguous.default)
    torch.testing.assert_close(graph.run({"x": x})["output"], expected, rtol=0, atol=0)
    again = graph.exported().module()(x)
    torch.testing.assert_close(again[0], expected, rtol=0, atol=0)
