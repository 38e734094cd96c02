"""remove-identity: what does nothing goes, what does something stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import aten
from qcompile.passes.base import Pass, run
from qcompile.passes.graph.canonicalize import Canonicalize
from qcompile.passes.graph.remove_identity import RemoveIdentity

Rewrite = Callable[[Graph, Pass], int]
CHECK = aten._assert_tensor_metadata.default


class Idle(nn.Module):
    """Says nothing in seven ways."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.drop, self.same = nn.Dropout(0.5), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = F.alpha_dropout(self.same(self.drop(x)), 0.3, False)
        x = self.fc(x.detach().contiguous())
        x = x.reshape(2, 4).expand(2, 4).clone()
        return F.relu(x.view(x.shape))


class Applies(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def calls_of(graph: Graph) -> list[fx.Node]:
    return [n for n in graph.nodes if n.op == "call_function"]


def test_golden(
    golden: Callable[[str, str], None],
    rewrite: Rewrite,
    quarters: Callable[[nn.Module], nn.Module],
) -> None:
    graph = trace(quarters(Idle()), torch.ones(2, 4))
    assert rewrite(graph, RemoveIdentity()) >= 4
    golden("remove_identity.txt", graph.to_text())


def test_what_does_something_stays(rewrite: Rewrite) -> None:
    functions: list[Callable[[Tensor], Tensor]] = [
        lambda x: x.to(torch.float64),
        lambda x: x.to(torch.float16).to(torch.float32),  # both: rounding does something
        lambda x: x.view(3, 2),
        lambda x: x.view(2, 3, 1).expand(2, 3, 4),
        lambda x: x.permute(1, 0),
        lambda x: x.unsqueeze(0),
    ]
    every = Applies(lambda x: [function(x).abs() for function in functions])
    graph = trace(every, torch.randn(2, 3))
    calls = [n for n in calls_of(graph) if n.target != CHECK]
    assert rewrite(graph, RemoveIdentity()) == 3, "the checks that the casts left behind"
    assert calls_of(graph) == calls


def test_a_check_of_sizes_stays(rewrite: Rewrite) -> None:
    graph = trace(Applies(F.relu), torch.randn(2, 3))
    (relu,) = graph.calls(aten.relu.default)
    with graph.after(relu):
        graph.module.graph.call_function(CHECK, (relu, [2, 3]))
        graph.module.graph.call_function(CHECK, (relu,), {"dtype": torch.float32})
    assert rewrite(graph, RemoveIdentity()) == 1
    assert len(graph.calls(CHECK)) == 1


def test_dropout_in_training_mode_stays() -> None:
    graph = trace(Applies(lambda x: F.dropout(x, 0.5, training=True)), torch.ones(64, 64))
    before = graph.to_text()
    assert run(graph, [RemoveIdentity()])[0].rewrites == 0
    assert graph.to_text() == before
    assert int((graph.run(graph.inputs)["output"] == 0).sum()) > 1000


def test_a_view_to_another_free_shape_stays(rewrite: Rewrite) -> None:
    shapes = {"x": {0: torch.export.Dim("rows"), 1: torch.export.Dim("columns")}}
    swap = Applies(lambda x: x.view(x.shape[1], x.shape[0]).abs())
    assert rewrite(trace(swap, torch.randn(3, 5), shapes), RemoveIdentity()) == 0


def test_an_output_may_become_an_input(rewrite: Rewrite) -> None:
    graph = trace(Applies(lambda x: F.dropout(x, 0.5, False).clone()), torch.randn(2, 3))
    assert rewrite(graph, RemoveIdentity()) >= 1
    assert not [n for n in graph.nodes if n.op == "call_function"]


def test_a_view_to_its_own_free_shape_goes(rewrite: Rewrite) -> None:
    same = Applies(lambda x: F.relu(x.view(x.shape[0], 4)))
    graph = trace(same, torch.randn(3, 4), {"x": {0: torch.export.Dim("rows")}})
    assert rewrite(graph, RemoveIdentity()) == 1
    assert not graph.calls(aten.view.default)


def test_nothing_dead_is_left_for_the_next_pass() -> None:
    same = Applies(lambda x: F.relu(x.view(x.shape[0], 4)))
    graph = trace(same, torch.randn(3, 4), {"x": {0: torch.export.Dim("rows")}})
    records = run(graph, [RemoveIdentity(), Canonicalize()])
    assert [record.rewrites for record in records] == [1, 0]
