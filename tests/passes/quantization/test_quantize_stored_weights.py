"""Tables and recurrent weights: int8 in the file, the same function to an eighth of a code's worth."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import WEIGHT_DECODERS, aten
from qcompile.compiler.ir.quant import parse_weight_spec
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
    assert [r.name for r in step.log.layers] == [
        "table.weight",
        "lstm.weight_ih_l0",
        "lstm.weight_hh_l0",
    ]
    assert run(graph, [step])[0].rewrites == 0


def test_codes_are_int8_with_a_scale_a_row() -> None:
    module = Model()
    graph = _traced(module)
    run(graph, [_pass()])
    codes, scale = graph.weights["table.weight_codes"], graph.weights["table.weight_scale"]
    assert codes.dtype == torch.int8
    assert scale.shape == (20, 1)
    error = (codes * scale - module.table.weight).abs()
    assert bool(
        (error <= scale * 0.5 + (module.table.weight.abs() - 127 * scale).clamp(min=0)).all()
    )


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


def test_recurrent_weights_stay_where_no_engine_decodes_them() -> None:
    graph = _traced(Model())
    step = _pass(recurrent=False)
    assert run(graph, [step])[0].rewrites == 1
    assert [r.name for r in step.log.layers] == ["table.weight"]
    assert not graph.calls(*WEIGHT_DECODERS)


def test_a_tied_table_is_left_alone() -> None:
    graph = _traced(Tied())
    assert run(graph, [_pass()])[0].rewrites == 0


WHOLE = [
    "int8 sym per_channel(0)",
    "int4 full per_group(1,4) fp16-scale",
    "palette4 fp16 per_channels(4)",
]


@pytest.mark.parametrize("text", WHOLE)
def test_whole_tables_in_any_format(text: str) -> None:
    graph = _traced(Model())
    ids = {"ids": torch.randint(20, (2, 3))}
    expected = graph.run(ids)["output"]
    step = _pass(weight=parse_weight_spec(text), whole_table=True)
    assert run(graph, [step])[0].rewrites == 3
    quality = sqnr_db([(expected, graph.run(ids)["output"])])
    assert quality is not None
    assert quality > (35 if "int8" in text else 12)
    (embedding,) = graph.calls(aten.embedding.default)
    assert embedding.args[0].target in WEIGHT_DECODERS
    assert [r.weight for r in step.log.layers] == [text] * 3
    assert run(graph, [step])[0].rewrites == 0


def test_golden_of_a_whole_table(golden: Callable[[str, str], None]) -> None:
    module = Model()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_((torch.arange(parameter.numel()) % 4 / 4).reshape(parameter.shape))
    graph = _traced(module)
    spec = parse_weight_spec("palette2 fp16 per_tensor")
    run(graph, [_pass(weight=spec, whole_table=True)])
    golden("quantize_whole_table.txt", graph.to_text())


def test_a_tied_table_is_stored_once() -> None:
    graph = _traced(Tied())
    ids = {"ids": torch.randint(20, (2, 3))}
    expected = graph.run(ids)["output"]
    step = _pass(weight=parse_weight_spec(WHOLE[1]), whole_table=True)
    assert run(graph, [step])[0].rewrites == 1
    assert len(step.log.layers) == 1
    assert not any(name == "table.weight" for name in graph.weights)
    quality = sqnr_db([(expected, graph.run(ids)["output"])])
    assert quality is not None
    assert quality > 12


def test_a_table_that_needs_more_bits_gets_them() -> None:
    graph = _traced(Model())
    step = _pass(weight=parse_weight_spec("palette1 fp16 per_tensor"), whole_table=True)
    run(graph, [step])
    for row in step.log.layers:
        assert row.weight == "int8 sym per_channel(0) fp16-scale"
        assert "less than 10 dB; int8" in row.note


def test_rows_are_looked_up_in_int8_only() -> None:
    with pytest.raises(ValueError, match="use whole_table=True"):
        _pass(weight=parse_weight_spec(WHOLE[1]))
