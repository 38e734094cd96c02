"""The way back against autograd of the whole module."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, fx, nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import aten
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.calibration.way_back import Sums, WayBack


class Block(nn.Module):
    """A value with two readers, a tuple, a look-up, an output in the middle."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(11, 8)
        self.wide = nn.Linear(8, 16)
        self.back = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        x = self.table(ids)
        gate, up = self.wide(x).chunk(2, dim=-1)
        y = x + self.back(torch.sigmoid(gate) * up)
        return y, self.head(torch.softmax(y, -1) * (ids > 3)[..., None])


class Collect:
    """Keeps the sum of gradients, and of inputs where they are floats, of linear layers and look-ups."""

    def __init__(self, graph: Graph) -> None:
        self.watched = graph.calls(aten.linear.default, aten.embedding.default)
        self.order: list[str] = []
        self.found: dict[str, Sequence[Tensor]] = {}

    def visit(self, node: fx.Node, over: Callable[[Sums], list[Tensor]]) -> None:
        weight = next(n for n in node.all_input_nodes if n.op == "get_attr")
        source = next(n for n in node.all_input_nodes if n.op != "get_attr")
        self.order.append(str(weight.target))
        self.found[self.order[-1]] = over(
            lambda value, gradient: (gradient.square().sum((0, 1)), value(source).sum(0))
        )


@pytest.fixture
def module() -> Block:
    return Block()


@pytest.fixture
def batches() -> list[Tensor]:
    return [
        torch.randint(0, 11, (2, 6), generator=torch.Generator().manual_seed(i)) for i in range(3)
    ]


def cotangent(output: Tensor, batch: int) -> Tensor:
    return torch.sin(torch.arange(output.numel()) + batch).reshape(output.shape)


def expected(module: Block, batches: list[Tensor]) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}
    for index, ids in enumerate(batches):
        outputs: dict[str, Tensor] = {}

        def keep(name: str, value: Tensor, outputs: dict[str, Tensor] = outputs) -> Tensor:
            value.retain_grad()
            outputs[f"{name}.weight"] = value
            return value

        hooks = [
            part.register_forward_hook(lambda _, __, y, name=name: keep(name, y))
            for name, part in module.named_children()
        ]
        y, logits = module(ids)
        second = cotangent(logits, index + len(batches))  # each output has numbers of its own
        torch.autograd.backward([y, logits], [cotangent(y, index), second])
        for name, value in outputs.items():
            assert value.grad is not None
            sums[name] = sums.get(name, torch.zeros(())) + value.grad.square().sum((0, 1))
        for hook in hooks:
            hook.remove()
    return sums


@pytest.mark.parametrize("max_bytes", [1 << 30, 0], ids=["in memory", "on disk"])
def test_gradients_are_autograds(module: Block, batches: list[Tensor], max_bytes: int) -> None:
    graph = trace(module, batches[0])
    samples = Samples([{"ids": ids} for ids in batches], 6, "test")
    visitor, shares = Collect(graph), []

    WayBack(graph, samples, cotangent, max_bytes, shares.append).run(visitor)

    wanted = expected(module, batches)
    assert visitor.found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(visitor.found[name][0], value)
    assert visitor.order == ["head.weight", "back.weight", "wide.weight", "table.weight"]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_inputs_are_the_graphs(module: Block, batches: list[Tensor]) -> None:
    graph = trace(module, batches[0])
    samples = Samples([{"ids": ids} for ids in batches], 6, "test")
    visitor = Collect(graph)

    WayBack(graph, samples, cotangent).run(visitor)

    total = sum(module.table(ids).sum(0) for ids in batches)
    torch.testing.assert_close(visitor.found["wide.weight"][1], total)
