"""Observers stand where an integer engine stores values, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import OBSERVE
from qcompile.compiler.ir.quant import Granularity, QuantSpec
from qcompile.passes.base import run
from qcompile.passes.pipelines import float_pipeline
from qcompile.passes.quantization.insert_observers import InsertObservers
from qcompile.targets.onnx.capabilities import INTEGER_OPS

WEIGHT = QuantSpec(granularity=Granularity.PER_CHANNEL, axis=0)
ACTIVATION = QuantSpec(signed=False, symmetric=False)


class Block(nn.Module):
    """A residual block with a pool, a flatten and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 2, 1, bias=False), nn.Conv2d(2, 2, 1, bias=False)
        self.head = nn.Linear(8, 2, bias=False)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.fill_(0.25)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.first(x))
        y = functional.relu(y + self.second(y))
        return self.head(functional.max_pool2d(y, 2).flatten(1))  # type: ignore[no-any-return]


def _observed(module: nn.Module, x: Tensor, activation: QuantSpec | None = ACTIVATION) -> Graph:
    graph = trace(module, {"x": x})
    run(graph, float_pipeline())
    run(graph, [InsertObservers(INTEGER_OPS, activation, WEIGHT)])
    return graph


def _sources(graph: Graph) -> list[str]:
    return [str(n.args[0]) for n in graph.calls(OBSERVE)]


def test_golden(golden: Callable[[str, str], None]) -> None:
    golden("insert_observers.txt", _observed(Block(), torch.zeros(1, 2, 4, 4)).to_text())


def test_the_function_stays_the_same() -> None:
    module, x = Block(), torch.randn(3, 2, 4, 4)
    graph = _observed(module, x)
    torch.testing.assert_close(graph.run({"x": x})["output"], module(x), rtol=0, atol=0)


def test_moves_share_their_inputs_scale() -> None:
    graph = _observed(Block(), torch.zeros(1, 2, 4, 4))
    shares = {str(n.args[0]): str(n.args[2]) for n in graph.calls(OBSERVE)}
    assert shares["max_pool2d"].startswith("observe")
    assert shares["x"] == ""


def test_a_value_before_a_fused_activation_is_not_stored() -> None:
    sources = _sources(_observed(Block(), torch.zeros(1, 2, 4, 4)))
    assert "conv2d" not in sources
    assert "relu" in sources


def test_a_weight_alone_is_observed_and_its_layer_reads_floats() -> None:
    """The second layer computes in float, and with it the sum after it, which no integers read."""
    graph = trace(Block(), {"x": torch.zeros(1, 2, 4, 4)})
    run(graph, float_pipeline())
    placed = InsertObservers(
        INTEGER_OPS, ACTIVATION, WEIGHT, frozenset({"head.weight"}), frozenset({"second.weight"})
    )
    run(graph, [placed])
    sources = _sources(graph)

    assert "second_weight" in sources
    assert "head_weight" not in sources
    assert "conv2d_1" not in sources
    assert "relu_1" not in sources


def test_an_output_that_nothing_integer_reads_stays_float() -> None:
    assert "linear" not in _sources(_observed(Block(), torch.zeros(1, 2, 4, 4)))


class Islands(nn.Module):
    """Float on both sides of an add."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.a(x) + x)  # type: ignore[no-any-return]


def test_arithmetic_between_float_neighbours_stays_float() -> None:
    sources = _sources(_observed(Islands(), torch.zeros(2, 4)))
    assert not any("add" in s or "linear" in s for s in sources)
    assert "x" in sources


def test_weights_alone_are_observed_without_an_activation_format() -> None:
    graph = _observed(Block(), torch.zeros(1, 2, 4, 4), activation=None)
    assert _sources(graph) == ["first_weight", "second_weight", "head_weight"]


def test_a_weight_that_shall_stay_float_is_left_alone() -> None:
    graph = trace(Block(), {"x": torch.zeros(1, 2, 4, 4)})
    run(graph, float_pipeline())
    kept = frozenset({"second.weight"})
    run(graph, [InsertObservers(INTEGER_OPS, ACTIVATION, WEIGHT, kept)])
    assert "second_weight" not in _sources(graph)


class Embedded(nn.Module):
    """Nothing that an integer kernel reads."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x) * 2 + x


def test_a_graph_without_layers_is_left_alone() -> None:
    graph = trace(Embedded(), {"x": torch.zeros(2, 4)})
    before = graph.to_text()
    assert run(graph, [InsertObservers(INTEGER_OPS, ACTIVATION, WEIGHT)])[0].rewrites == 0
    assert graph.to_text() == before
