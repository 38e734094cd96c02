"""The IR text: readable, complete, and different whenever the graph or a constant is."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import aten


class Net(nn.Module):
    """Convolution, list arguments, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.fc = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = torch.cat([F.relu(self.conv(x)), F.hardtanh(self.conv(x), 0, 6)], 1)
        return {"features": features, "logits": self.fc(features.mean((2, 3)))}


def make_graph(fill: Callable[[nn.Module], nn.Module]) -> Graph:
    return trace(fill(Net()), torch.ones(2, 2, 4, 4), {"x": {0: torch.export.Dim("batch")}})


def test_golden(
    golden: Callable[[str, str], None], quarters: Callable[[nn.Module], nn.Module]
) -> None:
    golden("text.txt", make_graph(quarters).to_text())


def test_one_weight_changes_one_digest(quarters: Callable[[nn.Module], nn.Module]) -> None:
    graph = make_graph(quarters)
    before = graph.to_text().splitlines()
    weight = graph.weights["conv.weight"].clone()
    weight[0, 0, 0, 0] += 2**-20
    graph.weights["conv.weight"] = weight
    after = graph.to_text().splitlines()
    changed = [b for b, a in zip(before, after, strict=True) if b != a]
    assert len(changed) == 1
    assert changed[0].startswith("conv_weight = get_attr conv.weight  # f32[4, 2, 3, 3] ")


def test_an_argument_changes_its_line(quarters: Callable[[nn.Module], nn.Module]) -> None:
    graph = make_graph(quarters)
    (bounded,) = graph.calls(aten.hardtanh.default)
    before = graph.to_text()
    bounded.args = (bounded.args[0], 0, 5)
    changed = set(graph.to_text().splitlines()) - set(before.splitlines())
    call = f"aten.hardtanh.default({bounded.args[0]}, 0, 5)"
    assert changed == {f"{bounded.name} = {call}  # f32[batch, 4, 4, 4]"}


def test_the_text_of_one_model_is_always_the_same(
    quarters: Callable[[nn.Module], nn.Module],
) -> None:
    assert make_graph(quarters).to_text() == make_graph(quarters).to_text()


def test_sizes_computed_from_free_axes_are_printed_by_name() -> None:
    class Merge(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, x], 0).relu()

    shapes = {"x": {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}}
    text = trace(Merge(), torch.ones(3, 5), shapes).to_text()
    assert "x = input x  # f32[batch, length]\n" in text
    assert "# f32[2*batch, length]\n" in text


def test_a_constant_without_data_says_so(quarters: Callable[[nn.Module], nn.Module]) -> None:
    graph = make_graph(quarters)
    graph.weights["fc.bias"] = graph.weights["fc.bias"].to("meta")
    assert "fc_bias = get_attr fc.bias  # f32[2] meta\n" in graph.to_text()


def test_dtypes_keywords_and_scalars() -> None:
    class Converts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            steps = torch.arange(3, dtype=torch.float16)
            return (x.to(torch.float64).sum() > 0) | steps.bool()

    text = trace(Converts(), torch.ones(3, dtype=torch.bfloat16)).to_text()
    assert "x = input x  # bf16[3]\n" in text
    assert "# f64[3]\n" in text
    assert "dtype=torch.float16" in text
    assert "# f64[]\n" in text
    assert "# bool[3]\n" in text
