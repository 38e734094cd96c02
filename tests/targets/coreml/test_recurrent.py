"""LSTM layers of all kinds, with float and compressed weights: equal to PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from qcompile.compiler.ir.errors import UnsupportedError
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import DEQUANTIZE_BLOCKWISE, LOOKUP, aten
from qcompile.targets.coreml.recurrent import gates_in_order

Emit = Callable[..., Any]
Store = Callable[[Graph, Tensor], fx.Node]
HIDDEN, IN = 6, 5
ROWS = 4 * HIDDEN
LEFT_BEHIND = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""coremltools forgets a temporary folder when it fails, of which Python warns when it removes it."""


class Recurrent(nn.Module):
    """An LSTM that gives its sequence and both of its states."""

    def __init__(self, *, is_given_state: bool = False, **settings: Any) -> None:
        super().__init__()
        self.lstm = nn.LSTM(IN, HIDDEN, **settings)
        self.is_given_state = is_given_state

    def forward(self, x: Tensor, h: Tensor | None = None, c: Tensor | None = None) -> Any:
        state = (h, c) if self.is_given_state else None
        sequence, (hidden, cell) = self.lstm(x, state)
        return sequence, hidden, cell


KINDS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "two layers": {"num_layers": 2},
    "bidirectional": {"bidirectional": True},
    "two layers, bidirectional, batch first": {
        "num_layers": 2, "bidirectional": True, "batch_first": True,
    },
    "no bias": {"bias": False},
    "no bias, bidirectional": {"bias": False, "bidirectional": True},
    "batch first": {"batch_first": True},
}  # fmt: skip


def store_weights(store: Store) -> Callable[[Graph], None]:
    """Return a change that stores every matrix of the layers in codes."""

    def change(graph: Graph) -> None:
        (node,) = graph.calls(aten.lstm.input)
        for weight in [n for n in node.all_input_nodes if n.op == "get_attr"]:
            value = graph.constant(weight)
            if value is not None and value.dim() == 2 and value.shape[0] == ROWS:
                with graph.before(node):
                    node.replace_input_with(weight, store(graph, value))

    return change


def int8_per_channel(graph: Graph, weight: Tensor) -> fx.Node:
    scale = (weight.abs().amax(1, keepdim=True) / 127).half().float()
    codes = (weight / scale).round().clamp(-128, 127).to(torch.int8)
    stored = [graph.add_constant("codes", codes), graph.add_constant("scale", scale)]
    return graph.add_call(DEQUANTIZE_BLOCKWISE, *stored, None, 8, 16)


def uint4_in_blocks(graph: Graph, weight: Tensor) -> fx.Node:
    """One scale and offset for every two rows."""
    codes = torch.randint(0, 16, weight.shape).to(torch.uint8)
    scale = (torch.rand(ROWS // 2, 1) * 0.05 + 0.01).half().float()
    zero = torch.randint(0, 16, scale.shape).to(torch.uint8)
    stored = [graph.add_constant(n, t) for n, t in (("c", codes), ("s", scale), ("z", zero))]
    return graph.add_call(DEQUANTIZE_BLOCKWISE, *stored, 4, 16)


def int8_in_blocks_that_cross_gates(graph: Graph, weight: Tensor) -> fx.Node:
    """One scale for every four rows, where a gate has six."""
    codes = torch.randint(-128, 128, weight.shape).to(torch.int8)
    scale = (torch.rand(ROWS // 4, 1) * 0.005 + 0.001).half().float()
    stored = [graph.add_constant("codes", codes), graph.add_constant("scale", scale)]
    return graph.add_call(DEQUANTIZE_BLOCKWISE, *stored, None, 8, 16)


def palette(groups: int, *, has_scales: bool = False) -> Store:
    def store(graph: Graph, weight: Tensor) -> fx.Node:
        indices = torch.randint(0, 16, weight.shape).to(torch.uint8)
        lut = (torch.randn(groups, 16) * 0.4).sort(1).values.half().float()
        stored = [graph.add_constant("indices", indices), graph.add_constant("lut", lut)]
        scale = (torch.rand(ROWS) + 0.5).half().float()
        factor = graph.add_constant("scale", scale) if has_scales else None
        return graph.add_call(LOOKUP, *stored, factor, 16)

    return store


def int8_palette(graph: Graph, weight: Tensor) -> fx.Node:
    codes = torch.randint(-128, 128, (1, 16)).sort(1).values.to(torch.int8)
    unit = graph.add_constant("unit", torch.full((1, 1), 2.0**-8))
    lut = graph.add_call(
        DEQUANTIZE_BLOCKWISE, graph.add_constant("entries", codes), unit, None, 8, 16
    )
    indices = torch.randint(0, 16, weight.shape).to(torch.uint8)
    return graph.add_call(LOOKUP, graph.add_constant("indices", indices), lut, None, 16)


def _example(settings: dict[str, Any]) -> Tensor:
    return torch.randn((2, 7, IN) if settings.get("batch_first") else (7, 2, IN))


@pytest.mark.parametrize("kind", KINDS)
def test_a_float_lstm_equals_pytorchs(emit: Emit, kind: str) -> None:
    net, x = Recurrent(**KINDS[kind]).eval(), _example(KINDS[kind])
    emission = emit(net, x, float_bits=32)
    with torch.no_grad():
        expected = net(x)
    for value, wanted in zip(emission.run().values(), expected, strict=True):
        np.testing.assert_allclose(value, wanted.numpy(), rtol=1.3e-6, atol=1e-6)
    assert emission.gate()["passed"], emission.gate()


@pytest.mark.parametrize("kind", ["one layer", "two layers, bidirectional, batch first"])
def test_a_state_that_is_given(emit: Emit, kind: str) -> None:
    settings = KINDS[kind]
    net = Recurrent(is_given_state=True, **settings).eval()
    states = settings.get("num_layers", 1) * (2 if settings.get("bidirectional") else 1)
    inputs = (_example(settings), torch.randn(states, 2, HIDDEN), torch.randn(states, 2, HIDDEN))
    emission = emit(net, *inputs, float_bits=32)
    with torch.no_grad():
        expected = net(*inputs)
    for value, wanted in zip(emission.run().values(), expected, strict=True):
        np.testing.assert_allclose(value, wanted.numpy(), rtol=1.3e-6, atol=1e-6)


STORES: dict[str, tuple[int, Store]] = {
    "int8 per channel": (18, int8_per_channel),
    "int8 per channel, iOS 17": (17, int8_per_channel),
    "uint4 in blocks": (18, uint4_in_blocks),
    "int8 in blocks that cross gates": (18, int8_in_blocks_that_cross_gates),
    "one table": (18, palette(1)),
    "one table, iOS 17": (17, palette(1)),
    "a table a gate": (18, palette(4)),
    "two tables a gate": (18, palette(8)),
    "a table for two gates": (18, palette(2)),
    "tables that cross gates": (18, palette(6)),
    "scales a channel": (18, palette(1, has_scales=True)),
    "tables that cross gates, and scales": (18, palette(3, has_scales=True)),
    "a table of int8": (18, int8_palette),
}


def _check_codes(emit: Emit, name: str, settings: dict[str, Any]) -> None:
    ios, store = STORES[name]
    net, x = Recurrent(**settings).eval(), _example(settings)
    emission = emit(net, x, change=store_weights(store), ios=ios)
    assert emission.gate()["passed"], emission.gate()
    matrices = 2 * settings.get("num_layers", 1) * (2 if settings.get("bidirectional") else 1)
    exact = [r for r in emission.rows if "exact" in r]
    assert len(exact) == matrices * (2 if store is int8_palette else 1)
    stored = [o for o in emission.operations() if o.type.startswith("constexpr_")]
    assert len(stored) >= matrices, "the weights are compressed in the file"
    expected = emission.graph.run(emission.inputs)
    for key, value in emission.run().items():
        np.testing.assert_allclose(value, expected[key].numpy(), atol=2e-3)


@pytest.mark.parametrize("name", STORES)
def test_weights_in_codes(emit: Emit, name: str) -> None:
    _check_codes(emit, name, {})


@pytest.mark.parametrize("name", ["int8 per channel", "tables that cross gates"])
def test_codes_in_two_layers_of_two_directions(emit: Emit, name: str) -> None:
    _check_codes(emit, name, {"num_layers": 2, "bidirectional": True})


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 6, 8, 12, 24])
def test_each_row_keeps_its_value(groups: int) -> None:
    """Whatever the runs are, row by row the order is input, forget, output, cell."""
    values = np.arange(groups, dtype=np.float32)
    moved = gates_in_order(values, ROWS)
    i, f, g, o = np.split(np.repeat(values, ROWS // groups), 4)
    spread = np.repeat(moved, ROWS // len(moved))
    np.testing.assert_array_equal(spread, np.concatenate([i, f, o, g]))
    if len(moved) > 1:
        again = np.repeat(gates_in_order(moved, ROWS), ROWS // len(moved))
        np.testing.assert_array_equal(again, np.repeat(values, ROWS // groups))


@LEFT_BEHIND
def test_codes_on_ios_16_are_refused(emit: Emit) -> None:
    match = r"^an LSTM whose weights are compressed \(Dequantize.*needs iOS 17 or macOS 14: keep"
    with pytest.raises(UnsupportedError, match=match):
        emit(Recurrent(), _example({}), change=store_weights(int8_per_channel), ios=16)
    assert emit(Recurrent(), _example({}), ios=16).gate()["passed"]
