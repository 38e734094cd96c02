"""GRU and RNN layers, which become linear layers step by step: equal to PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from qcompile.compiler.driver import BuildOptions, build
from qcompile.compiler.frontend.load import from_module
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import DEQUANTIZE_BLOCKWISE, aten
from qcompile.targets.coreml.reference.package import read_package

Emit = Callable[..., Any]
HIDDEN, IN, STEPS = 6, 5, 3
STACKED = {"num_layers": 2, "bidirectional": True, "batch_first": True}
LAYERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "gru": (nn.GRU, {}),
    "gru, stacked": (nn.GRU, STACKED),
    "gru, no bias": (nn.GRU, {"bias": False}),
    "rnn of tanh": (nn.RNN, STACKED),
    "rnn of relu": (nn.RNN, {"nonlinearity": "relu", "bias": False}),
}


class Recurrent(nn.Module):
    """A layer that gives its sequence and its last state."""

    def __init__(self, kind: Any, **settings: Any) -> None:
        super().__init__()
        self.layer = kind(IN, HIDDEN, **settings)

    def forward(self, x: Tensor, h: Tensor | None = None) -> Any:
        return self.layer(x, h)


class Classifier(nn.Module):
    """The last output of a GRU, classified."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.GRU(16, 32, batch_first=True), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.layer(x)[0][:, -1])


def example(settings: dict[str, Any]) -> Tensor:
    """Return a batch of two sequences."""
    return torch.randn((2, STEPS, IN) if settings.get("batch_first") else (STEPS, 2, IN))


def close(emission: Any, expected: Any, tolerance: float) -> None:
    assert emission.gate()["passed"], emission.gate()
    for value, wanted in zip(emission.run().values(), expected, strict=True):
        np.testing.assert_allclose(value, wanted.numpy(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", LAYERS)
def test_float_layers_equal_pytorchs(emit: Emit, name: str) -> None:
    kind, settings = LAYERS[name]
    net, x = Recurrent(kind, **settings).eval(), example(settings)
    with torch.no_grad():
        close(emit(net, x, float_bits=32), net(x), 2e-6)


@pytest.mark.parametrize("ios", [16, 18])
def test_a_state_that_is_given_in_float16(emit: Emit, ios: int) -> None:
    """A float16 step rounds a dozen values of size 1 by 2**-11 at most, and there are three steps."""
    net = Recurrent(nn.GRU, **STACKED).eval()
    inputs = (example(STACKED), torch.randn(4, 2, HIDDEN))
    emission = emit(net, *inputs, ios=ios)
    with torch.no_grad():
        close(emission, net(*inputs), 5e-3)


def int8(graph: Graph, value: Tensor) -> fx.Node:
    """Return a weight in codes with a scale a row."""
    scale = (value.abs().amax(1, keepdim=True) / 127).half().float()
    codes = (value / scale).round().clamp(-128, 127).to(torch.int8)
    stored = [graph.add_constant("codes", codes), graph.add_constant("scale", scale)]
    return graph.add_call(DEQUANTIZE_BLOCKWISE, *stored, None, 8, 16)


def store(graph: Graph) -> None:
    """Put all matrices of the layer into codes."""
    (node,) = graph.calls(aten.gru.input)
    for weight in node.all_input_nodes:
        value = graph.constant(weight) if weight.op == "get_attr" else None
        if value is not None and value.dim() == 2 and value.shape[0] == 3 * HIDDEN:
            with graph.before(node):
                node.replace_input_with(weight, int8(graph, value))


def test_codes_are_those_of_the_layer(emit: Emit) -> None:
    net, x = Recurrent(nn.GRU, bidirectional=True).eval(), example({})
    emission = emit(net, x, change=store)
    exact = [row for row in emission.rows if "exact" in row]
    assert [row["differing"] for row in exact] == [0.0] * 4
    assert len(emission.operations("constexpr_blockwise_shift_scale")) == 4
    expected = emission.graph.run(emission.inputs)
    close(emission, [expected[key] for key in emission.graph.outputs], 5e-3)


def test_an_int8_build(tmp_path: Path) -> None:
    source = from_module(Classifier().eval(), (torch.randn(1, 4, 16),))
    options = BuildOptions(target="apple-m2", precision="int8", calibrate="random", evaluate=False)
    build(source, tmp_path / "net.qc", options)
    (package,) = (tmp_path / "net.qc").rglob("*.mlpackage")
    block = read_package(package).program.functions["main"].block
    stored = [o for o in block.operations if o.type.startswith("constexpr_")]
    shapes = [getattr(o.outputs[0][1], "shape", None) for o in stored]
    assert shapes == [(96, 16), (96, 32), (4, 32)]
