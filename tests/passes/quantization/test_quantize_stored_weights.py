"""Tables and recurrent weights: int8 in the file, the same function to an eighth of a code's worth."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.graph import Graph
from qcompile.passes.base import run
from qcompile.passes.quantization.quantize_stored_weights import QuantizeStoredWeights
from qcompile.passes.quantization.records import QuantizationLog, sqnr_db


class Model(nn.Module):
    """An embedding and an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.lstm = nn.Embedding(20, 8), nn.LSTM(8, 8, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        return self.lstm(self.table(ids))[0]  # type: ignore[no-any-return]


def _traced(module: nn.Module) -> Graph:
    return trace(module, {"ids": torch.arange(6).reshape(2, 3)})


def _pass(**options: object) -> QuantizeStoredWeights:
    return QuantizeStoredWeights(QuantizationLog(), smallest=64, **options)  # type: ignore[arg-type]


def test_golden(golden: Callable[[str, str], None]) -> None:
    module = Model()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(0.5)
    graph = _traced(module)
    assert run(graph, [_pass()])[0].rewrites == 3
    golden("quantize_stored_weights.txt", graph.to_text())


def test_the_function_stays_close_and_a_second_run_changes_nothing() -> None:
    graph = _traced(Model())
    ids = {"ids": torch.randint(20, (2, 3))}
    expected = graph.run(ids)["output"]
    step = _pass()
    run(graph, [step])
    quality = sqnr_db([(expected, graph.run(ids)["output"])])
    assert quality is not None
    assert 35 < quality < 80
    assert [r.name for r in step.log.layers] == ["table.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0"]
    assert run(graph, [step])[0].rewrites == 0


def test_codes_are_int8_with_a_scale_a_row() -> None:
    module = Model()
    graph = _traced(module)
    run(graph, [_pass()])
    codes, scale = graph.weights["table.weight_codes"], graph.weights["table.weight_scale"]
    assert codes.dtype == torch.int8
    assert scale.shape == (20, 1)
    error = (codes * scale - module.table.weight).abs()
    assert bool((error <= scale * 0.5 + (module.table.weight.abs() - 127 * scale).clamp(min=0)).all())


def test_small_and_named_weights_stay_float() -> None:
    graph = _traced(Model())
    before = graph.to_text()
    small = QuantizeStoredWeights(QuantizationLog(), smallest=100_000)
    assert run(graph, [small])[0].rewrites == 0
    assert graph.to_text() == before
    assert run(graph, [_pass(keep_float=frozenset({"table.weight"}))])[0].rewrites == 2
    assert "table.weight" in graph.weights


class Tied(nn.Module):
    """The table is the output layer too."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids) @ self.table.weight.T


def test_a_tied_table_is_left_alone() -> None:
    graph = _traced(Tied())
    assert run(graph, [_pass()])[0].rewrites == 0
