"""Codes of 4 and 2 bits in an ONNX file: what ONNX Runtime makes of them is what the graph says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.quant import WeightFormat
from qcompile.passes import base
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.quantization.records import QuantizationLog
from qcompile.targets.base import find_emitter
from qcompile.targets.device import load_device
from qcompile.targets.order import Emitted, Order, Recipe

EMITTER, DEVICE = find_emitter("onnx"), load_device("x86-avx2")
TYPES = {
    "int8": onnx.TensorProto.INT8,
    "int4": onnx.TensorProto.INT4,
    "int2": onnx.TensorProto.UINT2,
}


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1, groups=24)]
    head = [
        nn.ReLU(),
        nn.Conv2d(24, 64, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 48),
    ]
    shapes = {"input": {0: torch.export.Dim("batch", min=1, max=64)}}
    found = trace(nn.Sequential(*layers, *head).eval(), torch.zeros(2, 3, 8, 8), shapes)
    base.run(found, EMITTER.float_passes())
    return found


@pytest.fixture(scope="module")
def samples() -> Samples:
    x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return Samples([{"input": part} for part in x.split(8)], 16, "test")


def emitted(
    graph: Graph, samples: Samples, kind: str | None, folder: Path
) -> tuple[Graph, Emitted, int]:
    """Return the quantized graph, what was written, and the size that was predicted less that of floats."""
    choices, own = EMITTER.weight_choices(graph, DEVICE), graph.copy()
    formats, difference = {}, 0
    for choice in choices:
        names = [f.name for f in choice.formats]
        place = names.index(kind if kind in names else "int8") if kind else len(names) - 1
        chosen = choice.formats[place]
        assert isinstance(chosen, WeightFormat)
        formats[choice.name] = chosen.spec
        difference += choice.bytes[place] - choice.float_bytes
    scheme = EMITTER.mixed_scheme(DEVICE)
    if kind is None:
        scheme = replace(scheme, weight=None)
    recipe = Recipe(scheme, samples, QuantizationLog(), formats=formats)
    base.run(own, EMITTER.passes(recipe))
    return own, EMITTER.emit(own, folder, Order("net", DEVICE, scheme)), difference


@pytest.mark.parametrize("kind", ["int8", "int4", "int4-per-channel", "int2", "int2-per-channel"])
def test_the_engine_computes_what_the_graph_does(
    graph: Graph, samples: Samples, kind: str, tmp_path: Path
) -> None:
    (tmp_path / "float").mkdir()
    emitted(graph, samples, None, tmp_path / "float")
    own, written, difference = emitted(graph, samples, kind, tmp_path)
    x = samples.batches[0]["input"]

    (row,) = EMITTER.engine_errors(own, tmp_path, written, {"input": x.numpy()})
    assert row["sqnr_db"] > 110
    model = onnx.load(tmp_path / "model.onnx")
    found = {tensor.data_type for tensor in model.graph.initializer}
    assert TYPES[kind.split("-")[0]] in found
    assert {o.domain for o in model.opset_import} == {""}
    assert (model.opset_import[0].version > 21) == kind.startswith("int2")
    assert written.engine["minimum"] == ("1.31" if kind.startswith("int2") else "1.23")
    predicted = (tmp_path / "float" / "model.onnx").stat().st_size + difference
    assert (tmp_path / "model.onnx").stat().st_size == pytest.approx(predicted, abs=60 * 4)


def test_a_weight_that_two_layers_read_stays_float() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(32, 32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(torch.relu(self.layer(x)))

    (choice,) = EMITTER.weight_choices(trace(Twice(), torch.zeros(2, 32)), DEVICE)
    assert [f.name for f in choice.formats] == ["fp32"]
