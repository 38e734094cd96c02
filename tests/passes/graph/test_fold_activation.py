"""fold-activation: the quantizer saturates where the activation did, bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import DEQUANTIZE, QUANTIZE, aten
from qcompile.passes.base import run
from qcompile.passes.graph.fold_activation import FoldActivation
from qcompile.passes.graph.fusion import ACTIVATIONS

Activation = Callable[[Tensor], Tensor]
UINT8 = (0, 255, torch.uint8)
INT8 = (-128, 127, torch.int8)
BOUNDS = torch.tensor([7.0, 6.0, 9.5])


class Net(nn.Module):
    """An activation, or a clamp by channel if there is none, and its quantizer."""

    def __init__(
        self, activation: Activation | None, *code_range: object, other: bool = False
    ) -> None:
        super().__init__()
        self.activation, self.code_range, self.other = activation, code_range, other
        self.low, self.high = nn.Buffer(torch.zeros(())), nn.Buffer(BOUNDS.reshape(3, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = torch.clamp(x, self.low, self.high) if self.activation is None else self.activation(x)
        q = QUANTIZE(y, *self.code_range)
        return (q, y) if self.other else (q,)


def relu6(x: Tensor) -> Tensor:
    return torch.clamp(x, 0.0, 6.0)


def graph_of(activation: Activation | None, *code_range: object, other: bool = False) -> Graph:
    return trace(Net(activation, *code_range, other=other), {"x": torch.randn(2, 3, 5)})


def beyond(scale: float) -> Tensor:
    """Values far outside, around both bounds, and at every tie of the rounding."""
    torch.manual_seed(0)
    ties = (torch.arange(-600, 600) + 0.5) * scale
    around = torch.cat([b + torch.linspace(-1e-5, 1e-5, 101) for b in (0.0, 6.0, 7.0, 9.5)])
    infinite = torch.tensor([torch.inf, -torch.inf])
    values = torch.cat([infinite, ties, around, 20 * torch.randn(4000)])
    return values[: len(values) // 6 * 6].reshape(2, 3, -1)


FOLDED = {
    "relu": (torch.relu, 0.0317, 0, *UINT8),
    "relu-int8": (torch.relu, 0.0317, -128, *INT8),
    "relu6": (relu6, 6 / 255, 0, *UINT8),
    "relu6-float32-scale": (relu6, float(torch.tensor(6 / 255)), -128, *INT8),
    "relu6-narrow": (relu6, 0.01, -128, *INT8),
    "per-channel": (None, 6 / 255, 0, *UINT8),
    "symmetric-clamp": (lambda x: torch.clamp(x, -2.0, 2.0), 2 / 128, 0, *INT8),
    "only-upper": (lambda x: torch.clamp(x, max=6.0), 6 / 127, 0, *INT8),
    "two-in-a-row": (lambda x: relu6(torch.relu(x)), 6 / 255, 0, *UINT8),
}


@pytest.mark.parametrize("case", FOLDED)
def test_codes_are_bit_equal(case: str) -> None:
    activation, *code_range = FOLDED[case]
    graph = graph_of(activation, *code_range)
    x = beyond(float(code_range[0]))
    graph.inputs = {"x": x}
    expected = graph.run({"x": x})
    assert run(graph, [FoldActivation()])[0].rewrites >= 1
    assert not graph.calls(*ACTIVATIONS)
    assert all(torch.equal(v, expected[k]) for k, v in graph.run({"x": x}).items())
    assert run(graph, [FoldActivation()])[0].rewrites == 0


def test_golden(golden: Callable[[str, str], None]) -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low, self.high = nn.Buffer(torch.zeros(())), nn.Buffer(BOUNDS.reshape(3, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            y = DEQUANTIZE(QUANTIZE(relu6(x), 6 / 255, 0, *UINT8), 6 / 255, 0, *UINT8)
            z = QUANTIZE(torch.clamp(y * 2, self.low, self.high), 6 / 255, 0, *UINT8)
            w = torch.relu(DEQUANTIZE(z, 6 / 255, 0, *UINT8) - 1)
            return QUANTIZE(w, 6 / 255, 3, *UINT8)  # the lowest code is below 0: this relu stays

    graph = trace(Chain(), {"x": torch.randn(1, 3, 4, 4)})
    assert run(graph, [FoldActivation()])[0].rewrites == 2
    assert len(graph.calls(aten.relu.default)) == 1
    golden("fold_activation.txt", graph.to_text())


KEPT = {
    "zero-point-above-qmin": (torch.relu, 0.0317, 128, *UINT8),
    "bound-tighter-than-range": (relu6, 6.1 / 255, 0, *UINT8),
    "one-channel-tighter": (None, 6.5 / 255, 0, *UINT8),
    "lower-bound-above-0": (lambda x: torch.clamp(x, 0.5, 6.0), 6 / 255, 0, *UINT8),
}


@pytest.mark.parametrize("case", KEPT)
def test_keeps_what_saturation_does_not_imply(case: str) -> None:
    activation, *code_range = KEPT[case]
    assert run(graph_of(activation, *code_range), [FoldActivation()])[0].rewrites == 0


def test_keeps_an_activation_with_another_user() -> None:
    graph = graph_of(relu6, 6 / 255, 0, *UINT8, other=True)
    assert run(graph, [FoldActivation()])[0].rewrites == 0


def test_keeps_a_bound_that_broadcasts_its_input() -> None:
    graph = trace(Net(None, 6 / 255, 0, *UINT8), {"x": torch.randn(1)})
    assert run(graph, [FoldActivation()])[0].rewrites == 0
