"""What Core ML has no form for is named, all of it, with the model's own lines, before any work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.errors import UnsupportedError
from qcompile.compiler.ir.interface import Interface
from qcompile.targets.coreml.emitter import EMITTER
from qcompile.targets.coreml.planning import plan, refuse_unsupported
from qcompile.targets.device import load_device


class Of(nn.Module):
    """A function of one input."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


class Layers(nn.Module):
    """A layer in codes, one in float, and a move."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.fc(x)).transpose(0, 1)


def refusal(function: Callable[[Tensor], Any], x: Tensor) -> str:
    graph = trace(Of(function), x)
    with pytest.raises(UnsupportedError) as error:
        refuse_unsupported(graph)
    text = str(error.value)
    assert "\n" not in text
    return text


class Gammas(nn.Module):
    """Ops that Core ML has none of."""

    def forward(self, x: Tensor) -> Tensor:
        found = torch.lgamma(x)
        return torch.digamma(found) + torch.lgamma(x * 2)


def test_ops_that_coremltools_lacks_are_all_named_with_their_lines() -> None:
    with pytest.raises(UnsupportedError) as error:
        refuse_unsupported(trace(Gammas(), torch.ones(3)))
    text = str(error.value)
    assert text.startswith("Core ML has no form for 3 part(s) of this model: aten::lgamma (at ")
    assert "test_planning.py:" in text
    assert "found = torch.lgamma(x)" in text
    assert "aten::digamma (at " in text
    assert text.count("aten::lgamma") == 2
    assert text.endswith("; rewrite them in the model")


def test_shapes_that_depend_on_data() -> None:
    text = refusal(lambda x: x.nonzero(), torch.ones(3))
    assert "a shape that depends on data, aten.nonzero.default (at nonzero" in text


def test_complex_numbers() -> None:
    text = refusal(lambda x: torch.view_as_real(torch.fft.fft(x)), torch.ones(4))
    assert "complex64 (at fft_fft, test_planning.py:" in text


@pytest.mark.parametrize("number", [2**31, -(2**31) - 1])
def test_numbers_beyond_int32(number: int) -> None:
    text = refusal(lambda x: x + number, torch.zeros(2, dtype=torch.int64))
    assert f"the number {number}, beyond int32 (at add" in text


def test_constants_beyond_int32() -> None:
    net = Of(lambda x: x + net.offsets)
    net.register_buffer("offsets", torch.tensor([1, 2**31]))
    with pytest.raises(UnsupportedError, match="int64 values beyond int32 in offsets"):
        refuse_unsupported(trace(net, torch.zeros(2, dtype=torch.int64)))


def test_int64_within_int32_is_possible() -> None:
    refuse_unsupported(trace(Of(lambda x: x + (2**31 - 1)), torch.zeros(2, dtype=torch.int64)))


def test_labels_that_do_not_belong_to_the_output() -> None:
    graph = trace(Of(lambda x: x * 2), torch.ones(1, 3))
    graph.interface = Interface(labels=("a", "b"))
    with pytest.raises(
        UnsupportedError, match=r"names 2 classes, .* shape \[1, 2\]; it has output"
    ):
        EMITTER.check(graph, load_device("apple-m2"))
    graph.interface = Interface(labels=("a", "b", "c"))
    EMITTER.check(graph, load_device("apple-m2"))


@pytest.mark.parametrize(
    ("precision", "kinds", "stored"),
    [
        ("fp16", ["fp16", "fp16", "moved"], 64 * 64 * 2 + 64 * 2),
        ("int8", ["fp16", "fp16", "moved"], 64 * 64 + 64 * 2 + 64 * 2),
        ("w8a8", ["int8", "fp16", "moved"], 64 * 64 + 64 * 2 + 64 * 2),
    ],
)
def test_what_becomes_of_each_node(precision: str, kinds: list[str], stored: int) -> None:
    device = load_device("apple-a17-pro")
    graph = trace(Layers(), torch.ones(2, 64))
    found = plan(graph, EMITTER.scheme(precision, device), device)
    assert [p.op for p in found] == ["linear", "tanh", "transpose"]
    assert [p.runs for p in found] == kinds
    assert found[0].name == "fc.weight"
    assert [p.bytes for p in found] == [stored, 0, 0]
