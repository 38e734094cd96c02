"""absorb-high-bias: the same function on the samples, smaller ranges, and where it must not act."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import aten
from qcompile.passes.base import run
from qcompile.passes.calibration.channel_statistics import channel_statistics
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.graph.absorb_high_bias import AbsorbHighBias

Op = Callable[[Tensor], Tensor]
IMAGE = {"x": torch.rand(4, 2, 6, 6, generator=torch.Generator().manual_seed(0))}


def high(layer: nn.Module, biases: tuple[float, ...] = (5.0, 3.0, -1.0)) -> nn.Module:
    """Shrink a layer's weight and set its biases: x in [0, 1] moves its outputs by 1 at most."""
    with torch.no_grad():
        layer.weight.div_(layer.weight.abs().sum(dim=tuple(range(1, layer.weight.dim()))).max())
        layer.bias.copy_(torch.tensor(biases))
    return layer


class Net(nn.Module):
    """A layer with high biases, an activation, and what follows."""

    def __init__(self, activation: Op, *after: nn.Module) -> None:
        super().__init__()
        self.first, self.after = high(nn.Conv2d(2, 3, 3, padding=1)), nn.ModuleList(after)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.first(x))
        z = [a(y) for a in self.after]
        return torch.cat([v.flatten(1) for v in z], 1)


class Linears(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = high(nn.Linear(2, 3)), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


def relu5(x: Tensor) -> Tensor:
    return torch.clamp(x, 0.0, 5.0)


def absorb(module: nn.Module, inputs: dict[str, Tensor] = IMAGE) -> tuple[Graph, int]:
    graph = trace(module, inputs)
    return graph, run(graph, [AbsorbHighBias(Samples([inputs], 4, "test"))])[0].rewrites


def pooled(pool: nn.Module, features: int) -> nn.Module:
    return nn.Sequential(pool, nn.Flatten(), nn.Linear(features, 4))


ABSORBED = {
    "conv": lambda: Net(torch.relu, nn.Conv2d(3, 4, 3)),
    "conv-without-bias": lambda: Net(torch.relu, nn.Conv2d(3, 4, 1, bias=False)),
    "depthwise": lambda: Net(torch.relu, nn.Conv2d(3, 6, 3, groups=3)),
    "two-readers": lambda: Net(torch.relu, nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 3, stride=2)),
    "global-pool": lambda: Net(torch.relu, pooled(nn.AdaptiveAvgPool2d(1), 3)),
    "average-pool": lambda: Net(torch.relu, pooled(nn.AvgPool2d(2), 27)),
    "ceil-mode": lambda: Net(torch.relu, pooled(nn.AvgPool2d(4, ceil_mode=True), 12)),
    "padded-max-pool": lambda: Net(torch.relu, pooled(nn.MaxPool2d(3, 2, padding=1), 27)),
    "flatten": lambda: Net(torch.relu, pooled(nn.Identity(), 108)),
    "clamp": lambda: Net(relu5, nn.Conv2d(3, 4, 1)),
    "never-clamped": lambda: Net(lambda x: torch.clamp(x, 0.0, 9.0), nn.Conv2d(3, 4, 1)),
    "always-clamped": lambda: Net(lambda x: torch.clamp(x, 0.0, 2.0), nn.Conv2d(3, 4, 1)),
}


@pytest.mark.parametrize("case", ABSORBED)
def test_same_function_and_smaller_range(case: str) -> None:
    module = ABSORBED[case]()
    expected = module(IMAGE["x"]).detach()
    before = module.activation(module.first(IMAGE["x"])).detach().max()
    graph, rewrites = absorb(module)
    assert rewrites == 1
    torch.testing.assert_close(graph.run(IMAGE)["output"], expected)
    (activation,) = graph.calls(aten.relu.default, aten.clamp.Tensor)
    seen = channel_statistics(graph, Samples([IMAGE], 4, "test"), {activation: 1})[activation]
    assert float(seen.high.max()) < 0.7 * float(before)
    if activation.target == aten.clamp.Tensor:
        assert float(graph.constant(activation.args[2]).min()) >= float(seen.high.max()) - 1e-6


def test_linear_layers() -> None:
    inputs = {"x": torch.rand(4, 5, 2)}
    module = Linears()
    graph, rewrites = absorb(module, inputs)
    assert rewrites == 1
    torch.testing.assert_close(graph.run(inputs)["output"], module(inputs["x"]).detach())


def test_chain_of_layers_and_shared_bias() -> None:
    module = nn.Sequential(
        high(nn.Conv2d(2, 3, 3)), nn.ReLU(), high(nn.Conv2d(3, 3, 1)), nn.ReLU(), nn.Conv2d(3, 3, 1)
    )
    module[4].bias = module[2].bias
    graph = trace(module, {"input": IMAGE["x"]})
    samples = Samples([{"input": IMAGE["x"]}], 4, "test")
    expected = graph.run({"input": IMAGE["x"]})["output"]
    assert run(graph, [AbsorbHighBias(samples)])[0].rewrites == 2
    torch.testing.assert_close(graph.run({"input": IMAGE["x"]})["output"], expected)


def test_inputs_within_the_margin_are_equal() -> None:
    module = Net(torch.relu, nn.Conv2d(3, 4, 3))
    graph, _ = absorb(module)
    x = -0.2 * IMAGE["x"]  # lower than any sample, but no channel by a tenth of its minimum
    torch.testing.assert_close(graph.run({"x": x})["output"], module(x).detach())


def test_golden(
    golden: Callable[[str, str], None], quarters: Callable[[nn.Module], nn.Module]
) -> None:
    module = quarters(
        Net(relu5, nn.Conv2d(3, 2, 1, bias=False), pooled(nn.AdaptiveAvgPool2d(1), 3))
    )
    module.first.weight.data.div_(16)
    module.first.bias.data.copy_(torch.tensor([4.0, 2.0, -1.0]))
    x = {"x": (torch.arange(32) % 5).reshape(1, 2, 4, 4) / 4}
    graph = trace(module, x)
    assert run(graph, [AbsorbHighBias(Samples([x], 1, "test"), margin=0.25)])[0].rewrites == 1
    golden("absorb_high_bias.txt", graph.to_text())


KEPT = {
    "padding": lambda: Net(torch.relu, nn.Conv2d(3, 4, 3, padding=1)),
    "one-of-two-padded": lambda: Net(torch.relu, nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)),
    "padded-average-pool": lambda: Net(torch.relu, pooled(nn.AvgPool2d(2, padding=1), 48)),
    "other-reader": lambda: Net(torch.relu, nn.Conv2d(3, 4, 1), nn.Sigmoid()),
    "graph-output": lambda: Net(torch.relu, nn.Conv2d(3, 4, 1), nn.Identity()),
    "another-activation": lambda: Net(F.hardswish, nn.Conv2d(3, 4, 1)),
    "lower-bound-above-0": lambda: Net(lambda x: torch.clamp(x, 0.5, 5.0), nn.Conv2d(3, 4, 1)),
    "open-below": lambda: Net(lambda x: torch.clamp(x, max=5.0), nn.Conv2d(3, 4, 1)),
}


@pytest.mark.parametrize("case", KEPT)
def test_leaves_alone(case: str) -> None:
    assert absorb(KEPT[case]())[1] == 0


def test_leaves_a_value_whose_largest_channel_can_be_zero() -> None:
    module = Net(torch.relu, nn.Conv2d(3, 4, 1))
    with torch.no_grad():
        module.first.weight[2].fill_(-4.0).select(0, 0).fill_(8.0)  # from far below 0 to above 6
    assert absorb(module)[1] == 0
