"""Modelled times are those of the formula: the longer of arithmetic and of what is moved, op by op."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from qcompile.compiler.driver import roofline
from qcompile.compiler.frontend.load import from_module
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.quant import FloatSpec, WeightFormat
from qcompile.passes import base
from qcompile.passes.pipelines import float_pipeline
from qcompile.targets.device import load_device
from qcompile.targets.plans import TensorChoices, TokenTimes

DEVICE = load_device("apple-m2")
A_BYTE, AN_OPERATION = 1e3 / 100e9, 1e3 / 15.8e12
"""Milliseconds: 100 GB and 15.8 T operations a second."""
FORMATS = (WeightFormat("fp16", FloatSpec(16)), WeightFormat("fp32", FloatSpec(32)))


def graph_of(module: nn.Module, example: torch.Tensor, *, batch: bool = False) -> Graph:
    shapes = {"input": {0: torch.export.Dim("batch", min=1, max=8)}} if batch else None
    source = from_module(module.eval(), {"input": example}, dynamic_shapes=shapes, name="net")
    graph = source.graph.copy()
    base.run(graph, float_pipeline(), base.RunOptions(check=False))
    return graph


def choice(graph: Graph, name: str) -> TensorChoices:
    weight = graph.weights.peek(name)
    sizes = (2 * weight.numel(), 4 * weight.numel())
    return TensorChoices({name: tuple(weight.shape)}, (name,), FORMATS, sizes)


def times(graph: Graph, *names: str) -> TokenTimes:
    choices = [choice(graph, name) for name in names]
    return roofline.call_times(graph, roofline.ops(graph), choices, DEVICE, 2)


def test_small_layers_wait_for_memory() -> None:
    """Of one sample, though the example has four; what the ReLU takes over is never stored."""
    module = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 8))
    graph = graph_of(module, torch.randn(4, 64), batch=True)
    found = times(graph, "0.weight", "2.weight")

    assert found.modelled
    for format, width in (("fp16", 2), ("fp32", 4)):
        first = width * 64 * 512 + 2 * (64 + 512)
        last = width * 512 * 8 + 2 * (512 + 8 + 8)
        assert found.of["0.weight"][format] == pytest.approx(A_BYTE * first)
        assert found.of["2.weight"][format] == pytest.approx(A_BYTE * last)
    assert found.rest == pytest.approx(A_BYTE * 2 * 512)


def test_a_large_layer_waits_for_arithmetic() -> None:
    """No format of its weights changes that; views take no time."""
    module = nn.Sequential(nn.Conv2d(256, 256, 3, padding=1), nn.Flatten())
    graph = graph_of(module, torch.randn(1, 256, 32, 32))
    found = times(graph, "0.weight")

    operations = 2 * 256 * 256 * 9 * 32 * 32
    assert list(found.of["0.weight"].values()) == pytest.approx(2 * [AN_OPERATION * operations])
    assert found.rest == 0


def test_a_weight_that_is_read_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(32, 32, bias=False)

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return self.layer(torch.sin(self.layer(input)))

    graph = graph_of(Twice(), torch.randn(1, 32))
    found = times(graph, "layer.weight")
    assert found.of["layer.weight"]["fp16"] == pytest.approx(A_BYTE * 2 * 2 * (32 * 32 + 64))
    assert found.rest == pytest.approx(A_BYTE * 2 * 64)


def test_the_arithmetic_of_an_lstm_is_counted() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(16, 32, batch_first=True)

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return self.lstm(input)[0]

    graph = graph_of(Net(), torch.randn(1, 10, 16))
    found = sum(op.operations for op in roofline.ops(graph))
    assert found == pytest.approx(10 * 2 * 4 * 32 * (16 + 32), rel=0.01)


def test_what_must_be_known() -> None:
    assert roofline.knows(DEVICE)
    assert not roofline.knows(load_device("raspberry-pi-5"))
    assert not roofline.knows(replace(DEVICE, memory_bandwidth_gbs=None))
