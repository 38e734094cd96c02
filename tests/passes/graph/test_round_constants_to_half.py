"""round-constants-to-half: constants that float16 holds exactly, still float32, and masks left alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from qcompile.compiler.frontend.stored import trace_stored
from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.graph import Graph
from qcompile.passes.base import run
from qcompile.passes.graph.round_constants_to_half import RoundConstantsToHalf, fits_half

HALF_STEP = 2.0**-11
"""The largest relative error of rounding to float16, of numbers that are normal there."""


class Net(nn.Module):
    """A layer, and a mask as attention adds it."""

    def __init__(self, mask: float = -1e9) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.register_buffer("mask", torch.tensor([0.1, mask, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) + self.mask  # type: ignore[no-any-return]


class Picks(nn.Module):
    """A table looked up by stored positions."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("places", torch.tensor([2, 0]))
        self.register_buffer("table", torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table[self.places]  # type: ignore[no-any-return]


@cache
def traced() -> Graph:
    """Return a graph to copy."""
    return trace(thirds(Net()), torch.zeros(2, 4))


def rounded(graph: Graph) -> int:
    """Run the pass twice: the second run finds nothing."""
    rewrites = run(graph, [RoundConstantsToHalf()])[0].rewrites
    assert run(graph, [RoundConstantsToHalf()])[0].rewrites == 0
    return rewrites


def thirds(module: nn.Module) -> nn.Module:
    """Fill a layer with multiples of 1/3, none of which float16 or float32 holds."""
    for index, tensor in enumerate(module.parameters()):
        values = ((torch.arange(tensor.numel()) * 7 + index) % 11 - 5).reshape(tensor.shape)
        tensor.data.copy_(torch.where(values == 0, 1, values) / 3)
    return module.eval()


def test_golden(golden: Callable[[str, str], None]) -> None:
    """Dtypes stay, digests of the rounded constants change, and the mask keeps its own."""
    graph = trace(thirds(Net()), torch.randn(2, 4))
    assert rounded(graph) == 2, "weight and bias"
    golden("round_constants_to_half.txt", graph.to_text())


def test_computes_what_the_halves_compute() -> None:
    net, x = thirds(Net()), torch.randn(8, 4)
    graph = trace(net, x)
    rounded(graph)
    found = graph.run({"x": x})["output"]
    for parameter in net.parameters():
        parameter.data = parameter.data.half().float()
    with torch.no_grad():
        torch.testing.assert_close(found, net(x), rtol=0, atol=0)
    assert found.dtype == torch.float32


def test_stays_near_the_model() -> None:
    net, x = thirds(Net(0.0)), torch.randn(8, 4)
    graph = trace(net, x)
    before = graph.run({"x": x})["output"]
    rounded(graph)
    found = graph.run({"x": x})["output"]
    with torch.no_grad():
        limit = (x.abs() @ net.fc.weight.abs().mT + net.fc.bias.abs() + net.mask.abs()) * HALF_STEP
    assert (found - before).abs().max() > 0
    assert bool(((found - before).abs() <= limit + 1e-6).all()), "sums in float32 differ by 1e-6"


def test_what_has_no_place_in_half_stays_whole() -> None:
    """Not only the entry that is too large: its op stays in float32, and so do its other numbers."""
    net = Net(65520.0)
    graph = trace(thirds(net), torch.randn(2, 4))
    rounded(graph)
    assert torch.equal(graph.weights["mask"], net.mask)


@pytest.mark.parametrize("mask", [-torch.inf, torch.inf, 65504.0, -65504.0])
def test_infinities_and_the_largest_half_fit(mask: float) -> None:
    graph = trace(thirds(Net(mask)), torch.randn(2, 4))
    assert rounded(graph) == 3
    assert torch.equal(graph.weights["mask"], torch.tensor([0.1, mask, 0.0]).half().float())


def test_nan_fits() -> None:
    assert fits_half(torch.tensor([torch.nan, 1.0, -torch.inf]))
    assert fits_half(torch.empty(0))
    assert not fits_half(torch.tensor([torch.nan, 65519.0]))


def test_what_is_too_small_becomes_zero() -> None:
    graph = trace(thirds(Net(2.0**-26)), torch.randn(2, 4))
    rounded(graph)
    assert graph.weights["mask"][1] == 0
    assert graph.weights["mask"].dtype == torch.float32


def test_other_dtypes_stay() -> None:
    graph = trace(Picks(), torch.zeros(2).double())
    assert rounded(graph) == 0
    assert {graph.weights[n].dtype for n in graph.weights} == {torch.int64, torch.float64}
    assert graph.run({"x": torch.zeros(2).double()})["output"].tolist() == [0.3, 0.1]


def test_constants_that_half_holds_are_not_counted(
    quarters: Callable[[nn.Module], nn.Module],
) -> None:
    assert rounded(trace(quarters(Net()), torch.randn(2, 4))) == 0


def test_a_copy_is_not_changed() -> None:
    """Parity compares the rounded graph with the graph before it."""
    net = thirds(Net())
    graph = trace(net, torch.randn(2, 4))
    before = graph.copy()
    rounded(graph)
    assert torch.equal(before.weights["fc.weight"], net.fc.weight)
    assert not torch.equal(graph.weights["fc.weight"], net.fc.weight)


def test_stored_constants_are_rounded_when_they_are_read(tmp_path: Path) -> None:
    """They stay in their file, which is not written to."""
    net, file = thirds(Net()), tmp_path / "net.safetensors"
    save_file(net.state_dict(), file)
    content, x = file.read_bytes(), torch.randn(2, 4)
    with torch.device("meta"):
        empty = Net()
    graph = trace_stored(empty, file, x)
    rounds = run(graph, [RoundConstantsToHalf()])[0].rewrites
    usual = trace(net, x)
    assert rounds == rounded(usual) == 2
    assert set(graph.weights.stored) == {"fc.weight", "fc.bias", "mask"}
    assert file.read_bytes() == content
    for name in usual.weights:
        assert torch.equal(graph.weights[name], usual.weights[name]), name


@given(st.lists(st.floats(width=32), min_size=3, max_size=3))
@settings(max_examples=15)
def test_any_constant(values: list[float]) -> None:
    """Either nothing changes, for a finite value beyond 65504, or each number is rounded by itself."""
    mask = torch.tensor(values)
    graph = traced().copy()
    graph.weights["mask"] = mask
    run(graph, [RoundConstantsToHalf()])
    beyond = any(math.isfinite(v) and abs(v) > 65504 for v in values)
    expected = mask if beyond else mask.half().float()
    torch.testing.assert_close(graph.weights["mask"], expected, rtol=0, atol=0, equal_nan=True)
