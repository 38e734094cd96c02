"""convert-to-half: float16 inside, float32 outside, and refused where float16 cannot hold a weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.errors import UnsupportedError
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import aten
from qcompile.passes.base import run
from qcompile.passes.graph.convert_to_half import ConvertToHalf


class Net(nn.Module):
    """A function of a layer and an input."""

    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.fc, x)


def convert(graph: Graph) -> int:
    """Run the pass twice: the second run finds nothing."""
    rewrites = run(graph, [ConvertToHalf()])[0].rewrites
    assert run(graph, [ConvertToHalf()])[0].rewrites == 0
    return rewrites


def dtypes(graph: Graph) -> set[torch.dtype]:
    """Return the float dtypes of all calls but the casts at the outputs."""
    (output,) = graph.module.graph.find_nodes(op="output")
    calls = [n for n in graph.nodes if n.op == "call_function" and output not in n.users]
    found = {n.meta["val"].dtype for n in calls if isinstance(n.meta["val"], Tensor)}
    return {dtype for dtype in found if dtype.is_floating_point}


def test_golden(
    golden: Callable[[str, str], None], quarters: Callable[[nn.Module], nn.Module]
) -> None:
    shapes = {"x": {0: torch.export.Dim("batch")}}
    graph = trace(quarters(Net(lambda fc, x: F.relu(fc(x)))), torch.randn(2, 4), shapes)
    assert convert(graph) == 4, "weight, bias, input and output"
    golden("convert_to_half.txt", graph.to_text())


def test_equals_pytorchs_half() -> None:
    net = Net(lambda fc, x: torch.softmax(fc(x), -1)).eval()
    x = torch.randn(8, 4)
    graph = trace(net, x)
    convert(graph)
    result = graph.run({"x": x})["output"]
    with torch.no_grad():
        torch.testing.assert_close(result, net.half()(x.half()).float(), rtol=0, atol=0)
    assert result.dtype == torch.float32
    assert dtypes(graph) == {torch.float16}


def test_constants_know_their_dtype() -> None:
    graph = trace(Net(lambda fc, x: fc(x)), torch.randn(2, 4))
    convert(graph)
    constants = graph.module.graph.find_nodes(op="get_attr")
    assert {n.meta["val"].dtype for n in constants} == {torch.float16}


def test_an_op_that_names_float32_names_float16() -> None:
    def function(fc: Any, x: Tensor) -> Tensor:
        result: Tensor = fc(torch.cumsum(x, 1, dtype=torch.float32)) + x.argmax(1, True).float()
        return result

    graph = trace(Net(function), torch.randn(2, 4))
    convert(graph)
    assert dtypes(graph) == {torch.float16}
    assert graph.run(graph.inputs)["output"].dtype == torch.float32


def test_integers_stay_integers() -> None:
    graph = trace(Net(lambda fc, x: (fc.weight[x], x + 1)), torch.tensor([0, 2]))
    assert convert(graph) == 2, "the weight, and one output"
    outputs = graph.run({"x": torch.tensor([1, 2])})
    assert [v.dtype for v in outputs.values()] == [torch.float32, torch.int64]
    assert graph.inputs["x"].dtype == torch.int64


def test_a_value_that_is_returned_twice_is_cast_once() -> None:
    graph = trace(Net(lambda fc, x: (y := fc(x), y)), torch.randn(2, 4))
    convert(graph)
    assert len(graph.calls(aten.to.dtype)) == 2
    assert {v.dtype for v in graph.run(graph.inputs).values()} == {torch.float32}


def test_weights_beyond_the_range_are_all_named() -> None:
    net = Net(lambda fc, x: fc(x))
    net.fc.weight.data[0, 0], net.fc.bias.data[0] = 65520.0, -1e5
    graph = trace(net, torch.randn(2, 4))
    before = graph.to_text()
    with pytest.raises(UnsupportedError, match=r"^2 weight.*: fc\.weight, fc\.bias; use -p fp32"):
        run(graph, [ConvertToHalf()])
    assert graph.to_text() == before


def test_infinities_fit() -> None:
    net = Net(lambda fc, x: fc(x))
    net.fc.bias.data[0] = -torch.inf
    graph = trace(net, torch.randn(2, 4))
    convert(graph)
    assert bool((graph.run(graph.inputs)["output"][:, 0] == -torch.inf).all())
